"""`golden diff`: two traces of a case, as a person reads them."""

from __future__ import annotations

import argparse
import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from validation.cases import Case, CaseError, discover_cases
from validation.cli.common import add_case, add_lane, chosen_lane
from validation.cli.suggest import unknown
from validation.compare import Comparison, compare, compare_invariant
from validation.compare.tolerance import EXACT, Tolerances
from validation.gate.nearness import counted
from validation.goldens import GoldenStore, MissingGoldenError
from validation.goldens.acceptance import RefusedError
from validation.goldens.changes import changes
from validation.goldens.golden import environment_of
from validation.report.wording import clean, where
from validation.run_folder import TRACES, RunFolder
from validation.running.source import RepositoryError, find_root, git
from validation.trace import Trace, load_trace
from validation.trace.storage import HEAD


@dataclass(frozen=True)
class Revision:
    """A revision of git, whose golden is compared; without a name the working tree."""

    name: str | None


@dataclass(frozen=True)
class Run:
    """A trace that a run left, and the folder that it was found by."""

    trace: Trace
    folder: Path

    @property
    def lane(self) -> str:
        """The lane that it ran on."""
        return str(environment_of(self.trace.provenance).get("lane", "cpu"))


@dataclass(frozen=True)
class Side:
    """What is compared: its trace, its name for the reader, and its tolerances if it is a golden.

    Attributes:
        trace: the records.
        name: what it is and where it comes from.
        tolerances: of a golden; None of a run.
    """

    trace: Trace
    name: str
    tolerances: Tolerances | None


def add_commands(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "diff",
        help="two traces of a case as a person reads them",
        description="Compares two traces of a case beyond their tolerances, a summary first.\n"
        "A and B are git revisions, run folders or trace folders; a revision is compared by its\n"
        "golden. Without A and B the committed golden (HEAD) is compared with the one in the\n"
        "working tree; a revision or a run alone is compared with the working tree's golden.\n"
        "Where a case has goldens of several environments, that of a run's environment is taken;\n"
        "between two revisions it is the first one's, or the one that --environment names.\n"
        "Exits 1 when they differ.",
        epilog="examples:\n  golden diff my_case\n  golden diff my_case HEAD~3\n"
        "  golden diff my_case runs/20260101T000000-cpu-0123456789ab\n"
        "  golden diff my_case HEAD~3 runs/20260101T000000-cpu-0123456789ab\n"
        "  golden diff my_case --lane gpu --environment nvidia-h100-80gb-hbm3\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_case(parser)
    parser.add_argument("a", nargs="?", metavar="A", help="default: HEAD, or the working tree")
    parser.add_argument("b", nargs="?", metavar="B", help="default: the working tree")
    add_lane(parser)
    parser.add_argument(
        "--environment",
        default="",
        metavar="FOLDER",
        help="folder of the golden's environment, in goldens/LANE/CASE; default: the first one's",
    )
    parser.set_defaults(func=diff)


def diff(options: argparse.Namespace) -> int:
    """Prints a summary and then what differs.

    Args:
        options: of the command line.

    Returns:
        The exit status: 1 when anything differs, else 0.

    Raises:
        CaseError: no such case or lane.
        RefusedError: A or B is nothing that has a trace of the case.
    """
    root = find_root()
    cases = discover_cases(root)
    if options.case not in cases:
        raise CaseError(unknown("case", options.case, cases))
    case = cases[options.case]
    one = _found("HEAD" if options.a is None else options.a, case.name)
    other = Revision(None) if options.b is None else _found(options.b, case.name)
    if isinstance(one, Run) and options.b is None:
        one, other = other, one
    lane = _lane(options, [side for side in (one, other) if isinstance(side, Run)])
    a, b = sides(root, lane, case.name, options.environment, one, other)
    tolerances = next((t for t in (a.tolerances, b.tolerances) if t is not None), EXACT)
    comparison = compare(a.trace, b.trace, tolerances)
    lines = _environment_changes(a.trace, b.trace)
    if a.tolerances is not None and b.tolerances is not None and a.tolerances != b.tolerances:
        lines.append("tolerances differ")
    if isinstance(other, Run):
        lines += _broken_invariant(case, other)
    found = _found_changes(a, b, comparison)
    print(
        f"{case.name}, lane {lane}: {comparison.compared:,} records compared, "
        f"{comparison.identical:,} bit-identical, {len(comparison.divergences):,} beyond tolerance"
    )
    for letter, side in (("A", a), ("B", b)):
        print(f"  {letter}  {clean(side.name)}")
    print("\n".join(clean(line) for line in (*found, *lines)) or "no difference")
    if options.a is None and not (found or lines):
        print(f"of a run, too: golden diff {case.name} RUN")
    return 1 if found or lines else 0


def _found_changes(a: Side, b: Side, comparison: Comparison) -> list[str]:
    """What the records differ in, the first difference first; empty where none does."""
    what = "beyond tolerance"
    if not comparison.divergences:
        # A check may demand more than the tolerance; other bits are a difference anyhow.
        comparison, what = compare(a.trace, b.trace, exact=True), "within tolerance"
    if not comparison.divergences:
        return []
    found = [change.describe() for change in changes(comparison)]
    first = where(comparison.divergences[0])
    return [f"first difference: {first}", f"{counted(len(found), 'change')} {what}:", *found]


def _found(word: str, case: str) -> Run | Revision:
    """The run that a word names, or else the revision.

    Raises:
        RefusedError: a trace of another case.
        DamagedFileError: of a trace that is damaged.
    """
    folder = Path(word)
    for candidate in (folder, RunFolder(folder).trace(case), folder / case):
        if (candidate / HEAD).exists():
            trace = load_trace(candidate)
            if trace.case != case:
                raise RefusedError(f"{candidate}: is a trace of {trace.case}, not of {case}")
            return Run(trace, folder)
    return Revision(word)


def _lane(options: argparse.Namespace, runs: list[Run]) -> str:
    """The lane asked for, else that of the runs, else what this machine is."""
    lane = chosen_lane(options) if options.lane is not None or not runs else runs[0].lane
    for run in runs:
        if run.lane != lane:
            raise RefusedError(f"{run.folder}: was made on lane {run.lane}, not on {lane}")
    return lane


def sides(
    root: Path, lane: str, case: str, place: str, one: Run | Revision, other: Run | Revision
) -> tuple[Side, Side]:
    """Loads both sides; of goldens of several environments the fitting ones.

    Args:
        root: the repository.
        lane: of the goldens.
        case: their case.
        place: folder of the environment that the golden of a revision is of; empty: the first's.
        one: the first side.
        other: the second side; a golden of it is the nearest to the first side's.

    Returns:
        The first and the second side.

    Raises:
        MissingGoldenError: a revision has no such golden.
        DamagedFileError: a golden is damaged.
    """
    a = _side_of_run(one) if isinstance(one, Run) else None
    b = _side_of_run(other) if isinstance(other, Run) else None
    if isinstance(one, Revision):
        a = _side_of_golden(root, lane, case, one, place, b)
    if isinstance(other, Revision):
        b = _side_of_golden(root, lane, case, other, place if isinstance(one, Run) else "", a)
    assert a is not None
    assert b is not None
    return a, b


def _side_of_run(run: Run) -> Side:
    return Side(run.trace, f"the run {run.folder}", None)


def _side_of_golden(
    root: Path, lane: str, case: str, revision: Revision, place: str, beside: Side | None
) -> Side:
    """A revision's golden.

    Args:
        root: the repository.
        lane: of the golden.
        case: its case.
        revision: whose golden.
        place: folder of its environment; empty: what is nearest to `beside`.
        beside: the other side, where that is known already.
    """
    with _goldens(root, revision.name, lane, case) as folder:
        store = GoldenStore(folder)
        if place or beside is None:
            golden = store.load(lane, case, place)
        else:
            golden = store.nearest(lane, case, environment_of(beside.trace.provenance))
    origin = revision.name or "the working tree"
    accepted = f"accepted {golden.accepted['time']}: {golden.accepted['reason']}"
    return Side(golden.trace, f"the golden of {origin}, {accepted}", golden.tolerances)


def _broken_invariant(case: Case, run: Run) -> list[str]:
    """The records by which a run breaks its case's invariant."""
    if case.invariant is None:
        return []
    reference = RunFolder(run.folder).trace(case.invariant.reference)
    if not (reference / HEAD).exists():
        return []
    held = compare_invariant(case.invariant, load_trace(reference), run.trace)
    if not held.divergences:
        return []
    count = counted(len(held.divergences), "record")
    return [
        f"{count} not those of {case.invariant.reference} in this run, as the invariant demands:",
        *(change.describe() for change in changes(held)),
    ]


def _environment_changes(one: Trace, other: Trace) -> list[str]:
    before, after = (environment_of(t.provenance) for t in (one, other))
    return [
        f"environment {name}: {before.get(name)} -> {after.get(name)}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


@contextmanager
def _goldens(root: Path, revision: str | None, lane: str, case: str) -> Iterator[Path]:
    """A folder with the goldens of a revision, or of the working tree (None)."""
    if revision is None:
        yield root / "goldens"
        return
    prefix = f"goldens/{lane}/{case}"
    try:
        wanted = f"{revision}^{{commit}}"
        commit = git(root, "rev-parse", "--verify", "--end-of-options", wanted).strip()
    except RepositoryError as error:
        raise RefusedError(_no_revision(revision, case)) from error
    done = subprocess.run(
        ["git", "-C", str(root), "archive", commit, prefix], capture_output=True, check=False
    )
    if done.returncode:
        raise MissingGoldenError(f"{revision}: has no {prefix}")
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder) / "goldens"


def _no_revision(word: str, case: str) -> str:
    """What is wrong with a word that is neither a run with a trace of the case nor a revision."""
    folder = Path(word)
    if not folder.exists():
        return f"{word}: neither a run folder nor a git revision"
    has = sorted(head.parent.name for head in folder.glob(f"{TRACES}/*/{HEAD}"))
    if has:
        return f"{word}: has no trace of {case}; it has {', '.join(has)}"
    return f"{word}: no trace in it; give a folder that `golden check` left, or a git revision"
