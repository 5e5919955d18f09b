"""How often `golden bench` alarms where nothing changed, and how often it finds a known slowdown.

    python -m benchmarks.bench_power measure --case tiny_moe --lane cpu --output POWER.json
    python -m benchmarks.bench_power pool FIRST.json SECOND.json ... --output POWER.json

A base and a head are resident and train in turns, both of this working tree. The head's steps are
made longer, or not, by the plant that `golden bench --fault` plants, switched from outside:

    same          not at all: every alarm is false
    slow-step-3   by 3 %
    slow-step-1   by 1 %

A section is what a run of `golden bench` measures, `--pairs` of blocks, and is judged as one;
sections share no block. As there, both sides are started twice, and every section has quads of both
starts. The experiments take turns section by section. `pool` judges the sections
of several processes (other starts, other cards, other machines) together. Bounds are one-sided 95 %
(Clopper-Pearson). Neighbouring sections are also judged together, which shows what longer runs
would find. Sections on a disturbed machine are counted like any other, and told.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import os
import shutil
import statistics
import struct
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from validation.config import declaration_of, lane_of
from validation.files import encode_json, write_atomically
from validation.rates import lower_bound, upper_bound
from validation.running.source import find_root
from validation.throughput.bench import EACH_ALPHA, MIN_PAIRS, STARTS, default_pairs
from validation.throughput.session import BLOCK_SECONDS, Quad, Session, SessionPlan, open_session
from validation.throughput.statistics import (
    ALPHA,
    MIN_EFFECT,
    Judgement,
    judge,
)
from validation.throughput.telemetry import unfit, watch_for
from vpmoe.cases import CASES
from vpmoe.cases.faults.planting import Planted
from vpmoe.cases.faults.throughput import slower

SECTIONS = {"same": 60, "slow-step-3": 20, "slow-step-1": 20}
SHARES = {"same": 0.0, "slow-step-3": 0.03, "slow-step-1": 0.01}
_SWITCH = "VPMOE_BENCH_POWER_SWITCH"
_SHARE = struct.Struct("d")
_KINDS = ("effects", "whole_effects")
Parts = dict[str, list[dict[str, Any]]]
"""What one start has measured, by experiment."""
_MERGED = (1, 2, 4)
_NOT_COPIED = (".git", ".tox", ".venv", "__pycache__", "runs", "reports", "mlruns", "shared")


def switched() -> Planted:
    """The plant: the share stands in a file, which the parent writes.

    It is read through memory: what opening a file takes would be a slowdown of every experiment.
    """
    with Path(os.environ[_SWITCH]).open("rb") as file:
        switch = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return slower(lambda: _SHARE.unpack_from(switch)[0])


def _set_switch(switch: Path, share: float) -> None:
    """Changes the share in place, while neither side trains."""
    with switch.open("r+b" if switch.exists() else "wb") as file:
        file.write(_SHARE.pack(share))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measures sections of every experiment until there are enough, or the time is over."""
    case = next(case for case in CASES if case.name == options.case and case.throughput)
    names = options.only or list(SECTIONS)
    wanted = {name: max(1, round(SECTIONS[name] * options.share)) for name in names}
    starts: list[Parts] = []
    document: dict[str, Any] = {"case": case.name, "lane": options.lane, "pairs": options.pairs}
    began = time.monotonic()

    def keep(session: Session) -> None:
        # At once, so that what is measured survives a machine that is taken away.
        document["block_steps"] = session.block_steps
        document["environment"] = session.facts["base"]["environment"]
        document["experiments"] = {n: _sections([parts[n] for parts in starts]) for n in names}
        document["seconds"] = time.monotonic() - began
        write_atomically(options.output, encode_json(document))

    with tempfile.TemporaryDirectory(prefix="bench-power-") as folder:
        base, switch = Path(folder) / "base", Path(folder) / "share"
        shutil.copytree(Path.cwd(), base, ignore=shutil.ignore_patterns(*_NOT_COPIED))
        os.environ[_SWITCH] = str(switch)
        plan = SessionPlan(
            case=case,
            lane=options.lane,
            trees={"base": base, "head": Path.cwd()},
            logs=options.output.with_suffix(".logs"),
            fault=f"benchmarks.bench_power:{switched.__name__}",
            block_seconds=options.block,
        )
        for number in range(STARTS):
            _set_switch(switch, 0.0)
            starts.append({name: [] for name in names})
            until = began + options.seconds * (number + 1) / STARTS
            with open_session(
                plan.start(number), watch_for(lane_of(plan.root, plan.lane))
            ) as session:
                session.warm_up()
                session.quad()  # clocks and caches settle in the rhythm of the blocks
                while (name := _next(starts[-1], wanted)) and time.monotonic() < until:
                    _set_switch(switch, SHARES[name])
                    part = _part([session.quad() for _ in range(options.pairs // 2 // STARTS)])
                    starts[-1][name].append(part)
                    ratio = math.exp(statistics.median(part["effects"]))
                    count = len(starts[-1][name])
                    print(f"start {number + 1}, {name} {count}: {ratio:.4f}", flush=True)
                    keep(session)
            # What a start had no time for has no second half.
            wanted = {name: len(parts) for name, parts in starts[-1].items()}
    return document


def _sections(starts: Sequence[Sequence[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """The parts that the starts have measured of an experiment, section by section."""
    return [list(parts) for parts in zip(*starts, strict=False)] if len(starts) == STARTS else []


def _part(quads: Sequence[Quad]) -> dict[str, Any]:
    """One start's part of a section."""
    blocks = [block for quad in quads for block in quad.blocks]
    return {
        "effects": [quad.effect for quad in quads],
        "whole_effects": [quad.whole_effect for quad in quads],
        "seconds": sum(block.seconds for block in blocks),
        "disturbed": unfit([block.machine for block in blocks]),
    }


def _next(found: Parts, wanted: Mapping[str, int]) -> str | None:
    """The experiment that has the smallest part of its sections; None when all have theirs."""
    short = [name for name in wanted if len(found[name]) < wanted[name]]
    return min(short, key=lambda name: len(found[name]) / wanted[name], default=None)


def summarise(name: str, sections: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Judges the sections, alone and several together."""
    planted = SHARES[name] > 0
    seconds = sum(part["seconds"] for section in sections for part in section) / len(sections)
    levels = []
    for merged in _MERGED:
        runs = [sections[i : i + merged] for i in range(0, len(sections) - merged + 1, merged)]
        if not runs:
            continue
        alarms = [{kind: _judged(run, kind).slower for kind in _KINDS} for run in runs]
        raised = sum(any(kinds.values()) for kinds in alarms)
        levels.append(
            {
                "pairs": 2 * sum(len(part["effects"]) for section in runs[0] for part in section),
                "seconds": merged * seconds,
                "runs": len(runs),
                "alarms": raised,
                "by": {kind: sum(kinds[kind] for kinds in alarms) for kind in _KINDS},
                "bound": (lower_bound if planted else upper_bound)(raised, len(runs)),
            }
        )
    whole = _judged(sections, "effects")
    return {
        "experiment": name,
        "ratio": whole.ratio,
        "low": whole.low,
        "high": whole.high,
        "levels": levels,
        "sections": [
            [
                {
                    **{kind: [round(effect, 6) for effect in part[kind]] for kind in _KINDS},
                    "disturbed": part["disturbed"],
                }
                for part in section
            ]
            for section in sections
        ],
    }


def _judged(sections: Sequence[Sequence[Mapping[str, Any]]], kind: str) -> Judgement:
    """Of sections taken together, start by start."""
    starts = [[e for part in parts for e in part[kind]] for parts in zip(*sections, strict=True)]
    return judge(starts, alpha=EACH_ALPHA)


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
    seconds = sum(process["seconds"] for process in document["processes"])
    disturbed = sum(
        any(part["disturbed"] for part in section)
        for summary in document["experiments"]
        for section in summary["sections"]
    )
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
    one.add_argument("--pairs", type=int, help="of a section (default: that of golden bench)")
    one.add_argument("--block", type=float, default=BLOCK_SECONDS, help="seconds of a block")
    one.add_argument("--share", type=float, default=1.0, help="of the sections (default: 1)")
    one.add_argument("--seconds", type=float, default=3600.0, help="that it may take")
    one.add_argument("--only", action="append", choices=list(SECTIONS), metavar="EXPERIMENT")
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
    if options.pairs is None:
        options.pairs = default_pairs(declaration_of(find_root()).lanes[options.lane].gpus)
    if options.pairs < MIN_PAIRS or options.pairs % (2 * STARTS):
        parser.error(f"--pairs {options.pairs}: a multiple of {2 * STARTS}, at least {MIN_PAIRS}")
    if not any(measure(options).get("experiments", {}).values()):
        raise SystemExit(f"no section was measured in {options.seconds:g} s")
    print("\n" + table(pool([options.output])))


if __name__ == "__main__":
    main()
