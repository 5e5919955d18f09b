"""What the commands share: choosing cases and lanes, progress."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence

from validation.cases import LANES, Case, CaseError
from validation.environment import default_lane, gpu_count
from validation.goldens.acceptance import RefusedError


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Adds the positional cases and `--lane`."""
    parser.add_argument("case", nargs="*", metavar="CASE", help="default: every case of the lane")
    parser.add_argument("--lane", choices=list(LANES), help="default: what this machine is")


def chosen_lane(options: argparse.Namespace) -> str:
    """The lane asked for, or what this machine is."""
    return options.lane or default_lane(gpu_count())


def lane_to_run(options: argparse.Namespace) -> str:
    """The chosen lane, if this machine can serve it.

    Raises:
        RefusedError: it lacks GPUs.
    """
    lane, gpus = chosen_lane(options), gpu_count()
    if gpus < LANES[lane]:
        raise RefusedError(f"lane {lane} has {LANES[lane]} GPU(s), this machine has {gpus}")
    return lane


def chosen_cases(cases: Mapping[str, Case], names: Sequence[str], lane: str) -> list[Case]:
    """The cases named, or every one of the lane.

    Raises:
        CaseError: an unknown case, or one that does not run on the lane.
    """
    if not names:
        return [case for case in cases.values() if lane in case.lanes]
    chosen = []
    for name in dict.fromkeys(names):
        if name not in cases:
            raise CaseError(f"there is no case {name!r}; cases: {', '.join(cases) or 'none'}")
        if lane not in cases[name].lanes:
            raise CaseError(f"case {name} runs on {', '.join(cases[name].lanes)}, not on {lane}")
        chosen.append(cases[name])
    return chosen


class Progress:
    """Progress on stderr: a line that is rewritten on a terminal, whole lines elsewhere."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        """Shows a line."""
        elapsed = time.monotonic() - self._began
        if self._terminal:
            from rich.console import Console

            Console(stderr=True).print(f"[dim]{elapsed:6.1f} s[/dim]", text, markup=True)
        else:
            print(f"{elapsed:6.1f} s  {text}", file=sys.stderr, flush=True)
