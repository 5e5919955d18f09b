"""Names of records are anybody's: whatever a user calls a metric, a table or a module is kept."""

from __future__ import annotations

import itertools
import json
import string
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from validation.compare import Divergence, compare
from validation.files import DamagedFileError
from validation.gate.verdict import CaseResult, CheckResult, Verdict
from validation.gate.verdict_file import read_verdict
from validation.goldens import Golden, GoldenStore
from validation.goldens.changes import changes, recorded_metrics
from validation.goldens.declared import Expectation, movements, undeclared
from validation.report import write_reports
from validation.report.explain import render_explanation
from validation.report.gather import load_evidence
from validation.running.execution import merge_ranks
from validation.running.recorder import Recorder
from validation.trace import (
    CurveKey,
    HeldInvariant,
    RecordKind,
    TableKey,
    Trace,
    curve_class,
    load_trace,
    save_trace,
)
from validation.trace.storage import decode_trace, encode_trace

GOLDENS = Path(__file__).parents[3] / "goldens"
METRICS = ("lm_loss", "pass@1", "pass@1@0", "pass", "table", "training", "lm_loss@1", "x@01", "@2")


def recorded(rank: int = 0, moved: str = "") -> Trace:
    """One rank's trace with awkward names; `moved` is the name of what is another number."""
    recorder = Recorder(rank, steps=(1,))
    for number, name in enumerate(METRICS):
        recorder.curve(1, name, 1.0 + number + rank + (name == moved))
        recorder.table(name, [[number, rank, int(name == moved)]])
    for module, tensor in (("training", "lm_loss"), ("m", "table"), ("pass@1", "")):
        value = torch.full((3,), 2.0 + (f"{module}.{tensor}" == moved))
        recorder.tensor(
            step=1, micro_batch=0, phase="forward", module=module, tensor=tensor, value=value
        )
    recorder.discrete("training", {"law": "of the land", "holds": False}, tensor="rule")
    recorder.discrete("ends", "it holds" if moved != "ends" else "it breaks")
    recorder.invariant("m", "shift", 0.0, 1.0, what="all")
    return recorder.trace("names", {"environment": {"lane": "cpu"}})


def whole(ranks: int, moved: str = "", rank: int = 0) -> Trace:
    """The trace of so many ranks; only `rank` has what moved."""
    return merge_ranks([recorded(r, moved if r == rank else "") for r in range(ranks)])


def read_back(trace: Trace, folder: Path) -> Trace:
    save_trace(trace, folder)
    return load_trace(folder)


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_name_survives_the_file(ranks: int, tmp_path: Path) -> None:
    trace = whole(ranks)
    read = read_back(trace, tmp_path)
    assert read.curves == trace.curves
    assert read.curve_phases == trace.curve_phases
    assert read.tables == trace.tables
    assert list(read.events) == list(trace.events)
    assert encode_trace(read) == encode_trace(trace)
    assert not compare(trace, read, exact=True).divergences


def test_random_names_survive_the_file(tmp_path: Path) -> None:
    random = Random(7)
    letters = string.ascii_lowercase[:2] + '@@0123./\n"é²'
    for number in range(60):
        names = {"".join(random.choices(letters, k=random.randrange(1, 7))) for _ in range(8)}
        ranked = [(name, rank) for name in sorted(names) for rank in range(random.randrange(1, 4))]
        trace = Trace(
            "random",
            curves={CurveKey(*key): {1: float(n)} for n, key in enumerate(ranked)},
            curve_phases={CurveKey(*key): "forward" for key in ranked},
            tables={TableKey(*key): [[n]] for n, key in enumerate(ranked)},
        )
        read = read_back(trace, tmp_path / str(number))
        assert (read.curves, read.tables) == (trace.curves, trace.tables)


def test_a_label_in_a_file_is_what_it_was() -> None:
    labels = {
        CurveKey("lm_loss"): "lm_loss",
        CurveKey("lm_loss", 1): "lm_loss@1",
        CurveKey("lm_loss", 12): "lm_loss@12",
        CurveKey("pass@1"): "pass@1@0",
        CurveKey("pass@1", 1): "pass@1@1",
        CurveKey("x@01"): "x@01",
    }
    trace = Trace("labels", curves={key: {1: 1.0} for key in labels})
    written = json.loads(encode_trace(trace)["curves.json"])["curves"]
    assert list(written) == list(labels.values())


def test_two_labels_of_one_record_are_refused() -> None:
    entry = '{"phase": "forward", "steps": [1], "values": [1]}'
    files = {name: (Path(name), content) for name, content in encode_trace(Trace("two")).items()}
    curves = f'{{"schema": 1, "curves": {{"a": {entry}, "a@0": {entry}}}}}'.encode()
    with pytest.raises(DamagedFileError, match="a@0"):
        decode_trace("two", {}, {**files, "curves.json": (Path("curves.json"), curves)})
    tables = b'{"schema": 1, "tables": {"a": [], "a@0": []}}'
    with pytest.raises(DamagedFileError, match="a@0"):
        decode_trace("two", {}, {**files, "tables.json": (Path("tables.json"), tables)})


def committed() -> list[Path]:
    return sorted(path.parent for path in GOLDENS.rglob("golden.json"))


@pytest.mark.parametrize("folder", committed(), ids=lambda p: str(p.relative_to(GOLDENS)))
def test_a_committed_golden_is_written_as_it_is(folder: Path) -> None:
    lane, case, *place = folder.relative_to(GOLDENS).parts
    trace = GoldenStore(GOLDENS).load(lane, case, *place).trace
    for name, content in encode_trace(trace).items():
        assert (folder / name).read_bytes() == content, name
    for event in trace.events:
        law = isinstance(event.value, dict) and "law" in event.value
        assert not law, "what vpMoE records of a law is typed"


def test_classes_keep_their_names_and_are_never_shared_by_accident() -> None:
    assert curve_class(CurveKey("lm_loss")) == "curve:lm_loss"
    assert curve_class(CurveKey("update_rms/layer.3", 2)) == "curve:update_rms/layer.#@#"
    names = ("pass", "pass@1", "pass@1@0")
    classes = [curve_class(CurveKey(name, rank)) for name in names for rank in (0, 1)]
    assert len(set(classes)) == len(classes)


MOVED = [
    *((name, RecordKind.CURVE) for name in METRICS),
    ("training.lm_loss", RecordKind.TENSOR),
    ("m.table", RecordKind.TENSOR),
    ("ends", RecordKind.DISCRETE),
]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("name", "kind"), MOVED)
def test_what_moves_is_told_by_its_own_name(name: str, kind: RecordKind, rank: int) -> None:
    golden, actual = whole(2), whole(2, name, rank)
    comparison = compare(golden, actual)
    found = {(d.kind, d.name, d.rank or 0) for d in comparison.divergences}
    label = str(CurveKey(name, rank)) if kind is RecordKind.CURVE else name
    assert (kind, label, rank) in found
    if kind is RecordKind.CURVE:
        assert found == {(kind, label, rank), (RecordKind.TABLE, label, rank)}
        curve = next(d for d in comparison.divergences if d.kind is kind)
        assert (curve.module, curve.tensor) == ("training", name)
    changed = changes(comparison)
    assert [change.metric for change in changed] == [d.name for d in comparison.divergences]
    assert {change.metric for change in changed} <= recorded_metrics(golden)
    declared = [m.declared("names") for m in movements(changed)]
    assert not undeclared("names", changed, declared)
    parsed = [Expectation.parse(str(expected)) for expected in declared]
    assert not undeclared("names", changed, parsed)


def test_a_curve_and_a_tensor_of_one_name_are_two_changes() -> None:
    def run(step: float) -> Trace:
        recorder = Recorder(steps=(1,))
        recorder.curve(1, "a.b", step)
        recorder.tensor(
            step=1,
            micro_batch=0,
            phase="forward",
            module="a",
            tensor="b",
            value=torch.full((2,), step),
        )
        return recorder.trace("two", {})

    found = changes(compare(run(1.0), run(2.0)))
    assert [(c.metric, c.count) for c in found] == [("a.b", 1), ("a.b", 1)]
    assert {c.first.kind for c in found} == {RecordKind.CURVE, RecordKind.TENSOR}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("name", "kind"), MOVED)
def test_verdict_and_report_name_what_moved(
    name: str, kind: RecordKind, rank: int, tmp_path: Path
) -> None:
    golden, actual = whole(2), whole(2, name, rank)
    comparison = compare(golden, actual)
    first = next(d for d in comparison.divergences if d.kind is kind)
    case = CaseResult(
        "names", Verdict.FAIL, 9, 8, first_divergence=first, comparison=comparison, largest_at=first
    )
    result = CheckResult(Verdict.FAIL, "cpu", 1.0, {}, None, [case])
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "verdict.json").write_text(json.dumps(result.to_json()))
    write_reports(result, folder)
    read = read_verdict(folder)
    assert read.to_json() == result.to_json()
    assert read.cases[0].first_divergence == replace(first, kind=None)
    evidence = load_evidence(folder, "names")
    assert evidence is not None
    assert evidence.first_kind is kind
    drawn = {curve.metric for curve in evidence.curves if not all(s.passes for s in curve.states)}
    assert drawn == ({str(CurveKey(name, rank))} if kind is RecordKind.CURVE else set())
    text = render_explanation(folder)
    assert ("in execution order" in text) == (kind not in (RecordKind.CURVE, RecordKind.TABLE))


def test_the_contract_of_a_divergence_has_the_keys_that_it_had() -> None:
    assert list(Divergence(kind=RecordKind.CURVE).to_json()) == [
        "step",
        "micro_batch",
        "phase",
        "module",
        "tensor",
        "rank",
        "offset",
        "expected",
        "actual",
        "relative_error",
        "tolerance",
    ]
    first = compare(whole(1), whole(1, "table")).divergences[0]
    assert Divergence.from_json({**first.to_json(), "kind": "x"}, first.kind) == first


LIKE_A_LAW: list[dict[str, Any]] = [
    {"law": "s", "holds": True},
    {"law": "s", "holds": False},
    {"law": "s", "fact": 1, "holds": False, "error": "1.0", "bound": 0.5},
    {"law": 1, "holds": True},
    {"holds": True, "law": "s"},
    {"law": "s"},
]


@pytest.mark.parametrize("value", LIKE_A_LAW)
def test_a_users_dict_is_no_invariant(value: dict[str, Any], tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.discrete("m", value)
    trace = recorder.trace("dict", {})
    (event,) = read_back(trace, tmp_path).events
    assert event.kind is RecordKind.DISCRETE
    assert event.value == value
    assert list(event.value) == list(value)
    assert not compare(trace, load_trace(tmp_path)).divergences


@pytest.mark.parametrize(("error", "bound"), [(0.0, 1), (2.0, 1), (float("nan"), float("inf"))])
def test_an_invariant_is_one_after_the_file(error: float, bound: float, tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.invariant("m", "shift", error, bound, tensor="t", what=[1, 2])
    trace = recorder.trace("law", {})
    read = read_back(trace, tmp_path)
    (event,) = read.events
    assert isinstance(event.value, HeldInvariant)
    assert event.kind is RecordKind.INVARIANT
    assert event.value.facts == {"what": [1, 2]}
    assert encode_trace(read) == encode_trace(trace)
    broken = compare(read, trace).divergences
    assert bool(broken) == (not error <= bound)
    assert all(d.kind is RecordKind.INVARIANT for d in broken)


def test_a_fact_cannot_take_the_invariants_place() -> None:
    for name, value in itertools.product(("law", "holds"), (True, "x")):
        with pytest.raises(ValueError, match=name):
            Recorder().invariant("m", "shift", 0.0, 1.0, **{name: value})


def test_a_golden_with_such_names_is_stored_and_found(tmp_path: Path) -> None:
    store = GoldenStore(tmp_path / "goldens")
    trace = whole(2)
    store.save(Golden(lane="cpu", trace=trace, case_digest="d", accepted={"reason": "r"}))
    assert not compare(store.load("cpu", "names").trace, trace, exact=True).divergences
