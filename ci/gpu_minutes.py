"""GPU minutes per case: `python ci/gpu_minutes.py FOLDER... [--json FILE]`.

Sums `seconds` of every verdict.json below the folders that a GPU lane left, times the lane's GPUs.
What a lane spends outside its cases (the canary, reports) is shown as one row, and what a job spent
on other steps (`--lane LANE --step NAME SECONDS`) as a row each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from verdict_table import VerdictError, load, parse

from validation.config import declaration_of
from validation.running.source import RepositoryError, find_root

OUTSIDE = "(outside cases)"


def main() -> int:
    """Prints the table and writes the JSON; returns 2 for a broken verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--lane", default="cpu", help="where the steps ran (default: cpu)")
    parser.add_argument(
        "--step", nargs=2, action="append", default=[], metavar=("NAME", "SECONDS"), dest="steps"
    )
    options = parser.parse_args()
    files = sorted({path for folder in options.folder for path in folder.rglob("verdict.json")})
    try:
        verdicts = [load(path) for path in files if path.stat().st_size]
        steps = {name: float(seconds) for name, seconds in options.steps}
        lanes = declaration_of(find_root()).lanes
        gpus = {name: needs.gpus for name, needs in lanes.items()}
        minutes = gpu_minutes(verdicts, gpus, options.lane, steps)
    except (VerdictError, RepositoryError, ValueError, OSError) as error:
        print(f"gpu_minutes: {error}", file=sys.stderr)
        return 2
    print(render(minutes))
    if options.json:
        options.json.write_text(json.dumps(to_json(minutes), indent=1) + "\n")
    return 0


def gpu_minutes(
    verdicts: Iterable[Any],
    gpus: Mapping[str, int],
    lane: str = "cpu",
    steps: Mapping[str, float] | None = None,
) -> dict[tuple[str, str], float]:
    """GPU minutes of (lane, case), most expensive first.

    Args:
        verdicts: of checks.
        gpus: lane -> how many GPUs it uses, as the repository declares.
        lane: where the steps ran.
        steps: other steps of the job to their seconds.

    Raises:
        VerdictError: not what `golden check --json` prints, or of an undeclared lane.
    """
    spent: dict[tuple[str, str], float] = defaultdict(float)
    for table in map(parse, verdicts):
        of_lane = _gpus_of(gpus, table.lane)
        if not of_lane:
            continue
        in_cases = 0.0
        for row in table.rows:
            spent[table.lane, row.case] += row.seconds * of_lane / 60
            in_cases += row.seconds
        spent[table.lane, OUTSIDE] += max(0.0, table.seconds - in_cases) * of_lane / 60
    for name, seconds in (steps or {}).items():
        if _gpus_of(gpus, lane):
            spent[lane, f"({name})"] += seconds * _gpus_of(gpus, lane) / 60
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def _gpus_of(gpus: Mapping[str, int], lane: str) -> int:
    if lane not in gpus:
        raise VerdictError(f"lane {lane!r} is not declared; lanes are {', '.join(gpus)}")
    return gpus[lane]


def to_json(minutes: Mapping[tuple[str, str], float]) -> dict[str, Any]:
    """The figures as they are kept."""
    rows = [{"lane": k[0], "case": k[1], "gpu_minutes": round(v, 3)} for k, v in minutes.items()]
    return {"schema": 1, "total": round(sum(minutes.values()), 3), "cases": rows}


def render(minutes: Mapping[tuple[str, str], float]) -> str:
    """A table for the terminal."""
    rows = [(f"{lane}/{case}", f"{value:.2f}") for (lane, case), value in minutes.items()]
    rows.append(("total", f"{sum(minutes.values()):.2f}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(["GPU minutes", *(f"{name:<{width}}  {value:>8}" for name, value in rows)])


if __name__ == "__main__":
    sys.exit(main())
