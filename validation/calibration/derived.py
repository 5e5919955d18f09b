"""Whether a golden's tolerances follow from the noise that is stored with them, and from reruns.

Tolerances are not trusted: every check and `golden health` work them out again from the stored
noise, by the rule of the code that judges (factor, floor, look-ahead), the noise from the stored
lines of the reruns, and look for the audit file that names all of it by digest.

Two older kinds of calibration have less stored. Those by four times the noise lack the reruns'
lines and grains: a golden's own notes have its grain, which those of its reruns repeat closely.
The oldest have a factor of their own and another floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from pathlib import Path
from typing import Annotated

import msgspec

from validation.calibration.noise import (
    EPSILON,
    FACTOR,
    Noise,
    floor_of,
    largest_so_far,
    tolerances_from,
)
from validation.compare import Tolerances
from validation.files import DamagedFileError, jsonable
from validation.goldens.audit_log import AuditLog
from validation.goldens.calibrated import RERUNS, calibration_on_file
from validation.goldens.golden import Golden
from validation.goldens.layout import HEAD
from validation.running.notes import Grains, grains_of
from validation.schema import Count, Form, Number, Size, Text, parse

# The logarithm in a floor may differ by an ulp between C libraries.
_SAME = 1e-9
# A grain of a rerun over that of its golden, which differ by some 1e-5.
_GRAIN_OF_RERUN = 1.001
# No sum has more terms; a floor never takes more than this from a golden's file.
_MOST_TERMS = 2**53
# Floors of the oldest calibrations.
_OLDEST_FLOOR, _OLDEST_UPDATE_FLOOR = 1e-6, 512 * EPSILON
_LINE = Context(prec=3, rounding=ROUND_CEILING)


class _Machine(Form, frozen=True):
    machine: str
    runs: Count
    largest_ratio: Number


class _Rerun(Form, frozen=True):
    name: Text
    machine: str
    trace: str
    noise: list[Size]


class Stored(Form, frozen=True, kw_only=True):
    """What a calibration stores with a golden.

    The first fields are of every version; those after `grains` of the oldest alone.
    """

    time: str = ""
    runs: Count
    variants: tuple[str, ...] = ()
    power: Size = 0.0
    noise: dict[str, dict[int, Size]]
    source: str = ""
    source_digest: str | None = None
    factor: Size | None = None
    largest_sum: Annotated[int, msgspec.Meta(ge=0, le=_MOST_TERMS)] = 0
    floor: Size = 0.0
    held_out: tuple[Number, ...] = ()
    calibrated_on: tuple[_Machine, ...] = ()
    reruns: Annotated[list[_Rerun], msgspec.Meta(min_length=1)] | None = None
    grains: dict[str, dict[int, Size]] | None = None
    safety: Annotated[float, msgspec.Meta(ge=4.0, le=16.0)] | None = None
    classes: Count = 0
    false_alarm_bound: Number = 0.0


class UnderivedError(DamagedFileError):
    """Tolerances that do not follow from what was measured; the golden's path comes first."""


@dataclass(frozen=True)
class Problem:
    """Why the tolerances of a golden do not count.

    Attributes:
        record_class: the class that it is about; empty for the whole golden.
        text: what is wrong.
    """

    record_class: str
    text: str


# --- the stored form of noise and grains ---------------------------------------------------


def by_text(values: Noise | Grains, tolerances: Tolerances) -> dict[str, dict[str, float]]:
    """Class -> step -> value as JSON: of classes that have a tolerance, what is not zero."""
    return {
        name: {str(step): value for step, value in steps.items() if value}
        for name, steps in values.items()
        if name in tolerances.classes and any(steps.values())
    }


def stored(golden: Golden) -> Stored:
    """Reads what a golden's calibration stores.

    Args:
        golden: its calibration, and the tolerances that this is of.

    Returns:
        The calibration.

    Raises:
        DamagedFileError: it is malformed, or has noise of a class or step without a tolerance.
    """
    place = Path(f"{golden.lane}/{golden.case}")
    # A calibration in memory has tuples and numbers as keys, one from a file has not.
    told: Stored = parse(jsonable(golden.calibration), Stored, place)
    for name, steps in told.noise.items():
        if not steps.keys() <= golden.tolerances.classes.get(name, {}).keys():
            raise DamagedFileError(f"{place}: noise of {name} at steps without a tolerance")
    size = sum(map(len, golden.tolerances.classes.values()))
    if any(len(rerun.noise) != size for rerun in told.reruns or ()):
        raise DamagedFileError(f"{place}: expected a line of {size} numbers for each rerun")
    return told


def stored_noise(golden: Golden) -> Noise:
    """Reads the noise of a golden's calibration.

    Args:
        golden: its calibration, and its tolerances.

    Returns:
        Noise of every class and step that has a tolerance.

    Raises:
        DamagedFileError: see `stored`.
    """
    return _everywhere(stored(golden).noise, golden.tolerances)


def _everywhere(noise: Noise, tolerances: Tolerances) -> Noise:
    return {
        name: {step: noise.get(name, {}).get(step, 0.0) for step in steps}
        for name, steps in tolerances.classes.items()
    }


def line_of(noise: Noise, tolerances: Tolerances) -> list[float]:
    """The line of a rerun: its noise by class and step, in their order, in three digits, up."""
    return [
        rounded_up(noise.get(name, {}).get(step, 0.0))
        for name in sorted(tolerances.classes)
        for step in sorted(tolerances.classes[name])
    ]


def noise_of_line(line: Sequence[float], tolerances: Tolerances) -> Noise:
    """The noise that a line tells of."""
    values = iter(line)
    return {
        name: {step: next(values) for step in sorted(tolerances.classes[name])}
        for name in sorted(tolerances.classes)
    }


def rounded_up(value: float) -> float:
    """The next number of three digits; such a number itself."""
    return float(_LINE.create_decimal(repr(value)))


# --- what follows ----------------------------------------------------------------------------


def refuse_underived(golden: Golden, log: AuditLog) -> None:
    """Refuses a golden whose tolerances do not follow from its calibration.

    Args:
        golden: of a store.
        log: of that store.

    Raises:
        UnderivedError: naming the golden, the class, what is stored, what follows, and what to do.
    """
    found = problems_of(golden, log)
    if not found:
        return
    path = log.goldens / golden.lane / golden.case / golden.place / HEAD
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    raise UnderivedError(f"{path}: {found[0].text}{more}; {what_to_do(golden)}")


def what_to_do(golden: Golden) -> str:
    """How to get tolerances that count."""
    if before_audit(golden) and not unfounded(golden):
        return (
            "if they may stay as they are, `golden calibrate "
            f"{golden.case} --lane {golden.lane} --adopt --reason TEXT`"
        )
    return (
        "restore it from git, or measure again with "
        f"`golden calibrate {golden.case} --lane {golden.lane} --reason TEXT`"
    )


def problems_of(golden: Golden, log: AuditLog) -> list[Problem]:
    """Works a golden's tolerances out again, and looks for the audit file that names them.

    Args:
        golden: of the log's store.
        log: the audit files.

    Returns:
        Why the tolerances do not count; empty where they follow, or where there are none.
    """
    found = unfounded(golden)
    if found or not golden.calibration or calibration_on_file(log, golden) is not None:
        return found
    if before_audit(golden):
        return [Problem("", "was calibrated before there were audit files, and none tells of it")]
    text = (
        "no intact file under goldens/audit names the digests of its tolerances and of what is "
        "stored with them: one of them was edited"
    )
    return [Problem("", text)]


def unfounded(golden: Golden) -> list[Problem]:
    """What of a golden's tolerances does not follow from what is stored with them."""
    if not golden.calibration:
        if not golden.tolerances.classes:
            return []
        return [Problem("", "has tolerances, and no calibration that they could follow from")]
    try:
        told = stored(golden)
        return [*_reruns(golden, told), *_derived(golden, told)]
    except DamagedFileError as error:
        return [Problem("", f"its calibration cannot be read: {error}")]


def without_reruns(golden: Golden) -> bool:
    """Whether a golden was calibrated before reruns were stored."""
    return bool(golden.calibration) and RERUNS not in golden.calibration


def before_audit(golden: Golden) -> bool:
    """Whether a golden was calibrated before calibrations left audit files."""
    return "safety" in golden.calibration and "factor" not in golden.calibration


def _derived(golden: Golden, told: Stored) -> list[Problem]:
    """Classes whose tolerance is another than the one that follows."""
    least, most, how = _rule(golden, told)
    found = []
    for name, steps in sorted(golden.tolerances.classes.items()):
        low, high = least.classes[name], most.classes[name]
        wrong = [
            step
            for step, value in sorted(steps.items())
            if not low[step] * (1 - _SAME) <= value <= high[step] * (1 + _SAME)
        ]
        if wrong:
            step = max(wrong, key=lambda s: abs(steps[s] - high[s]))
            found.append(
                Problem(
                    name,
                    f"the tolerance of {name} at step {step} is {steps[step]:.6g}, and "
                    f"{high[step]:.6g} follows from the noise stored with it ({how})",
                )
            )
    return found


def _rule(golden: Golden, told: Stored) -> tuple[Tolerances, Tolerances, str]:
    """The least and the largest tolerances that a calibration's own kind of rule gives, in words.

    Raises:
        DamagedFileError: the calibration is of no rule that was ever in force.
    """
    place, noise = f"{golden.lane}/{golden.case}", _everywhere(told.noise, golden.tolerances)
    if told.safety is not None and told.factor is None:
        both = _oldest(noise, told.safety)
        return both, both, f"{told.safety:g} times, of an older calibration"
    if told.factor != FACTOR:
        raise DamagedFileError(f"{place}: factor: {told.factor}, the rule has {FACTOR:g}")
    floor = floor_of(told.largest_sum)
    if not math.isclose(told.floor, floor, rel_tol=_SAME):
        raise DamagedFileError(
            f"{place}: floor: {told.floor!r}, {floor!r} follows from sums of {told.largest_sum} "
            "terms"
        )
    how = f"{FACTOR:g} times, at least {floor:.3g} and a grain"
    if told.reruns is not None:
        both = tolerances_from(noise, floor, told.grains)
        return both, both, how
    grains = grains_of([golden.trace]) if told.grains is None else told.grains
    least, most = (
        tolerances_from(noise, floor, _scaled(grains, factor))
        for factor in (1.0 / _GRAIN_OF_RERUN, _GRAIN_OF_RERUN)
    )
    return least, most, how


def _oldest(noise: Noise, factor: float) -> Tolerances:
    """The rule of the oldest calibrations, whose factor was fitted to the reruns' spread."""
    return Tolerances(
        {
            name: {
                step: max(
                    _OLDEST_UPDATE_FLOOR if name.startswith("optimizer:") else _OLDEST_FLOOR,
                    factor * largest_so_far(steps, step),
                )
                for step in steps
            }
            for name, steps in noise.items()
        }
    )


def _scaled(grains: Grains, factor: float) -> Grains:
    return {
        name: {step: factor * value for step, value in steps.items()}
        for name, steps in grains.items()
    }


def _reruns(golden: Golden, told: Stored) -> list[Problem]:
    """Where the stored noise is not the largest of the reruns' lines."""
    if told.reruns is None:
        return []
    lines = [rerun.noise for rerun in told.reruns]
    largest = noise_of_line([max(values) for values in zip(*lines, strict=True)], golden.tolerances)
    found = []
    for name, steps in sorted(_everywhere(told.noise, golden.tolerances).items()):
        for step, value in steps.items():
            if rounded_up(value) != largest[name][step]:
                found.append(
                    Problem(
                        name,
                        f"the noise of {name} at step {step} is {value:.6g}, and the largest of "
                        f"its {len(lines)} reruns {largest[name][step]:.6g}",
                    )
                )
                break
    return found
