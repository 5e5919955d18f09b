"""Runs the cases of a lane, each measured, and puts together what they execute.

A case runs as in a check: in forks of one warm parent, with its processes and settings. coverage.py
looks on in each process; it moves no number, since it neither computes nor draws random numbers.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from validation.cases import Case, Gated
from validation.coverage.document import CaseCoverage, Measured
from validation.coverage.fields import never_varied
from validation.coverage.files import GatedFiles
from validation.goldens.acceptance import RefusedError
from validation.running.execution import RunError, RunOptions, close_parents, run_case
from validation.running.instruments import instrumented
from validation.running.threads import threads_of


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        root: the checkout.
        lane: where the cases run.
        cases: that are measured.
        every_case: of the lane: their fields are looked at.
        skipped: case -> why it cannot run here.
        files: whose lines count.
        gated: what the repository says of itself.
        jobs: cases at a time.
        environment: variables that share the cores among them.
        log: receives what the runs print.
        tell: told what happens.
    """

    root: Path
    lane: str
    cases: Sequence[Case]
    every_case: Sequence[Case]
    skipped: Mapping[str, str]
    files: GatedFiles
    gated: Gated | None
    jobs: int
    environment: Mapping[str, str]
    log: Path
    tell: Callable[[str], None]


def refuse_without_coverage() -> None:
    """Refuses to start where coverage.py is not installed.

    Raises:
        RefusedError: with the command that installs it.
    """
    if importlib.util.find_spec("coverage") is None:
        raise RefusedError(
            "coverage.py is not installed: pip install 'vpmoe-validation[coverage]', in the "
            "environment that the cases run in"
        )


def measure(plan: Plan) -> Measured:
    """Runs every case and says what they execute.

    Args:
        plan: which cases are run, on which files, and how.

    Returns:
        The measurement; its provenance has the versions of Python and coverage.py only.

    Raises:
        RefusedError: a case left no trace: what it would have run is not known; or a gated file
            has changed meanwhile.
        CaseError: the repository's fields are declared wrongly.
    """
    from validation.coverage.merge import executed, merged  # needs coverage.py

    defaults = never_varied(plan.gated, plan.every_case)
    before = _contents(plan)
    with tempfile.TemporaryDirectory(prefix="golden-coverage-") as folder:
        seconds = _run_all(plan, Path(folder))
        if _contents(plan) != before:
            raise RefusedError(
                "a gated file has changed while the cases ran: leave the tree alone, and measure "
                "again"
            )
        arcs = {c.name: executed(Path(folder) / c.name, plan.files, plan.root) for c in plan.cases}
    files, counts = merged(plan.root, plan.files, arcs)
    lines = [by for file in files.values() for by in file.lines.values()]
    cases = {
        case.name: CaseCoverage(
            case.digest,
            seconds[case.name],
            sum(case.name in by for by in lines),
            sum(by == {case.name} for by in lines),
            counts[case.name].branches,
            counts[case.name].functions,
        )
        for case in plan.cases
    }
    provenance = {"python": platform.python_version(), "coverage": _version()}
    return Measured(
        lane=plan.lane,
        files=files,
        cases=cases,
        skipped=plan.skipped,
        omitted=plan.files.omitted,
        defaults=defaults,
        provenance=provenance,
    )


def _run_all(plan: Plan, folder: Path) -> dict[str, float]:
    """Runs the cases; returns how long each took."""
    from validation.running import measured  # needs coverage.py

    listed = folder / "files.json"
    listed.write_text(json.dumps([str(plan.root / name) for name in plan.files.names]))
    look = instrumented(Path(measured.__file__), **{measured.FILES: str(listed)})

    def run(case: Case) -> float:
        place = folder / case.name
        place.mkdir()
        plan.tell(f"{case.name}: running")
        began = time.monotonic()
        log = plan.log.with_name(f"log-{case.name}.txt")
        environment = {**threads_of(case, plan.environment), **look}
        options = RunOptions(lane=plan.lane, environment=environment, coverage=place)
        try:
            run_case(case, options, plan.root, log)
        except RunError as error:
            raise RefusedError(f"case {case.name}: {error}") from error
        took = time.monotonic() - began
        plan.tell(f"{case.name}: measured in {took:.1f} s")
        return took

    with ThreadPoolExecutor(plan.jobs) as pool:
        try:
            return dict(zip((c.name for c in plan.cases), pool.map(run, plan.cases), strict=True))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            close_parents()  # so that the runs end now
            raise


def _contents(plan: Plan) -> list[bytes]:
    return [(plan.root / name).read_bytes() for name in plan.files.names]


def _version() -> str:
    import coverage

    return coverage.__version__
