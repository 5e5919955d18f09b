"""Goldens of several environments beside each other: which is nearest, kept, judged and named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from validation.calibration.calibrate import measure
from validation.calibration.pooling import reruns_made_elsewhere
from validation.cases import Case
from validation.cli.diff import Revision, Run, sides
from validation.config import Lane
from validation.files import DamagedFileError
from validation.gate.base import with_base_tolerances
from validation.gate.check import compared_with, must_repeat
from validation.goldens import Golden, GoldenStore, MissingGoldenError
from validation.goldens.acceptance import propose
from validation.goldens.environments import same_stack
from validation.progress import Lines
from validation.running.environment import describe, machine_type
from validation.trace import CurveKey, TableKey, Trace, save_trace

from .traces import random_trace, tolerances_of

H200 = {"lane": "h200", "device": "NVIDIA H200", "capability": "9.0", "driver": "1", "torch": "2"}
H200 |= {"cpu_isa": "AVX512"}
H100 = {**H200, "device": "NVIDIA H100"}
FOLDER = "nvidia-h100"


def recorded(environment: dict[str, Any], seed: int = 1, source: str = "a") -> Trace:
    trace = random_trace(seed)
    return replace(trace, provenance={"environment": environment, "source_digest": source})


def golden(environment: dict[str, Any], place: str = "", seed: int = 1) -> Golden:
    trace, accepted = recorded(environment, seed), {"time": "now", "reason": "a test"}
    return Golden(lane="h200", trace=trace, case_digest="", accepted=accepted, place=place)


@pytest.fixture
def store(tmp_path: Path) -> GoldenStore:
    found = GoldenStore(tmp_path / "goldens")
    found.save(golden(H200))
    found.save(golden(H100, FOLDER, seed=2))
    return found


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        (H200, ""),
        (H100, FOLDER),
        ({**H100, "driver": "9", "torch": "9"}, FOLDER),
        ({**H200, "device": "another", "driver": "9"}, ""),
        ({**H200, "image": "x"}, ""),
    ],
)
def test_the_same_gpu_is_nearer_than_the_same_driver(
    store: GoldenStore, environment: dict[str, Any], place: str
) -> None:
    name = random_trace(1).case
    assert store.places("h200", name) == ["", FOLDER]
    assert store.names("h200") == [name]
    assert store.nearest("h200", name, environment).place == place


def test_a_diff_takes_the_golden_of_the_environment_named(store: GoldenStore) -> None:
    root, name, tree = store.folder.parent, random_trace(1).case, Revision(None)
    run = Run(recorded(H100), root)
    for place, trace in (("", golden(H200).trace), (FOLDER, golden(H100, FOLDER, seed=2).trace)):
        a, b = sides(root, "h200", name, place, tree, tree)
        assert a.trace.provenance["environment"] == trace.provenance["environment"]
        assert b.trace.curves == a.trace.curves == trace.curves
    assert sides(root, "h200", name, "", tree, run)[0].trace.curves == trace.curves


def test_an_acceptance_replaces_its_own_environment_alone(store: GoldenStore) -> None:
    name = random_trace(1).case
    same = propose(store, "h200", recorded({**H100, "driver": "9"}, seed=2))
    assert same.place == FOLDER
    assert same.before is not None
    new = propose(store, "h200", recorded({**H200, "device": "B200"}))
    assert (new.place, new.before, new.changed) == ("b200", None, [])
    assert "in B200" in new.note
    store.save(golden(H200, seed=3))
    assert store.load("h200", name, FOLDER).trace.curves == random_trace(2).curves


def test_a_new_environment_moves_no_fact(store: GoldenStore) -> None:
    trace = recorded({**H200, "device": "B200"})
    other = replace(trace, tables={**trace.tables, TableKey("window/1"): [[0, 9]]})
    assert [change.metric for change in propose(store, "h200", other).changed] == ["window/1"]


def test_a_damaged_golden_is_never_passed_over_for_another(store: GoldenStore) -> None:
    name = random_trace(1).case
    (store.path("h200", name) / "golden.json").write_text("{}")
    with pytest.raises(DamagedFileError):
        store.nearest("h200", name, H100)


def test_a_folder_holds_the_golden_of_its_environment(store: GoldenStore) -> None:
    name = random_trace(1).case
    store.path("h200", name, FOLDER).rename(store.path("h200", name, "nvidia-b200"))
    with pytest.raises(DamagedFileError, match="another environment"):
        store.nearest("h200", name, H100)
    with pytest.raises(MissingGoldenError):
        store.nearest("h200", "none", H100)


def test_a_judge_without_the_environment_holds_it_to_its_nearest_tolerances(
    store: GoldenStore, tmp_path: Path
) -> None:
    base = GoldenStore(tmp_path / "base")
    base.save(golden(H200))
    loose = replace(golden(H100, FOLDER), tolerances=tolerances_of(random_trace(1)))
    assert with_base_tolerances(loose, base).tolerances == golden(H200).tolerances


def test_the_verdict_names_the_goldens_environment() -> None:
    assert compared_with(golden(H200), H200) == "golden of NVIDIA H200"
    assert compared_with(golden(H200), H100) == "golden of NVIDIA H200, the nearest to NVIDIA H100"
    assert compared_with(golden({"lane": "cpu", "device": "x"}), {"lane": "cpu"}) == ""


def test_one_source_on_one_stack_must_repeat() -> None:
    case = Case(name="c", description="", lanes=["h200"], target="a:b", deterministic=True)
    assert must_repeat(case, golden(H200), recorded({**H200, "cpu_isa": "AVX2"}))
    assert not must_repeat(case, golden(H200), recorded({**H200, "driver": "9"}))
    assert not must_repeat(case, golden(H200), recorded(H200, source="b"))
    assert not must_repeat(replace(case, deterministic=False), golden(H200), recorded(H200))


def test_what_tells_processors_apart_tells_no_gpus_apart() -> None:
    """Goldens of GPUs that were recorded before these facts were known stay the nearest."""
    facts = describe(Lane(name="h200", gpus=1))
    now = {**H200, **{name: facts[name] for name in ("cpu_vendor", "cpu_family", "cpu_model")}}
    now |= {"platform": facts["platform"], "blas": "mkl", "arithmetic": "native"}
    now |= {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert same_stack(H200, now)
    assert not same_stack(H200, {**now, "driver": "9"})


@pytest.mark.parametrize(
    ("environment", "machine"),
    [
        ({"cpu_vendor": "AuthenticAMD", "cpu_family": "26", "cpu_model": "2"}, "AuthenticAMD 26/2"),
        ({"device": "AMD EPYC", "capability": None}, "AMD EPYC"),
        ({**H200, "capability": "9.0", "cpu_vendor": "GenuineIntel"}, "NVIDIA H200"),
        ({}, "unknown"),
    ],
)
def test_a_machine_type_is_a_processor_or_a_gpu(environment: dict[str, Any], machine: str) -> None:
    assert machine_type(environment) == machine


def test_runs_of_other_machines_calibrate(tmp_path: Path) -> None:
    mine = golden(H200)
    for number in range(3):
        folder = tmp_path / f"run{number}"
        save_trace(recorded(H200, source="b"), folder / "traces" / mine.case)
        moved = recorded({**H200, "driver": "9"}, source="b")
        loss = {
            s: v * (1 + 1e-4 * (number + 1)) for s, v in moved.curves[CurveKey("lm_loss")].items()
        }
        moved = replace(
            moved,
            curves={**moved.curves, CurveKey("lm_loss"): loss},
            provenance={**moved.provenance, "variant": "another kernel"},
        )
        save_trace(moved, folder / "reruns" / mine.case / "1")
    chosen, made = reruns_made_elsewhere(mine, [tmp_path / f"run{n}" for n in range(3)])
    measured = measure(mine.trace, made, chosen, Lines(lambda line: None))
    assert len(measured.lines) == 6
    assert measured.noise["curve:lm_loss"][1] == pytest.approx(3e-4, rel=1e-6)


def test_runs_of_other_code_or_another_gpu_do_not_calibrate(tmp_path: Path) -> None:
    mine = golden(H200)
    save_trace(recorded(H200, seed=2, source="b"), tmp_path / "code" / "traces" / mine.case)
    with pytest.raises(ValueError, match="other code"):
        reruns_made_elsewhere(mine, [tmp_path / "code"])
    save_trace(recorded(H100), tmp_path / "gpu" / "traces" / mine.case)
    with pytest.raises(ValueError, match="NVIDIA H100"):
        reruns_made_elsewhere(mine, [tmp_path / "gpu"])
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no run"):
        reruns_made_elsewhere(mine, [tmp_path / "none"])
