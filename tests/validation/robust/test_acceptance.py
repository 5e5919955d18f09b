"""Accepting a change: what must come along, what must be declared, and what is left on file."""

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation.cases import Case
from validation.compare import Divergence
from validation.goldens import Golden, GoldenStore
from validation.goldens.acceptance import (
    RefusedError,
    UndeclaredError,
    propose,
    refuse_missing_lanes,
    refuse_undeclared,
    refuse_unknown,
)
from validation.goldens.audit import write_audit
from validation.goldens.changes import Change
from validation.goldens.declared import Expectation, movements, undeclared
from validation.trace import CurveKey, RecordKind, Trace

from .traces import random_trace, tolerances_of


def test_a_missing_affected_lane_is_named(tmp_path: Path) -> None:
    store = GoldenStore(tmp_path / "goldens")
    trace = random_trace(1)
    for lane in ("cpu", "h200"):
        tolerances = tolerances_of(trace)
        golden = Golden(lane=lane, trace=trace, case_digest="", accepted={}, tolerances=tolerances)
        store.save(golden)
    cases = {"tiny": Case(name="tiny", description="", lanes=["cpu", "h200"], target="a:b")}
    loss = {step: 2 * value for step, value in trace.curves[CurveKey("lm_loss")].items()}
    moved = replace(trace, curves={**trace.curves, CurveKey("lm_loss"): loss})
    both = [propose(store, lane, moved) for lane in ("cpu", "h200")]
    refuse_missing_lanes(store, both, cases)
    with pytest.raises(RefusedError, match=r"tiny.*lane h200"):
        refuse_missing_lanes(store, both[:1], cases)
    unchanged = propose(store, "cpu", trace)
    refuse_missing_lanes(store, [unchanged], cases)


def changed(metric: str, largest: float, direction: str = "any", module: str = "") -> Change:
    """A change as `changes` finds it: of a curve, or of a module's tensor."""
    kind = RecordKind.TENSOR if module else RecordKind.CURVE
    where = Divergence(step=1, module=module or "training", tensor=metric, kind=kind)
    name = f"{module}.{metric}" if module else metric
    return Change(name, where, 1, largest, direction)


LAYERS = [changed("weight.grad", 0.01 * n, "up", f"layers.{n}.mlp") for n in range(1, 13)]


def test_movements_are_grouped_by_metric_and_their_declarations_cover_them() -> None:
    found = [
        changed("lm_loss", 0.0123, "down"),
        changed("lm_loss@1", 0.0125, "down"),  # of another rank
        changed("update_rms/experts", 0.5, "up"),
        changed("update_rms/norm", 0.25, "down"),
        *LAYERS,
        changed("weight.grad", math.inf, "any", "layers.1.mlp"),
        changed("output.0", math.nan, "any", "layers.1.mlp"),
        changed("output", math.inf, "any", "router"),
        changed("odd[0]*?", 0.1, "any", "it's a: module"),
    ]
    groups = movements(found)
    declared = [str(movement.declared("tiny")) for movement in groups]
    assert declared[:4] == [
        "tiny:lm_loss*:down:0.013",
        "tiny:update_rms/*:any:0.5",
        "tiny:layers.*.mlp.weight.grad:up:0.12",
        "tiny:layers.1.mlp.weight.grad:any",
    ]
    assert "tiny:*output*:any" in declared, "never a pattern of everything"
    expected = [Expectation.parse(text) for text in declared]
    assert undeclared("tiny", found, expected) == []
    # None covers what it was not made for.
    assert undeclared("tiny", [changed("odd0xy", 0.1, "any", "it's a: module")], expected)
    assert undeclared("tiny", [changed("weight.grad", 0.13, "up", "layers.3.attention")], expected)


@settings(deadline=None)
@given(st.lists(st.tuples(st.text("ab.[]*?:/0", min_size=1, max_size=9), st.floats()), max_size=9))
def test_whatever_moves_its_declarations_cover_it(moved: list[tuple[str, float]]) -> None:
    found = [changed(name, abs(size), module="m") for name, size in moved]
    declared = [str(movement.declared("tiny")) for movement in movements(found)]
    assert undeclared("tiny", found, [Expectation.parse(text) for text in declared]) == []


def stored(tmp_path: Path) -> tuple[GoldenStore, Trace]:
    store, trace = GoldenStore(tmp_path / "goldens"), random_trace(1)
    tolerances = tolerances_of(trace)
    store.save(Golden(lane="cpu", trace=trace, case_digest="", accepted={}, tolerances=tolerances))
    return store, trace


def test_a_refusal_keeps_what_is_answered_and_names_all_that_is_not(tmp_path: Path) -> None:
    store, trace = stored(tmp_path)
    moved = replace(trace, curves={n: dict.fromkeys(c, 20.0) for n, c in trace.curves.items()})
    proposals = [propose(store, "cpu", moved)]
    words = [Expectation("tiny", "lm_loss", "up"), Expectation("tiny", "grad_norm", "down")]
    with pytest.raises(
        UndeclaredError, match=r"not declared, of 2 name.*tiny:grad_norm:down"
    ) as caught:
        refuse_undeclared(proposals, words)
    assert caught.value.declarations[0] == words[0]
    refuse_undeclared(proposals, caught.value.declarations)


@pytest.mark.parametrize(
    ("expectation", "text"),
    [
        ("tini:lm_loss:up", "did you mean tiny"),
        ("other:lm_loss:up", "accepted are: tiny, fresh"),
        ("tiny:lm_los:up", "did you mean lm_loss"),
        ("tiny:layers.*.wait:up", "what a change adds"),
        ("fresh:lm_loss:up", "no golden on cpu"),
    ],
)
def test_what_nothing_can_answer_is_refused_before_training(
    tmp_path: Path, expectation: str, text: str
) -> None:
    store, trace = stored(tmp_path)
    cases = {"tiny": ["cpu"], "fresh": ["cpu"]}
    for known in ("tiny:lm_loss:up", "tiny:layers.*.output:any", "tiny:window/*:any"):
        refuse_unknown(store, cases, [Expectation.parse(known)])
    with pytest.raises(RefusedError, match=text):
        refuse_unknown(store, cases, [Expectation.parse(expectation)])
    added = replace(trace, curves={**trace.curves, CurveKey("lm_los"): {1: 1.0}})
    if expectation == "tiny:lm_los:up":  # a record that a run has and the golden has not
        refuse_unknown(store, cases, [Expectation.parse(expectation)], [added])


def test_an_audit_file_is_some_kilobytes(tmp_path: Path) -> None:
    """The largest acceptance of this repository left one of 1.1 MB."""
    store, trace = stored(tmp_path)
    found = [
        changed(f"{parameter}.{kind}", 1.5, module=f"decoder.layers.{n}.mlp.experts")
        for n in range(20)
        for parameter in ("weight", "a_q", "b_q")
        for kind in ("grad", "update", *(f"kind_{letter}" for letter in "abcdefghijklmnopqr"))
    ]
    tokens = changed("tokens", math.inf, module="batch")
    tokens = replace(tokens, first=replace(tokens.first, expected=[1] * 9999, actual=[2] * 9999))
    moved = [changed("lm_loss", 0.01), tokens, *found]
    proposal = replace(propose(store, "cpu", trace), changed=moved)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    accepted = {"time": "2026-01-05T00:00:00", "author": "ada", "reason": "other weights"}
    expected = [m.declared("tiny") for m in proposal.movements]
    path = write_audit(store, tmp_path, accepted, [proposal] * 12, expected)
    assert path.stat().st_size < 16_000
    (golden, *_) = json.loads(path.read_text())["goldens"]
    assert golden["moved"][0].startswith("lm_loss: ")
    assert golden["moved"][-1] == "and 14 more: 840 record(s) of 840 names"
