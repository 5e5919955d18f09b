"""Plans attempts from a seed, makes them in bounded time, and counts what became of them."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.chaos.attempt import HANG, LEFT, LOST, WRONG, Attempt, Make, Skipped
from benchmarks.chaos.processes import orphans
from benchmarks.chaos.repository import States

_ROOM = 256 * 2**20

BROKEN = "suite broken"
"""The suite itself failed: no attempt."""


@dataclass(frozen=True)
class Kind:
    """A kind of attempt.

    Attributes:
        make: makes one.
        weight: its share of the attempts; 0 leaves it to `edits`.
    """

    make: Make
    weight: float = 1.0


@dataclass
class Tally:
    """What became of the attempts of a kind."""

    attempts: int = 0
    survived: int = 0
    skipped: int = 0
    seconds: float = 0.0
    wrong: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "attempts": self.attempts,
            "survived": self.survived,
            "skipped": self.skipped,
            **{name.replace(" ", "_"): self.wrong[name] for name in (LOST, WRONG, HANG, LEFT)},
            "suite_broken": self.wrong[BROKEN],
            "seconds": round(self.seconds, 1),
        }


@dataclass
class Report:
    """What became of all attempts.

    Attributes:
        seed: that they follow from.
        planned: how many were to be made.
        kinds: by kind.
        findings: name of the attempt, what was done, what is wrong.
        skips: kind -> why its attempts cannot be made here.
        seconds: of the whole suite.
    """

    seed: int
    planned: int
    kinds: dict[str, Tally] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)
    skips: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def total(self) -> Tally:
        """Of all kinds together."""
        tally = Tally()
        for kind in self.kinds.values():
            tally.attempts += kind.attempts
            tally.survived += kind.survived
            tally.skipped += kind.skipped
            tally.seconds += kind.seconds
            tally.wrong.update(kind.wrong)
        return tally

    @property
    def failed(self) -> bool:
        """Whether anything went wrong."""
        return bool(self.total.wrong.total())

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "seed": self.seed,
            "planned": self.planned,
            **self.total.to_json(),
            "seconds": round(self.seconds, 1),
            "kinds": {name: tally.to_json() for name, tally in sorted(self.kinds.items())},
            "skips": self.skips,
            "findings": self.findings,
        }

    def table(self) -> str:
        """For people."""
        columns = ("attempts", "survived", "lost", "wrong_verdict", "hang", "left_behind")
        lines = [f"{'kind':<18}" + "".join(f"{c.replace('_', ' '):>15}" for c in columns)]
        for name, tally in [*sorted(self.kinds.items()), ("all", self.total)]:
            found = tally.to_json()
            lines.append(f"{name:<18}" + "".join(f"{found[c]:>15}" for c in columns))
        lines += [f"skipped: {kind}: {why}" for kind, why in sorted(self.skips.items())]
        if self.total.attempts + self.total.skipped < self.planned:
            lines.append(f"the time was up after {self.total.attempts} of {self.planned} attempts")
        return "\n".join(lines)


def plan(kinds: Mapping[str, Kind], attempts: int, edits: int) -> list[str]:
    """Names of attempts, `KIND:NUMBER`, every kind spread over the whole.

    Args:
        kinds: by name.
        attempts: how many, of the kinds that have a weight.
        edits: how many of each kind that has none.
    """
    total = sum(kind.weight for kind in kinds.values())
    counts = {
        name: max(1, round(attempts * kind.weight / total)) if kind.weight else edits
        for name, kind in kinds.items()
    }
    places = [
        ((number + 0.5) / count, name, number)
        for name, count in counts.items()
        for number in range(count)
    ]
    return [f"{name}:{number}" for _, name, number in sorted(places)]


def in_memory() -> str | None:
    """A folder in memory with room for the suite, so that nothing waits for a disk; None without.

    Every golden is written with fsync, for which a busy disk takes a second.
    """
    folder = "/dev/shm"
    try:
        roomy = shutil.disk_usage(folder).free > _ROOM
    except OSError:
        return None
    return folder if roomy and os.access(folder, os.W_OK) else None


def run(
    names: Iterable[str],
    kinds: Mapping[str, Kind],
    states: States,
    seed: int,
    until: float,
    tell: Callable[[str], None],
) -> Report:
    """Makes attempts until the time is up.

    Args:
        names: from `plan`.
        kinds: by name.
        states: of the scratch repository.
        seed: that every choice follows from.
        until: `time.monotonic()` after which no attempt starts.
        tell: told what goes wrong.
    """
    names = list(names)
    report = Report(seed, len(names))
    for name in names:
        if time.monotonic() > until:
            break
        kind = name.partition(":")[0]
        tally = report.kinds.setdefault(kind, Tally())
        if kind in report.skips:
            tally.skipped += 1
            continue
        folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=in_memory()))
        attempt = Attempt(name, Random(f"{seed}/{name}"), folder, states)
        began = time.monotonic()
        try:
            kinds[kind].make(attempt)
        except Skipped as why:
            report.skips[kind] = str(why)
            tally.skipped += 1
            tell(f"{kind}: skipped: {why}")
            continue
        except Exception:
            attempt.blame(BROKEN, traceback.format_exc())
        finally:
            orphans()
            shutil.rmtree(folder, ignore_errors=True)
        tally.seconds += time.monotonic() - began
        _count(attempt, tally, report, tell)
    return report


def _count(attempt: Attempt, tally: Tally, report: Report, tell: Callable[[str], None]) -> None:
    tally.attempts += 1
    if not attempt.wrong:
        tally.survived += 1
        return
    # The attempt counts once, as the worst that happened to it.
    order: Sequence[str] = (BROKEN, LOST, WRONG, HANG, LEFT)
    bad = {what for what, _ in attempt.wrong}
    tally.wrong[next(what for what in order if what in bad)] += 1
    for what, text in attempt.wrong:
        report.findings.append(
            {"attempt": attempt.name, "did": attempt.did, "what": what, "text": text}
        )
        tell(f"{attempt.name}: {attempt.did}: {what}: {text}")
