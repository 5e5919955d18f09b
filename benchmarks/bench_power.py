"""How often `golden bench` alarms where nothing changed, and how often it finds a known slowdown.

    python -m benchmarks.bench_power measure --case tiny_moe --lane cpu --output POWER.json
    python -m benchmarks.bench_power pool FIRST.json SECOND.json ... --output POWER.json

A base and a head are resident and train in turns, both of this working tree. The head's steps are
made longer, or not, by the plant that `golden bench --fault` plants, switched from outside:

    same          not at all: every alarm is false
    slow-step-3   by 3 %
    slow-step-1   by 1 %

A section is what a run of `golden bench` measures, `--pairs` of blocks, and is judged as one;
sections share no block. The experiments take turns section by section. `pool` judges the sections
of several processes (other starts, other cards, other machines) together. Bounds are one-sided 95 %
(Clopper-Pearson). Neighbouring sections are also judged together, which shows what longer runs
would find. Sections on a disturbed machine are counted like any other, and told.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from validation.cases.vpmoe import CASES
from validation.cases.vpmoe.faults.planting import Planted
from validation.cases.vpmoe.faults.throughput import slower
from validation.files import encode_json, write_atomically
from validation.throughput.bench import DEFAULT_PAIRS, EACH_ALPHA, MIN_PAIRS, judge_quads
from validation.throughput.session import SessionPlan, open_session
from validation.throughput.statistics import ALPHA, MIN_EFFECT, at_least, at_most, judge
from validation.throughput.telemetry import unfit, watch_for

SECTIONS = {"same": 60, "slow-step-3": 20, "slow-step-1": 20}
SHARES = {"same": 0.0, "slow-step-3": 0.03, "slow-step-1": 0.01}
_SWITCH = "VPMOE_BENCH_POWER_SWITCH"
_KINDS = ("effects", "whole_effects")
_MERGED = (1, 2, 4)
_NOT_COPIED = (".git", ".tox", ".venv", "__pycache__", "runs", "reports", "mlruns", "shared")


def switched() -> Planted:
    """The plant: the share stands in a file, which the parent writes."""
    switch = Path(os.environ[_SWITCH])
    return slower(lambda: float(switch.read_text()))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measures sections of every experiment until there are enough, or the time is over."""
    case = next(case for case in CASES if case.name == options.case and case.throughput)
    names = options.only or list(SECTIONS)
    wanted = {name: max(1, round(SECTIONS[name] * options.share)) for name in names}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    document: dict[str, Any] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-power-") as folder:
        base, switch = Path(folder) / "base", Path(folder) / "share"
        shutil.copytree(Path.cwd(), base, ignore=shutil.ignore_patterns(*_NOT_COPIED))
        write_atomically(switch, b"0.0")
        os.environ[_SWITCH] = str(switch)
        plan = SessionPlan(
            case=case,
            lane=options.lane,
            trees={"base": base, "head": Path.cwd()},
            logs=options.output.with_suffix(".logs"),
            fault=f"benchmarks.bench_power:{switched.__name__}",
            block_seconds=options.block,
        )
        with open_session(plan, watch_for(plan.lane)) as session:
            session.warm_up()
            session.quad()  # clocks and caches settle in the rhythm of the blocks
            ready = time.monotonic() - began
            document |= {
                "case": case.name,
                "lane": options.lane,
                "pairs": options.pairs,
                "block_steps": session.block_steps,
                "environment": session.facts["base"]["environment"],
                "experiments": found,
                "seconds": None,
            }
            while (name := _next(found, wanted)) and time.monotonic() - began < options.seconds:
                write_atomically(switch, str(SHARES[name]).encode())
                section = [session.quad() for _ in range(options.pairs // 2)]
                blocks = [block for quad in section for block in quad.blocks]
                found[name].append(
                    {
                        "effects": [quad.effect for quad in section],
                        "whole_effects": [quad.whole_effect for quad in section],
                        "seconds": sum(block.seconds for block in blocks),
                        "disturbed": unfit([block.machine for block in blocks]),
                        "blocks": [block.to_json() for block in blocks] if options.raw else [],
                    }
                )
                step, whole = judge_quads(section)
                text = f"{step.ratio:.4f} [{step.low:.4f}, {step.high:.4f}], p = {step.p:.2g}; "
                text += f"whole {whole.ratio:.4f}, p = {whole.p:.2g}"
                print(f"{name} {len(found[name])}: {text}", flush=True)
                # After each, so that what is measured survives a machine that is taken away.
                document["seconds"] = {"start": ready, "all": time.monotonic() - began}
                write_atomically(options.output, encode_json(document))
    return document


def _next(found: Mapping[str, Sequence[Any]], wanted: Mapping[str, int]) -> str | None:
    """The experiment that has the smallest part of its sections; None when all have theirs."""
    short = [name for name in wanted if len(found[name]) < wanted[name]]
    return min(short, key=lambda name: len(found[name]) / wanted[name], default=None)


def summarise(name: str, sections: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Judges the sections, alone and several together."""
    planted = SHARES[name] > 0
    levels = []
    for merged in _MERGED:
        joined = [sections[i : i + merged] for i in range(0, len(sections) - merged + 1, merged)]
        if not joined:
            continue
        alarms = [_alarms(part) for part in joined]
        raised = sum(any(kinds.values()) for kinds in alarms)
        levels.append(
            {
                "pairs": 2 * sum(len(section["effects"]) for section in joined[0]),
                "seconds": merged * sum(section["seconds"] for section in sections) / len(sections),
                "runs": len(joined),
                "alarms": raised,
                "by": {kind: sum(kinds[kind] for kinds in alarms) for kind in _KINDS},
                "bound": (at_least if planted else at_most)(raised, len(joined)),
            }
        )
    whole = judge([effect for section in sections for effect in section["effects"]])
    return {
        "experiment": name,
        "ratio": whole.ratio,
        "low": whole.low,
        "high": whole.high,
        "levels": levels,
        "sections": [
            {
                **{kind: [round(effect, 6) for effect in section[kind]] for kind in _KINDS},
                "disturbed": section["disturbed"],
            }
            for section in sections
        ],
    }


def _alarms(sections: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Which of the two tests find a slowdown in sections taken together."""
    return {
        kind: judge([e for section in sections for e in section[kind]], alpha=EACH_ALPHA).slower
        for kind in _KINDS
    }


def pool(files: Sequence[Path]) -> dict[str, Any]:
    """The summary of what several processes measured.

    Raises:
        SystemExit: they measured different things.
    """
    documents = [json.loads(path.read_text()) for path in files]
    kinds = {(d["case"], d["lane"], d["pairs"]) for d in documents}
    if len(kinds) > 1:
        raise SystemExit(f"different measurements do not pool: {sorted(kinds)}")
    names = dict.fromkeys(name for d in documents for name in d["experiments"])
    together = {n: [s for d in documents for s in d["experiments"].get(n, ())] for n in names}
    return {
        "case": documents[0]["case"],
        "lane": documents[0]["lane"],
        "alpha": ALPHA,
        "min_effect": MIN_EFFECT,
        "processes": [
            {key: d[key] for key in ("environment", "block_steps", "seconds")} for d in documents
        ],
        "experiments": [summarise(name, part) for name, part in together.items() if part],
    }


def table(document: Mapping[str, Any]) -> str:
    """A line for each experiment and length of a run, in Markdown."""
    lines = [
        "| planted | measured, head / base | pairs | seconds of steps | alarms | probability |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for summary in document["experiments"]:
        name = summary["experiment"]
        interval = f"{summary['ratio']:.4f} [{summary['low']:.4f}, {summary['high']:.4f}]"
        sign = ">=" if SHARES[name] else "<="
        lines += [
            f"| {name} | {interval} | {level['pairs']} | {level['seconds']:.1f} | "
            f"{level['alarms']} of {level['runs']} | {sign} {level['bound']:.1%} |"
            for level in summary["levels"]
        ]
    seconds = sum(process["seconds"]["all"] for process in document["processes"])
    disturbed = sum(bool(s["disturbed"]) for e in document["experiments"] for s in e["sections"])
    lines += ["", f"{len(document['processes'])} process(es), {seconds:.0f} s in all, start-up "]
    lines[-1] += f"included; sections on a disturbed machine: {disturbed}"
    return "\n".join(lines)


def main() -> None:
    """Measures or pools, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure", help="measure sections in one process")
    one.add_argument("--case", default="tiny_moe", help="default: tiny_moe")
    one.add_argument("--lane", default="cpu", help="default: cpu")
    one.add_argument("--pairs", type=int, default=DEFAULT_PAIRS, help="of a section")
    one.add_argument("--block", type=float, default=0.1, help="seconds of a block at least")
    one.add_argument("--share", type=float, default=1.0, help="of the sections (default: 1)")
    one.add_argument("--seconds", type=float, default=3600.0, help="that it may take")
    one.add_argument("--only", action="append", choices=list(SECTIONS), metavar="EXPERIMENT")
    one.add_argument("--raw", action="store_true", help="keep every block")
    several = commands.add_parser("pool", help="judge the sections of several processes")
    several.add_argument("files", nargs="+", type=Path)
    for command in (one, several):
        command.add_argument("--output", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    if options.command == "pool":
        document = pool(options.files)
        write_atomically(options.output, encode_json(document))
        print(table(document))
        return
    if options.pairs < MIN_PAIRS or options.pairs % 2:
        parser.error(f"--pairs {options.pairs}: an even number, at least {MIN_PAIRS}")
    if not measure(options)["seconds"]:
        raise SystemExit(f"no section was measured in {options.seconds:g} s")
    print("\n" + table(pool([options.output])))


if __name__ == "__main__":
    main()
