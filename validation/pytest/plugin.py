"""pytest plugin: golden cases as test items, and one-line goldens for unit tests.

    pytest --golden                    # the tests, and every golden case of this machine's lane
    pytest --golden -m golden -n 2     # the cases alone, two at a time
    pytest --golden -m golden -k loss --golden-lane cpu --golden-exact

Beside a case's own item, `canary` plants a known bug that the gate must catch, and `unused` fails
for goldens that no case claims.  A missing golden fails its case.

The fixtures `token_snapshot`, `table_snapshot` and `array_snapshot` hold small goldens beside a
test under syrupy's update policy; see `validation.pytest.snapshots`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from syrupy.extensions.base import AbstractSyrupyExtension

    from validation.gate.plan import CheckPlan
    from validation.pytest.snapshots import GoldenAssertion
    from validation.run_folder import RunFolder

MARKER = "golden"


class GoldenFailure(Exception):  # noqa: N818 shown to the user as it is
    """A golden item did not pass; the message is what `golden explain` would print."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the plugin's options."""
    group = parser.getgroup("golden", "golden cases")
    group.addoption("--golden", action="store_true", help="run the golden cases as test items")
    group.addoption(
        "--golden-lane", metavar="LANE", help="lane of the cases (default: what this machine is)"
    )
    group.addoption("--golden-exact", action="store_true", help="require bit-identity")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of the items."""
    config.addinivalue_line("markers", f"{MARKER}: a golden case, added by --golden")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Adds the golden items, before -k and -m choose among all."""
    if session.config.option.golden:
        added = list(_golden_items(session))
        items += added
        # What the terminal counts as collected.
        report = pytest.CollectReport(MARKER, "passed", None, [*added])
        session.ihook.pytest_collectreport(report=report)


def _golden_items(session: pytest.Session) -> Iterator[pytest.Item]:
    from validation.cases import CaseError, discover_cases, discover_faults, lanes_with_cases
    from validation.config import declaration_of
    from validation.gate.plan import CheckPlan
    from validation.running.environment import default_lane, gpu_count
    from validation.running.source import RepositoryError, find_root

    option = session.config.option
    try:
        root = find_root(session.config.rootpath)
        lane = option.golden_lane or default_lane(lanes_with_cases(root), gpu_count())
        lanes = declaration_of(root).lanes
        cases, faults = discover_cases(root), discover_faults(root)
    except (CaseError, RepositoryError) as error:
        raise pytest.UsageError(f"--golden: {error}") from error
    if lane not in lanes:
        raise pytest.UsageError(f"--golden-lane {lane}: lanes are {', '.join(lanes)}")
    plan = CheckPlan(
        root=root,
        lane=lane,
        cases=[case for case in cases.values() if lane in case.lanes],
        faults=list(faults.values()),
        exact=option.golden_exact,
        command=["pytest", *map(str, session.config.invocation_params.args)],
    )
    place = f"{MARKER}/{lane}"
    parent = GoldenCollector.from_parent(session, name=place, nodeid=place)
    for case in plan.cases:
        yield CaseItem.from_parent(parent, name=case.name, plan=plan)
    yield CanaryItem.from_parent(parent, name="canary", plan=plan)
    yield UnusedItem.from_parent(parent, name="unused", plan=plan)


class GoldenCollector(pytest.Collector):
    """Parent of the golden items of a lane."""

    def collect(self) -> Iterator[pytest.Item]:
        """Returns nothing: `pytest_collection_modifyitems` adds the items."""
        return iter(())


class GoldenItem(pytest.Item):
    """An item of the lane's check."""

    def __init__(self, *, plan: "CheckPlan", **options: Any) -> None:
        super().__init__(**options)
        self.plan = plan
        self.add_marker(MARKER)

    def new_folder(self) -> "RunFolder":
        """Returns a run folder of this item's own."""
        from validation.run_folder import RunFolder

        return RunFolder.create(self.plan.root, self.plan.lane)

    def say(self, line: str) -> None:
        """Keeps a line for the item's report."""
        self.add_report_section("call", "golden", line)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Returns the verdict's text instead of a traceback into the harness."""
        if isinstance(excinfo.value, GoldenFailure):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style=style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Returns where the item comes from."""
        return self.plan.root / "goldens", None, f"{self.plan.lane}/{self.name}"


class CaseItem(GoldenItem):
    """One case, run and compared."""

    def runtest(self) -> None:
        """Runs the case; fails unless its verdict is PASS, skips where it cannot run."""
        from dataclasses import replace

        from validation.files import encode_json, write_atomically
        from validation.gate.check import check_case
        from validation.gate.plan import Check
        from validation.gate.verdict import CheckResult, Verdict
        from validation.progress import Lines
        from validation.report import write_reports
        from validation.report.explain import render_explanation

        (case,) = (case for case in self.plan.cases if case.name == self.name)
        plan = replace(self.plan, cases=[case])
        folder = self.new_folder()
        running = Check.begin(plan, folder, Lines(lambda line: None))
        result = check_case(case, running)
        if result.skipped_because is not None:
            folder.path.rmdir()
            pytest.skip(result.skipped_because)
        check = CheckResult(
            verdict=result.verdict,
            lane=plan.lane,
            seconds=result.seconds,
            environment=running.environment_of(case.name),
            canary=None,
            cases=[result],
        )
        write_atomically(folder.verdict, encode_json(check.to_json()))
        write_reports(check, folder.path)
        if result.verdict is not Verdict.PASS:
            raise GoldenFailure(render_explanation(folder.path))


class CanaryItem(GoldenItem):
    """A known bug, planted: the gate must see it."""

    def runtest(self) -> None:
        """Fail unless the bug is caught."""
        from validation.gate.canary import check_canary
        from validation.gate.plan import Check
        from validation.progress import Lines

        progress = Lines(self.say)
        running = Check.begin(self.plan, self.new_folder(), progress)
        known = [case.name for case in self.plan.cases]
        held = [name for name in running.store.names(self.plan.lane) if name in known]
        if not held:
            raise GoldenFailure("there is no golden that a planted bug could be compared with")
        canary, message = check_canary(running, held, progress)
        if not canary.caught:
            raise GoldenFailure(message)
        if message:
            self.say(message)


class UnusedItem(GoldenItem):
    """Goldens of the lane that no case claims."""

    def runtest(self) -> None:
        """Fail when there is one."""
        from validation.goldens import GoldenStore

        store = GoldenStore(self.plan.root / "goldens")
        known = {case.name for case in self.plan.cases}
        unused = [name for name in store.names(self.plan.lane) if name not in known]
        if unused:
            places = "\n".join(str(store.path(self.plan.lane, name)) for name in unused)
            raise GoldenFailure(
                f"goldens that no case of lane {self.plan.lane} claims, delete them:\n{places}"
            )


def _assertion(
    request: pytest.FixtureRequest, extension: "type[AbstractSyrupyExtension]"
) -> "GoldenAssertion":
    from syrupy.location import PyTestLocation

    from validation.pytest.snapshots import GoldenAssertion

    option = request.config.option
    return GoldenAssertion(
        update_snapshots=option.update_snapshots,
        update_new_snapshots_only=option.update_new_snapshots_only,
        extension_class=extension,
        test_location=PyTestLocation(request.node),
        session=request.config._syrupy,  # type: ignore[attr-defined]
    )


@pytest.fixture
def token_snapshot(request: pytest.FixtureRequest) -> "GoldenAssertion":
    """A golden sequence of token ids: ``assert token_snapshot == ids``."""
    from validation.pytest.snapshots import TokenSnapshotExtension

    return _assertion(request, TokenSnapshotExtension)


@pytest.fixture
def table_snapshot(request: pytest.FixtureRequest) -> "GoldenAssertion":
    """A golden discrete table: ``assert table_snapshot == mask``."""
    from validation.pytest.snapshots import TableSnapshotExtension

    return _assertion(request, TableSnapshotExtension)


@pytest.fixture
def array_snapshot(request: pytest.FixtureRequest) -> "GoldenAssertion":
    """A golden array.

    A test says `assert array_snapshot(rtol=1e-6) == values`.
    """
    from validation.pytest.snapshots import ArraySnapshotExtension

    return _assertion(request, ArraySnapshotExtension)
