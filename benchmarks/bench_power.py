"""How often `golden bench` alarms where nothing changed, and how often it finds a known slowdown.

    python -m benchmarks.bench_power --case tiny_moe --lane cpu --seconds 3600 --output power.json
    python -m benchmarks.bench_power --case dev_moe --lane h200 --only same --output same.json

Three experiments, each one long interleaved session of this working tree against a copy of it, cut
into sections that are judged independently as if each were a run of its own:

    same          60 sections, nothing planted: every alarm is false
    slow-step-3   20 sections, steps of the head 3 % slower
    slow-step-1   20 sections, steps of the head 1 % slower

Sections are as long as `--seconds`, start-up included, allows. Bounds are one-sided 95 %
(Clopper-Pearson). Neighbouring sections are also judged together, which shows what longer runs
would find. Sections on a disturbed machine are counted like any other, and told.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from validation.cases.vpmoe import CASES
from validation.cases.vpmoe.faults.throughput import THROUGHPUT_FAULTS
from validation.files import encode_json, write_atomically
from validation.throughput.bench import MIN_PAIRS
from validation.throughput.session import Quad, SessionPlan, open_session
from validation.throughput.statistics import ALPHA, MIN_EFFECT, at_least, at_most, judge
from validation.throughput.telemetry import unfit, watch_for

SECTIONS = {"same": 60, "slow-step-3": 20, "slow-step-1": 20}
_MERGED = (1, 2, 4)
_NOT_COPIED = (".git", ".tox", ".venv", "__pycache__", "runs", "reports", "mlruns", "shared")


def run_experiment(
    name: str, plan: SessionPlan, seconds: float, sections: int
) -> tuple[list[list[Quad]], dict[str, Any]]:
    """Measures the sections of one experiment.

    Args:
        name: of the experiment, for progress.
        plan: of the session.
        seconds: that it may take, start-up included.
        sections: how many.

    Returns:
        The quads of each section, and what the head's pacer described.
    """
    began = time.monotonic()
    with open_session(plan, watch_for(plan.lane)) as session:
        session.warm_up()
        first = time.monotonic()
        for _ in range(2):
            session.quad()
        ready = time.monotonic()
        length = int((seconds - (ready - began)) / sections / ((ready - first) / 2))
        if length < MIN_PAIRS // 2:
            needed = (ready - began) + sections * (MIN_PAIRS // 2) * (ready - first) / 2
            raise SystemExit(f"{name}: {seconds:.0f} s are too few, it needs {needed:.0f} s")
        found = []
        for number in range(1, sections + 1):
            found.append([session.quad() for _ in range(length)])
            effect = judge([quad.effect for quad in found[-1]])
            print(f"{name} {number}/{sections}: {effect.ratio:.4f}, p = {effect.p:.2g}", flush=True)
        return found, dict(session.facts["head"])


def summarise(name: str, sections: Sequence[Sequence[Quad]], planted: bool) -> dict[str, Any]:
    """Judges the sections, alone and several together."""
    effects = [[quad.effect for quad in section] for section in sections]
    machine = [[block.machine for quad in s for block in quad.blocks] for s in sections]
    seconds = [sum(block.seconds for quad in s for block in quad.blocks) for s in sections]
    levels = []
    for merged in _MERGED:
        joined = [
            [effect for part in effects[i : i + merged] for effect in part]
            for i in range(0, len(effects) - merged + 1, merged)
        ]
        judged = [judge(part) for part in joined]
        alarms = sum(judgement.slower for judgement in judged)
        levels.append(
            {
                "quads": len(joined[0]),
                "seconds": merged * sum(seconds) / len(seconds),
                "runs": len(judged),
                "alarms": alarms,
                "bound": (at_least if planted else at_most)(alarms, len(judged)),
                "judgements": [dataclasses.asdict(judgement) for judgement in judged],
            }
        )
    whole = judge([effect for part in effects for effect in part])
    return {
        "experiment": name,
        "ratio": whole.ratio,
        "low": whole.low,
        "high": whole.high,
        "levels": levels,
        "disturbed_sections": {
            number: reasons for number, part in enumerate(machine, 1) if (reasons := unfit(part))
        },
        "quads": [[[b.to_json() for b in quad.blocks] for quad in part] for part in sections],
    }


def print_summary(summary: dict[str, Any], planted: bool) -> None:
    """One line for each length of a run."""
    interval = f"{summary['ratio']:.4f} [{summary['low']:.4f}, {summary['high']:.4f}]"
    print(f"\n{summary['experiment']}: head / base over everything {interval}")
    for level in summary["levels"]:
        word, sign = ("found", ">=") if planted else ("false alarms", "<=")
        print(
            f"  runs of {level['quads']} quads, {level['seconds']:.1f} s of steps: {word} "
            f"{level['alarms']} of {level['runs']}, probability {sign} {level['bound']:.3f}"
        )
    print(f"  disturbed sections: {len(summary['disturbed_sections'])}")


def main() -> None:
    """Runs the experiments, prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", default="tiny_moe", help="default: tiny_moe")
    parser.add_argument("--lane", default="cpu", help="default: cpu")
    parser.add_argument("--seconds", type=float, default=3600.0, help="of all (default: 3600)")
    parser.add_argument("--block", type=float, default=0.1, help="seconds of a block at least")
    parser.add_argument("--only", action="append", choices=list(SECTIONS), metavar="EXPERIMENT")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    case = next(case for case in CASES if case.name == options.case and case.throughput)
    plants = {fault.id: fault.plant for fault in THROUGHPUT_FAULTS}
    names = options.only or list(SECTIONS)
    share = options.seconds / sum(SECTIONS[name] for name in names)
    summaries: list[dict[str, Any]] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-power-") as folder:
        base = Path(folder) / "base"
        shutil.copytree(Path.cwd(), base, ignore=shutil.ignore_patterns(*_NOT_COPIED))
        for name in names:
            plan = SessionPlan(
                case=case,
                lane=options.lane,
                trees={"base": base, "head": Path.cwd()},
                logs=options.output.parent / "bench_power_logs",
                fault=plants.get(name),
                block_seconds=options.block,
            )
            sections, facts = run_experiment(name, plan, share * SECTIONS[name], SECTIONS[name])
            summaries.append(summarise(name, sections, name in plants))
            # After each, so that what is measured survives a machine that is taken away.
            document = {
                "case": case.name,
                "lane": options.lane,
                "alpha": ALPHA,
                "min_effect": MIN_EFFECT,
                "environment": facts["environment"],
                "seconds": time.monotonic() - began,
                "experiments": summaries,
            }
            write_atomically(options.output, encode_json(document))
    for summary in summaries:
        print_summary(summary, summary["experiment"] in plants)
    print(f"\n{time.monotonic() - began:.0f} s in all; {options.output}")


if __name__ == "__main__":
    main()
