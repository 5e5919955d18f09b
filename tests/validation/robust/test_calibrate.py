"""Calibration measures noise: tolerances follow it, and a change of the code is none."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from validation.calibration.calibrate import (
    Variant,
    detectable_effect,
    measure,
    measure_case,
    perturbations,
    unchanged_base,
)
from validation.calibration.derived import rounded_up, unfounded
from validation.calibration.noise import (
    EPSILON,
    FACTOR,
    PERTURBED,
    ROUNDING,
    floor_of,
    held_out,
    tolerances_from,
    whole_check_alarms,
)
from validation.calibration.pooling import pool
from validation.cases import Case
from validation.compare import Tolerances, compare
from validation.goldens import Golden
from validation.goldens.acceptance import _kept_calibration
from validation.progress import Lines
from validation.trace import CurveKey, TableKey, Trace, save_trace

from .traces import random_trace, tolerances_of

ENVIRONMENT = {"lane": "cpu", "cpu_vendor": "AuthenticAMD", "cpu_family": "26", "cpu_model": "2"}
ELSEWHERE = {**ENVIRONMENT, "cpu_vendor": "GenuineIntel", "cpu_family": "6", "cpu_model": "207"}
EIGHT = [Variant(f"{ROUNDING} {n}", rounding_seed=n, source=ROUNDING) for n in range(1, 9)]


def noisy(trace: Trace, seed: int, size: float = 1e-7) -> Trace:
    """The loss moves by noise that grows with the step; nothing else moves."""
    random = Random(seed)
    loss = {
        step: value * (1 + size * 3**step * random.uniform(-1, 1))
        for step, value in trace.curves[CurveKey("lm_loss")].items()
    }
    return replace(trace, curves={**trace.curves, CurveKey("lm_loss"): loss})


def noted(trace: Trace, **notes: object) -> Trace:
    return replace(trace, provenance={**trace.provenance, "notes": notes})


quiet = Lines(lambda line: None)


def test_tolerances_grow_with_the_noise_and_quiet_classes_have_the_floor() -> None:
    trace = random_trace(1)
    seeds = iter(range(100))
    counted = {"largest_sum": 201_088, "shaken": 5}
    measured = measure(
        trace, lambda _: noted(noisy(trace, next(seeds)), arithmetic=counted), EIGHT, quiet
    )
    tolerances = measured.tolerances
    assert len(measured.lines) == len(measured.held_out) == 8
    assert tolerances.of("curve:grad_norm", 3) == measured.floor == floor_of(201_088)
    steps = [tolerances.of("curve:lm_loss", step) for step in range(1, 6)]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1] / 5
    for seed in range(1000, 1100):
        assert not compare(trace, noisy(trace, seed), tolerances).divergences
    biased = {s: v * 1.001 for s, v in trace.curves[CurveKey("lm_loss")].items()}
    moved = compare(
        trace, replace(trace, curves={**trace.curves, CurveKey("lm_loss"): biased}), tolerances
    ).divergences
    assert moved[0].step == 1


@pytest.mark.parametrize(
    ("terms", "epsilons"), [(0, 8.0), (1, 8.0), (256, 8.0), (4096, 12.0), (201_088, 17.6)]
)
def test_the_floor_grows_with_the_longest_sum(terms: int, epsilons: float) -> None:
    assert floor_of(terms) == pytest.approx(epsilons * EPSILON, rel=0.01)


def test_tolerances_are_a_multiple_of_the_largest_noise_with_a_floor_and_a_grain() -> None:
    noise = {"a": {1: 0.0, 2: 1e-9, 9: 1e-3}, "b": {1: 0.0}, "c": {1: 1e-5, 2: 2e-5}}
    grains = {"b": {1: 3e-4}, "c": {1: 3e-5, 2: 3e-6}, "never compared": {1: 1.0}}
    tolerances = tolerances_from(noise, 1e-6, grains)
    assert tolerances.of("a", 1) == 1e-6
    assert tolerances.of("a", 9) == FACTOR * 1e-3
    assert tolerances.of("b", 1) == pytest.approx(3.01e-4)
    assert tolerances.of("c", 1) == FACTOR * 2e-5  # looks ahead
    assert tolerances.of("c", 2) == FACTOR * 2e-5
    assert set(tolerances.classes) == {"a", "b", "c"}


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_changed_tree_is_not_noise(calibrated: bool) -> None:
    trace = replace(random_trace(1), provenance={"source_digest": "old"})
    golden = Golden(
        lane="cpu",
        trace=trace,
        case_digest="",
        accepted={},
        tolerances=tolerances_of(trace) if calibrated else Tolerances(),
    )
    assert unchanged_base(golden, "old", lambda _: random_trace(2)) is trace
    assert unchanged_base(golden, "new", lambda _: trace) is trace
    with pytest.raises(ValueError, match="accept the change first"):
        unchanged_base(golden, "new", lambda _: noisy(trace, 1, size=1e-2))


def test_rounding_that_moves_a_fact_is_refused() -> None:
    trace = random_trace(1)
    other = replace(trace, tables={**trace.tables, TableKey("window/1"): [[0, 9]]})
    with pytest.raises(ValueError, match="window/1"):
        measure(trace, lambda _: other, EIGHT, quiet)


def test_a_detectable_bias_is_detected_with_the_stated_power() -> None:
    trace = random_trace(1)
    seeds = iter(range(100))
    measured = measure(trace, lambda _: noisy(trace, next(seeds), 1e-5), EIGHT, quiet)
    effect = detectable_effect(CASE, trace, measured)["lm_loss"]
    assert effect > 0.0
    seen = 0
    for seed in range(1000, 1200):
        fresh = noisy(trace, seed, 1e-5)
        biased = {s: v * (1 + effect) for s, v in fresh.curves[CurveKey("lm_loss")].items()}
        biased_trace = replace(fresh, curves={**fresh.curves, CurveKey("lm_loss"): biased})
        seen += bool(compare(trace, biased_trace, measured.tolerances).divergences)
    assert seen >= 180


def test_each_seed_is_held_against_the_others() -> None:
    runs = [{"a": {1: value}} for value in (1e-4, 2e-4, 1e-3)]
    found = held_out(runs, 1e-6)
    assert found == pytest.approx([1e-4 / 4e-3, 2e-4 / 4e-3, 1e-3 / 8e-4])
    # What only one seed moves has the floor from the others, and a grain.
    alone: list[dict[str, dict[int, float]]] = [{"a": {1: 1e-5}}, {"a": {1: 0.0}}, {"a": {1: 0.0}}]
    assert held_out(alone, 1e-6) == pytest.approx([10.0, 0.0, 0.0])
    assert held_out(alone, 1e-6, {"a": {1: 9e-6}}) == pytest.approx([1.0, 0.0, 0.0])


def test_alarms_are_counted_over_whole_checks() -> None:
    def record(*ratios: float, source: str = ROUNDING) -> dict[str, object]:
        return {"source": source, "held_out": list(ratios)}

    assert whole_check_alarms([]) == (0, 0, 0.0)
    assert whole_check_alarms([{}, record(9.0, source="equivalent settings")]) == (0, 0, 0.0)
    assert whole_check_alarms([record(0.2, 0.9, 0.1), record(0.3, 0.1, 1.0)]) == (0, 3, 1.0)
    # Two cases' alarms of one seed are one check's; seeds that a case lacks are no whole check.
    both = [record(1.2, 0.9, 0.1), record(1.5, 0.1, source=PERTURBED)]
    assert whole_check_alarms(both) == (1, 2, 1.5)


CASE = Case(name="c", description="", lanes=["cpu"], target="a:b")


def runs_of(trace: Trace, shaken: int, size: float) -> Callable[[Variant], Trace]:
    def run(variant: Variant) -> Trace:
        if variant.rounding_seed is not None:
            counts = {"largest_sum": 10, "shaken": shaken}
            return noted(
                noisy(trace, variant.rounding_seed) if shaken else trace, arithmetic=counts
            )
        return noisy(trace, int(variant.settings["perturb_seed"]), size)

    return run


def test_a_run_without_torch_is_measured_by_moved_weights() -> None:
    trace = random_trace(1)
    rounded = measure_case(CASE, True, 4, trace, runs_of(trace, 7, 1.0), quiet)
    assert (rounded.source, len(rounded.lines)) == (ROUNDING, 4)
    perturbed = measure_case(CASE, True, 4, trace, runs_of(trace, 0, 1e-6), quiet)
    assert (perturbed.source, len(perturbed.lines)) == (PERTURBED, 4)
    assert perturbed.lines[0].startswith(perturbations(1)[0].name)


def test_weights_that_nobody_moves_measure_nothing() -> None:
    trace = random_trace(1)
    with pytest.raises(ValueError, match="ignores it"):
        measure_case(CASE, True, 4, trace, runs_of(trace, 0, 0.0), quiet)
    facts = replace(trace, curves={}, curve_phases={}, events=[])
    assert not measure(facts, lambda _: facts, perturbations(3), quiet).tolerances.classes


def recorded(trace: Trace, environment: dict[str, str], variant: str = "") -> Trace:
    named = {"variant": variant} if variant else {}
    made = {"source_digest": "a", "environment": environment, **named}
    return replace(trace, provenance={**trace.provenance, **made})


def calibrated(trace: Trace) -> Golden:
    base = recorded(trace, ENVIRONMENT)
    measured = measure(
        base,
        lambda v: recorded(noisy(trace, v.rounding_seed or 0), ENVIRONMENT, v.name),
        EIGHT,
        quiet,
    )
    golden = Golden(lane="cpu", trace=base, case_digest="", accepted={})
    return replace(golden, tolerances=measured.tolerances, calibration=measured.record(golden))


def test_runs_of_another_processor_extend_a_calibration(tmp_path: Path) -> None:
    trace = random_trace(1)
    golden = calibrated(trace)
    (amd,) = golden.calibration["calibrated_on"]
    assert (amd["machine"], amd["runs"]) == ("AuthenticAMD 26/2", 8)
    assert amd["largest_ratio"] == max(golden.calibration["held_out"])
    far = noisy(trace, 77, 1e-5)
    save_trace(recorded(far, ELSEWHERE), tmp_path / "intel" / "traces" / golden.case)
    measured = pool(golden, [tmp_path / "intel"], quiet)
    first, second = measured.calibrated_on
    assert first == amd
    assert (second["machine"], second["runs"]) == ("GenuineIntel 6/207", 1)
    largest = compare(golden.trace, far, golden.tolerances).largest
    assert largest is not None
    assert second["largest_ratio"] == pytest.approx(largest.ratio)
    assert measured.tolerances.of("curve:lm_loss", 5) > golden.tolerances.of("curve:lm_loss", 5)
    assert not compare(golden.trace, far, measured.tolerances).divergences
    assert measured.tolerances.of("curve:grad_norm", 1) == golden.tolerances.of(
        "curve:grad_norm", 1
    )
    extended = replace(golden, tolerances=measured.tolerances, calibration=measured.record(golden))
    assert extended.calibration["held_out"] == golden.calibration["held_out"]
    assert unfounded(golden) == unfounded(extended) == []
    assert [rerun["name"] for rerun in extended.calibration["reruns"]][-1] == "plain, intel"
    with pytest.raises(ValueError, match="already"):
        pool(extended, [tmp_path / "intel"], quiet)


def test_runs_extend_a_calibration_of_an_earlier_version(tmp_path: Path) -> None:
    trace = random_trace(1)
    golden = calibrated(trace)
    known = golden.calibration.items()
    record = {name: value for name, value in known if name not in ("reruns", "grains")}
    older = replace(golden, calibration={**record, "time": "2026"})
    save_trace(recorded(noisy(trace, 7, 1e-5), ELSEWHERE), tmp_path / "intel/traces" / golden.case)
    measured = pool(older, [tmp_path / "intel"], quiet)
    extended = replace(golden, tolerances=measured.tolerances, calibration=measured.record(golden))
    assert unfounded(older) == unfounded(extended) == []
    assert [rerun.name for rerun in measured.reruns] == ["8 reruns of 2026", "plain, intel"]


def test_a_successor_keeps_the_grains_that_its_calibration_was_made_with() -> None:
    golden = calibrated(noted(random_trace(1), grain={"curve:lm_loss": {"1": 3e-5}}))
    assert _kept_calibration(golden) is golden.calibration
    known = golden.calibration.items()
    record = {name: value for name, value in known if name not in ("reruns", "grains")}
    older = replace(golden, calibration=record)
    successor = replace(
        older, trace=random_trace(1), calibration=_kept_calibration(older)
    )  # its own notes have no grain
    assert unfounded(older) == unfounded(successor) == []
    assert unfounded(replace(successor, calibration=record)) != []


@pytest.mark.parametrize("value", [0.05, 2.38e-7, 1.0, 0.0, 1e-300, 123.0])
def test_a_number_of_three_digits_stays(value: float) -> None:
    assert rounded_up(value) == value
    assert value <= rounded_up(value * 1.0001) <= value * 1.011


def test_a_few_runs_alone_calibrate_nothing(tmp_path: Path) -> None:
    trace = random_trace(1)
    golden = calibrated(trace)
    save_trace(recorded(trace, ELSEWHERE), tmp_path / "intel" / "traces" / golden.case)
    accepted_since = replace(golden, calibration={**golden.calibration, "source_digest": "older"})
    for uncalibrated in (replace(golden, calibration={}), accepted_since):
        with pytest.raises(ValueError, match="golden calibrate"):
            pool(uncalibrated, [tmp_path / "intel"], quiet)


def test_what_is_not_finite_is_no_noise() -> None:
    trace = random_trace(1)
    broken = replace(trace, curves={**trace.curves, CurveKey("lm_loss"): {1: math.nan}})
    with pytest.raises(ValueError, match="lm_loss"):
        measure(trace, lambda _: broken, EIGHT, quiet)
