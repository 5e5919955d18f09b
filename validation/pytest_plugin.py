"""pytest plugin: golden cases as test items, and one-line goldens for unit tests.

    pytest --golden                 # every case of this machine's lane is one item
    pytest --golden -m golden -n 2  # only the cases, two at a time
    pytest --golden --golden-case loss_dense --golden-lane cpu --golden-exact

The fixtures `token_snapshot`, `table_snapshot` and `array_snapshot` hold small goldens beside a
test under syrupy's update policy; see `validation.snapshots`.
"""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from syrupy.extensions.base import AbstractSyrupyExtension

    from validation.snapshots import GoldenAssertion


def _assertion(
    request: pytest.FixtureRequest, extension: "type[AbstractSyrupyExtension]"
) -> "GoldenAssertion":
    from syrupy.location import PyTestLocation

    from validation.snapshots import GoldenAssertion

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
    from validation.snapshots import TokenSnapshotExtension

    return _assertion(request, TokenSnapshotExtension)


@pytest.fixture
def table_snapshot(request: pytest.FixtureRequest) -> "GoldenAssertion":
    """A golden discrete table: ``assert table_snapshot == mask``."""
    from validation.snapshots import TableSnapshotExtension

    return _assertion(request, TableSnapshotExtension)


@pytest.fixture
def array_snapshot(request: pytest.FixtureRequest) -> "GoldenAssertion":
    """A golden array: ``assert array_snapshot(rtol=1e-6) == values``."""
    from validation.snapshots import ArraySnapshotExtension

    return _assertion(request, ArraySnapshotExtension)
