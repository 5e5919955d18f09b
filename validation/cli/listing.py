"""`golden list`: which cases there are, and what is recorded of them."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from validation.calibration.noise import by_seeds, whole_check_alarms
from validation.cases import Case, CaseError, discover_cases
from validation.cli.common import add_case
from validation.cli.suggest import unknown
from validation.files import DamagedFileError, jsonable
from validation.goldens import GoldenStore, MissingGoldenError
from validation.goldens.canaries import KEY
from validation.goldens.environments import in_words
from validation.goldens.golden import environment_of
from validation.running.source import find_root

_HEADER = ("case", "lane", "age", "detects", "reason")


@dataclass(frozen=True)
class Entry:
    """A golden of a case, or its absence.

    Attributes:
        case: the case.
        lane: of the golden.
        path: its folder.
        head: what `golden.json` holds; None where it is missing or damaged.
        problem: why there is no head.
    """

    case: Case
    lane: str
    path: Path
    head: Mapping[str, Any] | None
    problem: str = ""

    @property
    def reason(self) -> str:
        """Why it was accepted, or why there is none."""
        return self.problem if self.head is None else str(self.head["accepted"]["reason"])

    @property
    def environment(self) -> Mapping[str, Any]:
        """What it was recorded in; empty without a golden."""
        return {} if self.head is None else environment_of(self.head["provenance"])

    @property
    def effect(self) -> Mapping[str, Any]:
        """Metric -> smallest relative change that fails."""
        return {} if self.head is None else self.head["detectable_effect"]

    def row(self) -> dict[str, Any]:
        """As `golden list --json` tells of it."""
        return {
            "case": self.case.name,
            "lane": self.lane,
            "accepted": None if self.head is None else self.head["accepted"]["time"],
            "reason": self.reason,
            "environment": self.environment or None,
            "detectable_effect": self.effect or None,
        }


def add_commands(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "list",
        help="cases, lanes, when and why last accepted",
        description="Prints a line for each golden of each case: its lane, its age, the smallest\n"
        "relative change of a leading metric that it detects, and why it was accepted; of cases\n"
        "that are named, everything.",
        epilog="examples:\n  golden list\n  golden list my_case\n  golden list --json\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_case(parser, nargs="*", help="show everything about this one; default: a line for each")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=list_cases)


def list_cases(options: argparse.Namespace) -> int:
    """Prints every case and lane, damaged goldens as such.

    Args:
        options: of the command line.

    Returns:
        The exit status, 0.

    Raises:
        CaseError: a case that does not exist.
    """
    root = find_root()
    cases = discover_cases(root)
    for name in options.case:
        if name not in cases:
            raise CaseError(unknown("case", name, cases))
    chosen = [cases[name] for name in dict.fromkeys(options.case)] or list(cases.values())
    found = list(entries(GoldenStore(root / "goldens"), chosen))
    calibrations: dict[str, list[Mapping[str, Any]]] = {}
    for entry in found:
        record = {} if entry.head is None else entry.head["calibration"]
        calibrations.setdefault(entry.lane, []).append(record)
    held = {lane: _held_out(records) for lane, records in sorted(calibrations.items())}
    if options.json:
        rows = [entry.row() for entry in found]
        shown = {"cases": rows, "held_out": {lane: h for lane, h in held.items() if h}}
        json.dump(jsonable(shown), sys.stdout, allow_nan=False)
        print()
        return 0
    width, now = shutil.get_terminal_size().columns, datetime.now(timezone.utc)
    if options.case:
        print("\n".join(_details(found, root, width, now)))
        return 0
    print("\n".join(_lines(found, width, now)))
    for lane, h in held.items():
        if h:
            text = (
                f"{lane}: {h['source']}: {h['alarms']} alarms in {h['checks']} held-out whole "
                f"checks, largest ratio {h['largest_ratio']:.2f}"
            )
            print(textwrap.fill(text, width, subsequent_indent="  "))
    return 0


def entries(store: GoldenStore, cases: Sequence[Case]) -> Iterator[Entry]:
    """Every golden of the cases, lane by lane, and an entry for each that is missing."""
    for case in cases:
        for lane in case.lanes:
            for place in store.places(lane, case.name) or [""]:
                path = store.path(lane, case.name, place)
                try:
                    yield Entry(case, lane, path, store.head(lane, case.name, place))
                except MissingGoldenError:
                    yield Entry(case, lane, path, None, "no golden yet")
                except DamagedFileError as error:
                    yield Entry(case, lane, path, None, str(error))


def _held_out(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What a lane's calibrations say of whole checks; None where none was by seeds."""
    alarms, checks, largest = whole_check_alarms(records)
    if not checks:
        return None
    sources = {str(record["source"]) for record in records if by_seeds(record)}
    return {
        "source": ", ".join(sorted(sources)),
        "alarms": alarms,
        "checks": checks,
        "largest_ratio": largest,
    }


def _lines(found: Sequence[Entry], width: int, now: datetime) -> Iterator[str]:
    """One line a golden, none longer than `width`: what does not fit is cut."""
    several = {
        (e.case.name, e.lane)
        for number, e in enumerate(found)
        if any((e.case.name, e.lane) == (o.case.name, o.lane) for o in found[:number])
    }
    rows = [_HEADER]
    for e in found:
        where = in_words(e.environment) if (e.case.name, e.lane) in several else ""
        reason = " ".join(f"{where}: {e.reason}".removeprefix(": ").split())
        rows.append((e.case.name, e.lane, _age(e, now), _leading(e.case, e.effect), reason))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER) - 1)]
    for row in rows:
        cells = [c.ljust(w) for c, w in zip(row, widths, strict=False)]
        line = "  ".join([*cells, row[-1]]).rstrip()
        yield line if len(line) <= width else f"{line[: width - 1]}…"


def _leading(case: Case, effect: Mapping[str, Any]) -> str:
    """The effect of a golden's line: the case's first leading metric that is known, or any."""
    led = [m for pattern in case.leading for m in sorted(effect) if fnmatchcase(m, pattern)]
    known = [*led, *sorted(metric for metric in effect if "/" not in metric), *sorted(effect)]
    metric = next(iter(known), None)
    return "-" if metric is None else _effect(metric, effect[metric])


def _effect(metric: str, value: Any) -> str:
    return f"{metric} {float(value):.1e}"


def _age(entry: Entry, now: datetime) -> str:
    """How long ago a golden was accepted, in one unit; a dash where it is not known."""
    try:
        seconds = (now - datetime.fromisoformat(entry.row()["accepted"])).total_seconds()
    except (TypeError, ValueError):
        return "-"
    for size, unit in ((86400, "d"), (3600, "h")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds) // 60:.0f} min"


def _details(found: Sequence[Entry], root: Path, width: int, now: datetime) -> Iterator[str]:
    case = None
    for entry in found:
        if entry.case is not case:
            if case is not None:
                yield ""
            case = entry.case
            yield from textwrap.wrap(f"{case.name}: {case.description}", width)
        yield ""
        facts = dict(_facts(entry, root, now))
        indent = max(len(name) for name in facts) + 4
        for name, text in facts.items():
            lines = textwrap.wrap(text, max(20, width - indent), break_on_hyphens=False) or [""]
            yield f"  {name.ljust(indent - 2)}{lines[0]}"
            yield from (f"{' ' * indent}{line}" for line in lines[1:])


def _facts(entry: Entry, root: Path, now: datetime) -> Iterator[tuple[str, str]]:
    """What is known of a golden, as labelled lines."""
    yield "lane", entry.lane
    yield "golden", str(entry.path.relative_to(root))
    head = entry.head
    if head is None:
        yield "problem", entry.problem
        return
    accepted = head["accepted"]
    when = f"{accepted['time']}, {_age(entry, now)} ago"
    yield "accepted", f"{when}, by {accepted['author']}" if accepted.get("author") else when
    yield "reason", entry.reason
    yield "environment", in_words(entry.environment) or str(entry.environment.get("device", "-"))
    yield "source", f"commit {head['provenance'].get('commit') or 'unknown'}"
    effects = ", ".join(_effect(metric, e) for metric, e in sorted(entry.effect.items()))
    yield "detects", effects or "nothing but what differs in a bit: never calibrated"
    calibration = head["calibration"]
    if calibration:
        machines = ", ".join(str(m.get("machine")) for m in calibration.get("calibrated_on", ()))
        source = calibration.get("source", "unknown")
        yield "calibrated", f"{source}, on {machines}" if machines else str(source)
    canaries = head.get(KEY, {}).get("faults", {})
    yield "canaries", ", ".join(sorted(canaries)) or "none"
