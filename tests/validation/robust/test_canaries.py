"""Canaries beside goldens: what they hold for, which is drawn, and how they are merged."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from validation.cases import Case, Fault
from validation.compare import Tolerances
from validation.config import Lane
from validation.files import DamagedFileError, digest, encode_json
from validation.gate.health import examine
from validation.goldens import Golden, GoldenStore
from validation.goldens.canaries import CERTAIN, Canaries, Proof, in_force
from validation.goldens.golden import basis_of
from validation.goldens.layout import HEAD
from validation.goldens.merge import merge_heads
from validation.goldens.proven import Candidate, candidates, choose_canary, why_none
from validation.power.ledger import state_of
from validation.power.proof import Planted, fit_faults, record

from .traces import random_trace, tolerances_of

CASES = [
    Case(name=name, description="a case", lanes=["cpu"], target="a:b") for name in ("one", "two")
]


LANES = {"cpu": Lane(name="cpu")}


def fault(name: str, case: str = "one", **more: Any) -> Fault:
    declared = {"category": "c", "component": "c", "imitates": "", "plant": "a:f", **more}
    return Fault(id=name, case=case, **{"canary_steps": 2, **declared})


FAULTS = [fault("a"), fault("b"), fault("c", "two")]
PROOF = Proof(2, 100.0, "layer.output")


@pytest.fixture
def store(tmp_path: Path) -> GoldenStore:
    """Goldens of two cases, which list two canaries and one."""
    store = GoldenStore(tmp_path / "goldens")
    for case, listed in zip(CASES, (("a", "b"), ("c",)), strict=True):
        trace = replace(random_trace(1), case=case.name)
        golden = Golden(
            lane="cpu",
            trace=trace,
            case_digest=case.digest,
            accepted={"reason": "first"},
            tolerances=tolerances_of(trace),
        )
        proven = Canaries(basis_of(golden), dict.fromkeys(listed, PROOF))
        store.save(replace(golden, canaries=proven))
    return store


def drawn_from(store: GoldenStore, faults: list[Fault] = FAULTS, **more: Any) -> list[str]:
    found = candidates(store, "cpu", CASES, faults, lambda _: {}, **more)
    return [f"{candidate.case.name}/{candidate.fault.id}" for candidate in found]


def rewrite(store: GoldenStore, **changed: Any) -> None:
    """The golden of `one` with something replaced."""
    store.save(replace(store.load("cpu", "one"), **changed))


def findings(store: GoldenStore) -> list[str]:
    faults = {f.id: f for f in FAULTS}
    found = examine(store.folder.parent, {c.name: c for c in CASES}, faults, LANES)
    return [f"{f.subject}: {f.text}" for f in found if f.kind == "canaries"]


@given(st.floats(CERTAIN), st.integers(1, 99), st.text(max_size=20))
def test_a_list_is_read_as_it_was_written(margin: float, steps: int, place: str) -> None:
    head = {"files": {"a": "1"}, "tolerances": {}}
    canaries = Canaries("x", {"f": Proof(steps, margin, place)})
    written = json.loads(encode_json({**head, "canaries": canaries.to_json()}))
    assert in_force(written, Path()) == {}
    from validation.goldens.canaries import basis

    written["canaries"]["proven_against"] = basis(**head)
    assert in_force(written, Path()) == canaries.proofs


def test_a_head_without_a_list_loads_and_a_malformed_list_does_not(store: GoldenStore) -> None:
    rewrite(store, canaries=Canaries())
    path = store.path("cpu", "one") / HEAD
    assert "canaries" not in json.loads(path.read_text())
    assert store.load("cpu", "one").canaries == Canaries()
    head = json.loads(path.read_text())
    del head["digest"]
    head["canaries"] = {"faults": {"a": {"steps": "many"}}}
    path.write_bytes(encode_json({**head, "digest": digest(encode_json(head))}))
    with pytest.raises(DamagedFileError, match=r"golden.json: .*canaries"):
        store.load("cpu", "one")


def test_what_changes_makes_a_list_stale_and_health_says_so(store: GoldenStore) -> None:
    assert drawn_from(store) == ["one/a", "one/b", "two/c"]
    assert findings(store) == []
    golden = store.load("cpu", "one")
    rewrite(store, accepted={"reason": "another"})
    assert drawn_from(store) == ["one/a", "one/b", "two/c"], "the same trace and tolerances"
    rewrite(store, tolerances=Tolerances({"curve:lm_loss": {0: 1.0}}))
    assert drawn_from(store) == ["two/c"]
    assert [text for text in findings(store) if "count for nothing" in text]
    rewrite(store, tolerances=golden.tolerances)
    assert drawn_from(store) == ["one/a", "one/b", "two/c"]
    rewrite(store, trace=replace(random_trace(2), case="one"))
    assert drawn_from(store) == ["two/c"]


def test_only_what_is_declared_fit_and_certain_is_drawn(store: GoldenStore) -> None:
    assert drawn_from(store, [FAULTS[0]]) == ["one/a"]
    assert drawn_from(store, [fault("a", canary=False), FAULTS[1]]) == ["one/b"]
    assert drawn_from(store, [fault("a", lanes=["h200"]), FAULTS[1]]) == ["one/b"]
    golden = store.load("cpu", "one")
    weak = {"a": replace(PROOF, margin=CERTAIN * 0.99), "b": replace(PROOF, margin=math.inf)}
    rewrite(store, canaries=replace(golden.canaries, proofs={**weak, "gone": PROOF}))
    assert drawn_from(store) == ["one/b", "two/c"]
    assert "no longer declared (gone)" in findings(store)[0]
    rewrite(store, case_digest="another declaration")
    assert drawn_from(store) == ["two/c"]
    (store.path("cpu", "two") / HEAD).write_text("{")
    assert drawn_from(store) == []
    assert "golden faults" in why_none(FAULTS, "cpu")
    assert "is declared" in why_none([], "cpu")


def test_a_lane_without_a_proof_is_a_finding(store: GoldenStore) -> None:
    for case in CASES:
        store.save(replace(store.load("cpu", case.name), canaries=Canaries()))
    (text,) = findings(store)
    assert text.startswith("cpu: no fault is proven")


@given(st.integers(1, 50), st.integers(0, 2**64 - 1))
def test_the_draw_follows_the_source_alone(count: int, number: int) -> None:
    found = [Candidate(fault(str(n)), CASES[0], "", PROOF) for n in range(count)]
    source = f"{number:016x}"
    drawn = choose_canary(found, source)
    assert drawn is found[int(source[:8], 16) % count]
    assert choose_canary([], source) is None


def test_the_judge_draws_from_the_bases_lists(store: GoldenStore, tmp_path: Path) -> None:
    import shutil

    base = Path(shutil.copytree(store.folder, tmp_path / "base"))
    # The head loses its lists and loosens a golden: neither counts.
    rewrite(store, canaries=Canaries(), tolerances=Tolerances({"curve:lm_loss": {0: 1.0}}))
    assert drawn_from(store, base=GoldenStore(base)) == ["one/a", "one/b", "two/c"]
    # A list of the head's own counts for nothing either.
    golden = store.load("cpu", "two")
    listed = Canaries(basis_of(golden), {"a": PROOF, "b": PROOF, "c": PROOF})
    store.save(replace(golden, canaries=listed))
    assert drawn_from(store, base=GoldenStore(base)) == ["one/a", "one/b", "two/c"]
    # Of a trace that the head has replaced something is drawn only if there is nothing else.
    rewrite(store, trace=replace(random_trace(2), case="one"))
    assert drawn_from(store, base=GoldenStore(base)) == ["two/c"]
    store.save(replace(golden, trace=replace(random_trace(2), case="two")))
    assert drawn_from(store, base=GoldenStore(base)) == ["one/a", "one/b", "two/c"]


def test_what_was_tried_and_not_caught_leaves_the_list(store: GoldenStore) -> None:
    golden = store.load("cpu", "one")
    line = record(store, FAULTS, golden, Planted({"d": PROOF}, {"b", "d"}))
    assert set(store.load("cpu", "one").canaries.proofs) == {"a", "d"}
    assert "1 of 2" in line
    record(store, FAULTS, golden, Planted({}, set()))
    assert set(store.load("cpu", "one").canaries.proofs) == {"a"}, "d is not declared"
    rewrite(store, tolerances=Tolerances({"curve:lm_loss": {0: 1.0}}))
    assert "has changed since" in record(store, FAULTS, golden, Planted({"b": PROOF}, {"b"}))
    loose = store.load("cpu", "one")
    record(store, FAULTS, loose, Planted({"b": PROOF}, {"b"}))
    assert set(store.load("cpu", "one").canaries.proofs) == {"b"}, "stale ones are gone"
    assert "no canary is proven" in record(store, FAULTS, loose, Planted({}, {"b"}))


def test_planted_faults_are_spread_over_categories() -> None:
    faults = [fault(f"{c}{n}", category=c) for c in "xy" for n in range(3)]
    unfit = [
        fault("no-steps", canary_steps=None),
        fault("no-canary", canary=False),
        fault("same", equivalent="nothing"),
        fault("elsewhere", "two"),
    ]
    chosen = [f.id for f in fit_faults([*unfit, *faults], "cpu", "one")]
    assert chosen == ["x0", "y0", "x1", "y1", "x2", "y2"]


def test_proofs_do_not_make_results_of_runs_stale(store: GoldenStore, tmp_path: Path) -> None:
    import subprocess

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    rewrite(store, canaries=Canaries())
    before = state_of(tmp_path, "cpu", ["one"])
    golden = store.load("cpu", "one")
    proven = Canaries(basis_of(golden), {"a": PROOF})
    rewrite(store, canaries=proven)
    listed = state_of(tmp_path, "cpu", ["one"])
    rewrite(store, canaries=replace(proven, proofs={"b": PROOF}))
    assert state_of(tmp_path, "cpu", ["one"]) == listed
    assert before == listed
    rewrite(store, tolerances=Tolerances())
    assert state_of(tmp_path, "cpu", ["one"]) != before


@pytest.mark.parametrize("acceptance", ["neither", "ours", "theirs", "both"])
def test_lists_merge_and_acceptances_do_not(
    store: GoldenStore, tmp_path: Path, acceptance: str
) -> None:
    path = store.path("cpu", "one") / HEAD
    golden = store.load("cpu", "one")
    files = {name: tmp_path / name for name in ("base", "ours", "theirs")}
    files["base"].write_bytes(path.read_bytes())
    for side, name in (("ours", "a"), ("theirs", "b")):
        moved = acceptance in (side, "both")
        listed = golden.canaries.proofs if moved else {name: replace(PROOF, margin=50.0)}
        accepted = {"reason": side} if moved else golden.accepted
        canaries = replace(golden.canaries, proofs=listed)
        store.save(replace(golden, canaries=canaries, accepted=accepted))
        files[side].write_bytes(path.read_bytes())
    before = {name: file.read_bytes() for name, file in files.items()}
    merge_heads(files["base"], files["ours"], files["theirs"])
    path.write_bytes(files["ours"].read_bytes())
    if acceptance == "both":
        with pytest.raises(DamagedFileError, match="two branches accepted"):
            store.load("cpu", "one")
    elif acceptance == "neither":
        assert drawn_from(store) == ["one/a", "one/b", "two/c"]
    else:
        assert path.read_bytes() == before[acceptance]
