"""`golden explain --ops CASE`: the first operation whose bits differ between two runs of a case.

Both runs are made here: of this tree and of another revision, of this tree in two settings of the
environment, or both at once. Every operation of both is logged
(`validation.diagnosis.operation_log`), and the logs are compared rank by rank.

While both do the same operations, the answer is the first that makes another result of the same
operands. Where there is none, it is the first whose operands differ: those came from outside of
torch's operations. Where the code does other operations, one of them may be harmless (a view,
another order), so that the answer is the first operation whose result the base has nowhere.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from validation.cases import Case
from validation.diagnosis import operation_log
from validation.diagnosis.base_runs import BaseRuns
from validation.files import jsonable
from validation.progress import Progress
from validation.run_folder import TRACES
from validation.running.execution import RunError, RunOptions, run_case
from validation.running.revisions import base_checkout

RESULT = "its result differs, its operands do not"
OPERANDS = "its operands differ, and come from no operation: from data, or a clock"
NEW = "the base computes this nowhere"
MISSING = "this tree computes this nowhere"
MORE = "it is one more operation than the base has"
FEWER = "the base has one more operation"


@dataclass(frozen=True)
class Operation:
    """One line of a log.

    Attributes:
        name: the overload, `aten.mm.default`.
        place: line of source; see `validation.diagnosis.operation_log`.
        called_from: line of the repository's source that led there; empty where it is the place.
        operands: hashes of what it read.
        results: hashes of what it left.
        shapes: of the results, with their types.
    """

    name: str
    place: str
    called_from: str
    operands: Sequence[str]
    results: Sequence[str]
    shapes: Sequence[str]


@dataclass(frozen=True)
class FirstOperation:
    """The first difference of a rank.

    Attributes:
        rank: whose.
        number: of the operation in its log, from 1.
        why: what differs.
        operation: this tree's; None where it has none.
        base: the base's at the same place, if that is another, or has another result.
        same: operations before it that are the same bit for bit.
        operands: places of the operands that differ, from 0.
    """

    rank: int
    number: int
    why: str
    operation: Operation | None
    base: Operation | None
    same: int
    operands: Sequence[int] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """One object."""
        return dict(jsonable(asdict(self)))


@dataclass(frozen=True)
class Search:
    """Which two runs are compared.

    Attributes:
        root: the repository.
        lane: of the runs.
        case: what runs.
        log: appended with what the runs print.
        revision: the base's; None: this tree.
        variables: of the base's environment, put over the user's.
        steps: training steps of both, if the case obeys `stop_after`; None: all.
    """

    root: Path
    lane: str
    case: Case
    log: Path
    revision: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    steps: int | None = None


def first_operation(search: Search, progress: Progress) -> tuple[FirstOperation | None, int]:
    """Runs the case twice and finds the first operation that differs.

    Args:
        search: the case, and what the two runs differ in.
        progress: told what happens.

    Returns:
        The first difference, or None, and how many operations were compared.

    Raises:
        RunError: a run left no trace.
        RepositoryError: there is no such revision.
    """
    with tempfile.TemporaryDirectory(prefix="golden-operations-") as name:
        folder = Path(name)
        progress.message(f"{search.case.name}: this tree")
        run_case(search.case, _options(search, folder / "head", {}), search.root, search.log)
        progress.message(f"{search.case.name}: the base")
        _run_base(search, folder, progress)
        found, compared = [], 0
        for rank in range(search.case.processes):
            base, head = (operation_log.log_file(folder / side, rank) for side in ("base", "head"))
            difference, same = first_difference(base, head, rank)
            compared += same
            found += [difference] if difference is not None else []
    return min(found, key=lambda difference: difference.number, default=None), compared


def _options(search: Search, folder: Path, variables: Mapping[str, str]) -> RunOptions:
    return RunOptions(
        lane=search.lane,
        settings={} if search.steps is None else {"stop_after": search.steps},
        fault=operation_log.PLANT,
        environment={**variables, operation_log.FOLDER: str(folder)},
    )


def _run_base(search: Search, folder: Path, progress: Progress) -> None:
    options = _options(search, folder / "base", search.variables)
    if search.revision is None:
        run_case(search.case, options, search.root, search.log)
        return
    with base_checkout(search.root, search.revision, "--against", search.case.needs.paths) as (
        tree,
        commit,
    ):
        name = search.revision if commit.startswith(search.revision) else commit[:12]
        base = BaseRuns(
            search.root,
            search.lane,
            tree,
            folder,
            search.log,
            name,
            progress,
            plant=operation_log.PLANT,
            environment=dict(options.environment or {}),
            settings=dict(options.settings or {}),
        )
        known = base.run([search.case], folder / TRACES)
    if search.case.name not in known:
        raise RunError(f"{name} has no case {search.case.name}")
    if base.problems[search.case.name]:
        raise RunError(f"{name}: {base.problems[search.case.name]}")


def first_difference(base: Path, head: Path, rank: int) -> tuple[FirstOperation | None, int]:
    """The first difference of two logs, or None, and how many operations are the same before it."""
    outside: FirstOperation | None = None
    same = 0
    for number, (theirs, ours) in enumerate(itertools.zip_longest(read(base), read(head)), start=1):
        if theirs is None or ours is None:
            why = MORE if theirs is None else FEWER
            return outside or FirstOperation(rank, number, why, ours, theirs, same), same
        if (theirs.name, theirs.shapes) != (ours.name, ours.shapes):
            return outside or _first_new(base, head, rank, same), same
        if theirs.operands != ours.operands:
            pairs = zip(theirs.operands, ours.operands, strict=False)
            places = [place for place, (one, other) in enumerate(pairs) if one != other]
            # Numbers of a clock, say: what they lead to is told by its operands.
            outside = outside or FirstOperation(rank, number, OPERANDS, ours, theirs, same, places)
        elif theirs.results != ours.results:
            return FirstOperation(rank, number, RESULT, ours, theirs, same), same
        elif outside is None:
            same += 1
    return outside, same


def _first_new(base: Path, head: Path, rank: int, same: int) -> FirstOperation | None:
    """The first operation of the head with a result that the base has nowhere, or the reverse."""
    for mine, others, why in ((head, base, NEW), (base, head, MISSING)):
        known = {value for operation in read(others) for value in operation.results}
        for number, operation in enumerate(read(mine), start=1):
            if number > same and not known.issuperset(operation.results):
                ours, theirs = (operation, None) if why is NEW else (None, operation)
                return FirstOperation(rank, number, why, ours, theirs, same)
    return None


def read(path: Path) -> Iterator[Operation]:
    """The operations of a log."""
    with path.open() as stream:
        for line in stream:
            yield Operation(*json.loads(line))


def described(found: FirstOperation, search: Search) -> str:
    """The difference in some lines of plain text."""
    shown = found.operation or found.base
    assert shown is not None
    where = f" on rank {found.rank}" if search.case.processes > 1 else ""
    lines = [
        f"{search.case.name}{where}: {found.same:,} operations are the same bit for bit; then "
        f"number {found.number:,} is {shown.name}: {found.why}",
        f"  at       {shown.place or 'the harness'}",
    ]
    if shown.called_from:
        lines.append(f"  called   {shown.called_from}")
    lines += [f"  operand  {place} differs" for place in found.operands]
    lines += [f"  result   {shape}" for shape in shown.shapes]
    if found.operation and found.base and found.base.place != found.operation.place:
        lines.append(f"  base at  {found.base.place or 'the harness'}")
    return "\n".join(lines)
