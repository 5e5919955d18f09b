"""What Megatron-LM's functional tests and torchtitan's loss comparison would say of a loss curve.

Written anew from what their public sources do, not copied:

Megatron-LM, commit d98e8a64ddf3 (2026-08-22), `tests/functional_tests/python_test_utils/`.
  `common.py`: scalars come from TensorBoard (fp32), rounded to 5 decimals; functional tests sample
  every step. The *deterministic* test wants every sampled step equal; the *approximate* one wants
  each within 5 % of the golden and lets max(n // 100, 1), at most 50, of n steps fail. A step that
  the run lacks counts as infinite. A test runs both, or, where the recipe allows nondeterministic
  algorithms (74 of the 346 that set it), the approximate one alone.
  `test_pretraining_regular_pipeline.py`: of the metrics `lm loss` and `num-zeros` by default. Our
  traces have no `num-zeros` and no device memory, so that only `lm loss` is judged here.
  *Before #4238* (parent of 4e85d74ae9b4, 2026-04-14) a curve passed when as many steps were right
  as now may be wrong, in both tests, out of end_step / step_interval + 1 steps.

torchtitan, commit 02e5389e9760, `scripts/loss_compare.py --assert-equal --import-result`: losses
  are read from the log, which prints 5 decimals (`loss: {...:8.5f}`); both runs must have the same
  steps and at each the same number. A loss that is no number is not read: its step is missing.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Losses = Mapping[int, float]

DECIMALS = 5
_RELATIVE = 0.05
_MOST_FAILING = 50


@dataclass(frozen=True)
class Rule:
    """A rule of comparison of a peer.

    Attributes:
        name: as tables show it.
        accepts: whether a run's losses, the second argument, pass for the golden's.
    """

    name: str
    accepts: Callable[[Losses, Losses], bool]


def as_megatron_records(losses: Losses) -> dict[int, float]:
    """Losses as TensorBoard keeps them, rounded as Megatron's extraction does."""
    return {step: round(_fp32(value), DECIMALS) for step, value in sorted(losses.items())}


def as_torchtitan_prints(losses: Losses) -> dict[int, float]:
    """Losses as they are read back from the log; one that is no number is not found there."""
    return {
        step: float(f"{value:.{DECIMALS}f}")
        for step, value in sorted(losses.items())
        if math.isfinite(value)
    }


def megatron_accepts(golden: Losses, actual: Losses, *, approximate: bool) -> bool:
    """Megatron's rule of today.

    Args:
        golden: losses of the golden.
        actual: of the run.
        approximate: the recipe allows nondeterministic algorithms.
    """
    expected, measured = as_megatron_records(golden), as_megatron_records(actual)
    if not expected or not _extracted(measured):
        return False
    if not approximate and any(measured.get(step) != value for step, value in expected.items()):
        return False
    near, steps = _near(expected, measured, _RELATIVE), len(expected)
    return near == steps if steps == 1 else near >= steps - _may_fail(steps)


def megatron_before_4238_accepts(golden: Losses, actual: Losses, *, approximate: bool) -> bool:
    """Megatron's rule until April 2026: the share that may fail was the share that had to pass.

    Args:
        golden: losses of the golden.
        actual: of the run.
        approximate: the recipe allows nondeterministic algorithms.
    """
    expected, measured = as_megatron_records(golden), as_megatron_records(actual)
    shared = {step: value for step, value in measured.items() if step in expected}
    # Arrays of other lengths cannot be compared: the test ends with an error.
    if len(shared) != len(expected) or not _extracted(measured):
        return False
    interval = min((b - a for a, b in zip([*expected], [*expected][1:], strict=False)), default=1)
    steps = max(expected) / interval + 1
    needed = _may_fail(steps) / steps
    tolerances = [_RELATIVE] if approximate else [0.0, _RELATIVE]
    return all(_near(expected, measured, t) / len(expected) >= needed for t in tolerances)


def torchtitan_accepts(golden: Losses, actual: Losses) -> bool:
    """torchtitan's rule: the same steps, the same printed losses."""
    expected = as_torchtitan_prints(golden)
    return bool(expected) and expected == as_torchtitan_prints(actual)


RULES = (
    Rule(
        "Megatron-LM, deterministic",
        lambda golden, actual: megatron_accepts(golden, actual, approximate=False),
    ),
    Rule(
        "Megatron-LM, approximate",
        lambda golden, actual: megatron_accepts(golden, actual, approximate=True),
    ),
    Rule(
        "Megatron-LM before #4238, deterministic",
        lambda golden, actual: megatron_before_4238_accepts(golden, actual, approximate=False),
    ),
    Rule(
        "Megatron-LM before #4238, approximate",
        lambda golden, actual: megatron_before_4238_accepts(golden, actual, approximate=True),
    ),
    Rule("torchtitan, --assert-equal", torchtitan_accepts),
)


def _fp32(value: float) -> float:
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def _extracted(measured: Losses) -> bool:
    """Whether the extraction writes a file: it refuses values that are no numbers."""
    return bool(measured) and all(math.isfinite(value) for value in measured.values())


def _near(expected: Losses, measured: Losses, relative: float) -> int:
    """Steps whose loss is within a share of the golden's; a missing one never is."""
    return sum(
        abs(measured.get(step, math.inf) - value) <= relative * abs(value)
        for step, value in expected.items()
    )


def _may_fail(steps: float) -> float:
    return min(max(steps // 100, 1), _MOST_FAILING)
