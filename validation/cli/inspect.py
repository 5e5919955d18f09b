"""`golden list`, `golden show` and `golden diff`: reading goldens, changing nothing."""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from validation.cases import CaseError, discover_cases
from validation.cli.common import add_lane, chosen_lane
from validation.compare import compare
from validation.files import DamagedFileError
from validation.goldens import Golden, GoldenStore, MissingGoldenError
from validation.goldens.acceptance import RefusedError
from validation.goldens.changes import changes
from validation.goldens.environments import in_words
from validation.goldens.merge import describe_head
from validation.noise import by_seeds, whole_check_alarms
from validation.source import RepositoryError, find_root, git
from validation.trace import Trace, load_trace
from validation.verdict import jsonable


def add_commands(commands: Any) -> None:
    """Adds the commands to the parser."""
    parser = commands.add_parser(
        "list",
        help="cases, lanes, when and why last accepted",
        description="Every case with the golden of each of its lanes.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=list_cases)

    parser = commands.add_parser(
        "show",
        help="one golden as text",
        description="Prints a golden.json, or a trace folder, as text: provenance, tolerances at "
        "their first step, curves.",
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.set_defaults(func=show)

    parser = commands.add_parser(
        "diff",
        help="two traces of a case as a person reads them",
        description="Compares two traces of a case beyond their tolerances. A and B are git "
        "revisions, run folders or trace folders; without them the committed golden (HEAD) is "
        "compared with the one in the working tree. Of goldens of several environments, A is the\n"
        "first's, or what --environment says, and B the nearest to it. Exits 1 when they differ.",
        epilog="examples:\n  golden diff tiny_moe\n  golden diff tiny_moe HEAD~3\n"
        "  golden diff tiny_moe HEAD runs/20260101T000000-cpu-0123456789ab\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("case", metavar="CASE")
    parser.add_argument("a", nargs="?", metavar="A", help="default: HEAD")
    parser.add_argument("b", nargs="?", metavar="B", help="default: the working tree")
    add_lane(parser)
    parser.add_argument(
        "--environment",
        default="",
        metavar="FOLDER",
        help="of the golden, as its folder inside the case's is named; default: the first one's",
    )
    parser.set_defaults(func=diff)


def list_cases(options: argparse.Namespace) -> int:
    """Prints every case and lane; returns 0, damaged goldens shown as such."""
    root = find_root()
    store = GoldenStore(root / "goldens")
    rows: list[dict[str, Any]] = []
    for case in discover_cases(root).values():
        for lane in case.lanes:
            places = store.places(lane, case.name) or [""]
            rows += [_row(store, lane, case.name, place) for place in places]
    calibrations: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        calibrations.setdefault(row["lane"], []).append(row.pop("calibration"))
    held = {lane: _held_out(records) for lane, records in sorted(calibrations.items())}
    if options.json:
        found = {"cases": rows, "held_out": {lane: h for lane, h in held.items() if h}}
        json.dump(jsonable(found), sys.stdout, allow_nan=False)
        print()
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("case", "lane", "environment", "accepted", "detects", "reason"):
        table.add_column(name, overflow="fold")
    for row in rows:
        effect = row["detectable_effect"] or {}
        detects = ", ".join(f"{m} {e:.1e}" for m, e in sorted(effect.items()) if "/" not in m)
        where = in_words(row["environment"] or {})
        columns = (where, row["accepted"], detects)
        table.add_row(row["case"], row["lane"], *(c or "-" for c in columns), row["reason"])
    Console(soft_wrap=True).print(table)
    for lane, h in held.items():
        if h:
            print(
                f"{lane}: {h['source']}: {h['alarms']} alarms in {h['checks']} held-out whole "
                f"checks, largest ratio {h['largest_ratio']:.2f}"
            )
    return 0


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


def _row(store: GoldenStore, lane: str, case: str, place: str) -> dict[str, Any]:
    """One golden as `golden list` tells of it, damaged or missing ones as such."""
    row: dict[str, Any] = {
        "case": case,
        "lane": lane,
        "accepted": None,
        "reason": None,
        "environment": None,
        "detectable_effect": None,
        "calibration": {},
    }
    try:
        head = store.head(lane, case, place)
        row["accepted"] = head["accepted"]["time"]
        row["reason"] = head["accepted"]["reason"]
        row["environment"] = head["provenance"].get("environment")
        row["detectable_effect"] = head["detectable_effect"] or None
        row["calibration"] = head["calibration"]
    except MissingGoldenError:
        row["reason"] = "no golden yet"
    except DamagedFileError as error:
        row["reason"] = str(error)
    return row


def show(options: argparse.Namespace) -> int:
    """Prints a golden or a trace as text; returns 0."""
    path: Path = options.file
    if path.is_dir() and (path / "trace.json").exists():
        trace, lines = load_trace(path), []
    elif path.is_file() and "goldens" not in [p.name for p in path.parents]:
        print("\n".join(describe_head(path)))  # git's textconv gives a file of no folder
        return 0
    else:
        folder = path if path.is_dir() else path.parent
        store = next(p for p in folder.resolve().parents if p.name == "goldens")
        golden = GoldenStore(store).load(*folder.resolve().relative_to(store).parts)
        trace = golden.trace
        lines = [f"accepted: {k}: {v}" for k, v in golden.accepted.items()]
        lines += [f"calibration: {k}: {v}" for k, v in golden.calibration.items() if k != "noise"]
        lines += [f"detects: {k}: {v!r}" for k, v in golden.detectable_effect.items()]
        lines += [
            f"canary: {name}: caught at {p.place} in {p.steps} steps, margin {p.margin!r}"
            for name, p in golden.canaries.proofs.items()
        ]
    print("\n".join([f"case: {trace.case}", *lines, *_described(trace)]))
    return 0


def _described(trace: Trace) -> Iterator[str]:
    for name, value in sorted(trace.provenance.items()):
        yield f"{name}: {json.dumps(jsonable(value), sort_keys=True)}"
    for metric, series in trace.curves.items():
        values = ", ".join(f"{step}: {value!r}" for step, value in series.items())
        yield f"curve {metric}: {values}"
    for name, rows in trace.tables.items():
        yield f"table {name}: {json.dumps(rows)}"
    for event in trace.events:
        key = event.key
        place = f"step {key.step}.{key.micro_batch} {key.phase} {key.module} {key.tensor}"
        rank = f" rank {key.rank}" if key.rank else ""
        value = event.value
        text = f"{value.digest} norm {value.norm!r}" if event.floating else json.dumps(value)
        yield f"event {place}{rank}: {text}"


def diff(options: argparse.Namespace) -> int:
    """Prints what differs; returns 1 when anything does."""
    root = find_root()
    if options.case not in discover_cases(root):
        raise CaseError(f"there is no case {options.case!r}")
    lane = chosen_lane(options)

    def chosen(store: GoldenStore) -> Golden:
        return store.load(lane, options.case, options.environment)

    one = _load(root, lane, options.case, options.a or "HEAD", chosen)

    def nearest(store: GoldenStore) -> Golden:
        return store.nearest(lane, options.case, one.environment)

    other = _load(root, lane, options.case, options.b, nearest)
    comparison = compare(one.trace, other.trace, one.tolerances)
    lines = [change.describe() for change in changes(comparison)]
    lines += _provenance_changes(one.trace, other.trace)
    if one.tolerances != other.tolerances and other.accepted:
        lines.append("tolerances differ")
    print(
        f"{comparison.compared} records compared, {comparison.identical} bit-identical, "
        f"{len(comparison.divergences)} beyond tolerance"
    )
    print("\n".join(lines) if lines else "no difference")
    same = comparison.identical == comparison.compared and not comparison.divergences
    return 0 if same and not lines else 1


def _provenance_changes(one: Trace, other: Trace) -> list[str]:
    lines = []
    before, after = (t.provenance.get("environment", {}) for t in (one, other))
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            lines.append(f"environment {name}: {before.get(name)} -> {after.get(name)}")
    return lines


def _load(
    root: Path, lane: str, case: str, name: str | None, choose: Callable[[GoldenStore], Golden]
) -> Golden:
    """A golden of the working tree (None) or a revision, as chosen, or the trace of a run."""
    if name is None:
        return choose(GoldenStore(root / "goldens"))
    folder = Path(name)
    for candidate in (folder, folder / "traces" / case):
        if (candidate / "trace.json").exists():
            trace = load_trace(candidate)
            if trace.case != case:
                raise RefusedError(f"{candidate}: is a trace of {trace.case}, not of {case}")
            return Golden(lane=lane, trace=trace, case_digest="", accepted={})
    with _checked_out_goldens(root, name, lane, case) as goldens:
        return choose(GoldenStore(goldens))


@contextmanager
def _checked_out_goldens(root: Path, revision: str, lane: str, case: str) -> Iterator[Path]:
    """The goldens of a revision in a temporary folder."""
    import subprocess

    prefix = f"goldens/{lane}/{case}"
    try:
        commit = git(root, "rev-parse", "--verify", f"{revision}^{{commit}}").strip()
    except RepositoryError as error:
        raise RefusedError(f"{revision}: neither a run folder nor a git revision") from error
    done = subprocess.run(
        ["git", "-C", str(root), "archive", commit, prefix], capture_output=True, check=False
    )
    if done.returncode:
        raise MissingGoldenError(f"{revision}: has no {prefix}")
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder) / "goldens"
