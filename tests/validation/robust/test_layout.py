"""Files of goldens: fixed names, replaced whole, and names with digests brought over."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from validation.files import DamagedFileError
from validation.goldens import Golden, GoldenStore
from validation.goldens.layout import FILES, HEAD, staged_name

from .traces import random_trace, tolerances_of

NAMES = {HEAD, *FILES}


def golden(seed: int) -> Golden:
    trace = replace(random_trace(seed), case="tiny")
    accepted = {"time": "now", "author": "ada", "reason": f"seed {seed}"}
    return Golden(
        lane="cpu",
        trace=trace,
        case_digest="",
        accepted=accepted,
        tolerances=tolerances_of(trace),
    )


@pytest.fixture
def store(tmp_path: Path) -> GoldenStore:
    store = GoldenStore(tmp_path / "goldens")
    store.save(golden(1))
    return store


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def with_digests_in_names(store: GoldenStore) -> Path:
    """A golden as versions before fixed names left it."""
    folder, recorded = store.path("cpu", "tiny"), store.head("cpu", "tiny")["files"]
    for name in FILES:
        (folder / name).rename(folder / staged_name(name, recorded[name]))
    return folder


def test_names_are_fixed_and_stay(store: GoldenStore) -> None:
    folder = store.path("cpu", "tiny")
    assert names(folder) == NAMES
    store.save(golden(2))
    assert names(folder) == NAMES
    assert store.load("cpu", "tiny").trace == golden(2).trace


class Killed(BaseException):
    """The process dies here."""


def test_whenever_an_acceptance_stops_the_golden_is_old_or_new(
    store: GoldenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, old = store.path("cpu", "tiny"), store.load("cpu", "tiny")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    rename, remove = Path.replace, Path.unlink
    seen = []
    for stop in range(100):
        for path in folder.iterdir():
            path.unlink()
        for name, content in whole.items():
            (folder / name).write_bytes(content)
        calls = 0

        def dying(act: Callable[..., Any], limit: int = stop) -> Callable[..., Any]:
            def call(*words: Any, **more: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > limit:
                    raise Killed
                return act(*words, **more)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dying(rename))
            patch.setattr(Path, "unlink", dying(remove))
            try:
                store.save(golden(2))
            except Killed:
                pass
            else:
                break
        found = store.load("cpu", "tiny")
        assert found.accepted["reason"] in ("seed 1", "seed 2")
        assert found.trace == golden(int(found.accepted["reason"][-1])).trace
        seen.append(found.accepted["reason"])
        if found.accepted["reason"] == "seed 2":  # git takes it back, or the next one finishes it
            for name, content in whole.items():
                (folder / name).write_bytes(content)
            assert store.load("cpu", "tiny").trace == old.trace
    assert set(seen) == {"seed 1", "seed 2"}
    assert seen == sorted(seen)
    assert names(folder) == NAMES


def test_digests_in_names_are_read_and_brought_over(store: GoldenStore) -> None:
    whole = store.load("cpu", "tiny")
    folder = with_digests_in_names(store)
    head = (folder / HEAD).read_bytes()
    (folder / "curves.0123456789ab.json").write_text("of an acceptance before\n")
    assert store.load("cpu", "tiny") == whole
    assert len(store.settle("cpu", "tiny")) == len(FILES) + 1
    assert names(folder) == NAMES
    assert (folder / HEAD).read_bytes() == head
    assert store.load("cpu", "tiny") == whole
    assert store.settle("cpu", "tiny") == []


def test_a_damaged_golden_is_not_touched(store: GoldenStore) -> None:
    folder = with_digests_in_names(store)
    damaged = next(folder.glob("events.*"))
    damaged.write_text("{}")
    before = names(folder)
    with pytest.raises(DamagedFileError, match=r"events\."):
        store.settle("cpu", "tiny")
    assert names(folder) == before


def test_a_golden_replaced_while_it_is_read_is_read_again(
    store: GoldenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = GoldenStore.decode
    waiting = [golden(2), golden(3)]

    def slow(self: GoldenStore, head: Any, place: str = "") -> Golden:
        if waiting:
            self.save(waiting.pop(0))
        return decode(self, head, place)

    monkeypatch.setattr(GoldenStore, "decode", slow)
    assert store.load("cpu", "tiny").trace == golden(3).trace


def test_setup_brings_a_repository_over(golden_project: Any) -> None:
    project = golden_project
    store = GoldenStore(project.root / "goldens")
    for case in store.names("cpu"):
        folder, recorded = store.path("cpu", case), store.head("cpu", case)["files"]
        for name in FILES:
            (folder / name).rename(folder / staged_name(name, recorded[name]))
    health = project.golden("health")
    assert health.code == 1
    assert "golden setup" in health.out
    (store.path("cpu", "plain_loss") / HEAD).write_text("{")
    answer = project.golden("setup")
    assert answer.code == 0, answer.err
    assert "goldens/cpu/plain_seed: fixed names" in answer.out
    assert "left as it is" in answer.out
    project.git("checkout", "-q", "--", "goldens/cpu/plain_loss/golden.json")
    assert project.golden("setup").code == 0
    project.git("add", "goldens")
    assert project.git("diff", "--cached", "--", "goldens") == ""
