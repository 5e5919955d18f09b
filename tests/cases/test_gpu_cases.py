"""What the cases of the GPU lanes declare."""

from __future__ import annotations

import pytest

from validation.calibration.calibrate import variants
from validation.cases import Case
from vpmoe.cases.gpu import CASES

TRAININGS = [case for case in CASES if case.name != "kernels"]


@pytest.mark.parametrize("case", TRAININGS, ids=lambda case: case.name)
def test_equivalents_change_rounding_and_nothing_else(case: Case) -> None:
    """All different, none of which is the case itself."""
    found = variants(case, False, 8)
    assert len(found) == (6 if case.name == "wide_fast" else 3)
    seen = [{**case.settings, **variant.settings} for variant in found]
    assert all(settings != case.settings for settings in seen)
    assert all(one not in seen[:place] for place, one in enumerate(seen))
    for variant in found:
        assert set(variant.settings) <= {"flags", "environment"}
        # The case's own flags, with others behind them or without determinism.
        kept = [flag for flag in case.settings["flags"] if flag != "--deterministic-mode"]
        given = [flag for flag in variant.settings["flags"] if flag != "--deterministic-mode"]
        assert given[: len(kept)] == kept
        assert set(given[len(kept) :: 2]) <= {"--loss-kernel"}


def test_only_named_kernels_are_without_determinism() -> None:
    """`auto` stands for other kernels there, whose modules return something else."""
    for case in TRAININGS:
        for settings in case.equivalents.values():
            if "--deterministic-mode" not in settings["flags"]:
                assert {"--attention-kernel", "--expert-kernel"} <= set(settings["flags"])
