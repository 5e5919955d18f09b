"""Goldens from a stranger: refused by name, nothing executed, nothing read or written outside."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest

from validation.files import DamagedFileError, digest, encode_json
from validation.goldens import Golden, GoldenStore
from validation.goldens.layout import HEAD
from validation.trace import load_trace, save_trace
from validation.trace.storage import CURVES, EVENTS, PROJECTION_FILE

from .traces import random_trace, tolerances_of


@pytest.fixture
def store(tmp_path: Path) -> GoldenStore:
    store = GoldenStore(tmp_path / "goldens")
    trace = random_trace(1)
    store.save(
        Golden(
            lane="cpu",
            trace=trace,
            case_digest="0",
            accepted={"time": "now", "author": "ada", "reason": "first"},
            tolerances=tolerances_of(trace),
        )
    )
    return store


def rewrite_head(store: GoldenStore, change: Callable[[dict], None]) -> None:
    """Edits a head and makes its digest right again, as an attacker would."""
    path = store.folder / "cpu" / "tiny" / HEAD
    head = json.loads(path.read_text())
    change(head)
    head.pop("digest", None)
    path.write_bytes(encode_json({**head, "digest": digest(encode_json(head))}))


def replace_file(store: GoldenStore, name: str, content: bytes) -> Path:
    """Puts other content under a golden's file, its digests made right."""
    path = store.folder / "cpu" / "tiny" / name
    path.write_bytes(content)
    rewrite_head(store, lambda head: head["files"].update({name: digest(content)}))
    return path


def test_every_flipped_byte_and_cut_is_noticed_and_the_file_named(store: GoldenStore) -> None:
    files = sorted(p for p in (store.folder / "cpu" / "tiny").iterdir())
    whole = store.load("cpu", "tiny").trace
    random = Random(0)
    for number in range(300):
        path = random.choice(files)
        content = path.read_bytes()
        place = random.randrange(len(content))
        if number % 3:
            flipped = content[place] ^ (1 << random.randrange(8))
            path.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        else:
            path.write_bytes(content[:place])
        with pytest.raises(DamagedFileError) as caught:
            store.load("cpu", "tiny")
        assert str(path) in str(caught.value)
        path.write_bytes(content)
    assert store.load("cpu", "tiny").trace == whole


class Explosive:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.path,))


def test_pickles_are_never_loaded(store: GoldenStore, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    array = tmp_path / "objects.npy"
    np.save(array, np.array([Explosive(trap)], dtype=object), allow_pickle=True)
    for content in (pickle.dumps(Explosive(trap)), array.read_bytes()):
        for name in (CURVES, EVENTS, PROJECTION_FILE):
            whole = store.load("cpu", "tiny")
            path = replace_file(store, name, content)
            with pytest.raises(DamagedFileError) as caught:
                store.load("cpu", "tiny")
            assert str(path) in str(caught.value)
            assert not trap.exists()
            store.save(whole)


@pytest.mark.parametrize(
    "content",
    [
        b'{"schema": 1, "curves": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"schema": 1, "curves": {"a": {"phase": "forward", "steps": [1], "values": [NaN]}}}',
        b'{"schema": 1, "curves": {"a": {"phase": "forward", "steps": [1], "values": ["1e3"]}}}',
        b'{"schema": 1, "curves": {"a": {"phase": "rm -rf", "steps": [1], "values": [1]}}}',
        b'{"schema": 1, "curves": {"a": {"phase": "forward", "steps": [1,1], "values": [1,2]}}}',
        b'{"schema": 1, "curves": {"a": {"phase": "forward", "steps": [1], "values": []}}}',
        b'{"schema": 2, "curves": {}}',
        b'{"schema": 1, "curves": {"a": 7}, "curves": {}}',
        b'{"schema": 1, "curves": {"a": {"phase": "data", "steps": [1], "values": [9], '
        b'"values": [1]}}}',
        b'{"schema": 1, "curves": {"a": {"steps": [' + b"9" * 10_000 + b"]}}}",
        b"[]",
        b"\xff\xfe",
        b"",
    ],
)
def test_strange_json_is_refused_by_name(store: GoldenStore, content: bytes) -> None:
    path = replace_file(store, CURVES, content)
    with pytest.raises(DamagedFileError) as caught:
        store.load("cpu", "tiny")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["case", "files", "provenance", "tolerances"])
def test_a_head_that_says_something_twice_is_refused(store: GoldenStore, key: str) -> None:
    path = store.folder / "cpu" / "tiny" / HEAD
    text = path.read_text()
    path.write_text(text.replace(f'\n "{key}":', f'\n "{key}": "for the reader",\n "{key}":', 1))
    with pytest.raises(DamagedFileError, match=f"{HEAD}: not JSON: the key '{key}' is there twice"):
        store.load("cpu", "tiny")


@pytest.mark.parametrize("size", [2**33, 2**40])
def test_giant_files_are_refused_unread(store: GoldenStore, size: int) -> None:
    for path in sorted((store.folder / "cpu" / "tiny").iterdir()):
        content = path.read_bytes()
        os.truncate(path, size)  # sparse: it costs no disk
        with pytest.raises(DamagedFileError, match="more than"):
            store.load("cpu", "tiny")
        path.write_bytes(content)


def test_a_tensor_file_that_claims_to_be_huge(store: GoldenStore) -> None:
    def tensor_file(header: bytes, data: bytes = b"") -> bytes:
        return struct.pack("<Q", len(header)) + header + data

    entry = {"dtype": "F32", "shape": [2**40, 24], "data_offsets": [0, 2**45]}
    for content in (
        tensor_file(json.dumps({"projections": entry}).encode()),
        struct.pack("<Q", 2**62) + b"{}",
        tensor_file(b"{" * 4096),
        tensor_file(json.dumps({"projections": {**entry, "shape": [-1, 24]}}).encode()),
        tensor_file(
            b'{"projections": {"dtype": "F32", "shape": [-1, 24], "data_offsets": [0, 0]}}'
        ),
        tensor_file(b'{"projections": ' + b"[" * 2000 + b"]" * 2000 + b"}"),
        tensor_file(b"[]"),
        b"\0" * 4,
    ):
        path = replace_file(store, PROJECTION_FILE, content)
        with pytest.raises(DamagedFileError) as caught:
            store.load("cpu", "tiny")
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "..", "a/b", ".hidden", ""])
def test_names_never_become_paths(store: GoldenStore, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_text("secret")
    rewrite_head(store, lambda head: head["files"].update({CURVES: name}))
    with pytest.raises(DamagedFileError):
        store.load("cpu", "tiny")
    with pytest.raises(ValueError, match="golden"):
        store.load("cpu", name)
    with pytest.raises(ValueError, match="golden"):
        store.load(name, "tiny")


def test_a_golden_of_another_case_is_refused(store: GoldenStore) -> None:
    (store.folder / "cpu" / "tiny").rename(store.folder / "cpu" / "other")
    with pytest.raises(DamagedFileError, match="cpu/tiny"):
        store.load("cpu", "other")


def test_pipes_and_folders_in_place_of_files(store: GoldenStore) -> None:
    path = store.folder / "cpu" / "tiny" / HEAD
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedFileError, match="regular"):
        store.load("cpu", "tiny")
    path.unlink()
    path.mkdir()
    with pytest.raises(DamagedFileError, match="regular"):
        store.load("cpu", "tiny")


def test_a_trace_survives_its_files_and_nothing_else(tmp_path: Path) -> None:
    trace = random_trace(3)
    save_trace(trace, tmp_path / "t")
    assert load_trace(tmp_path / "t") == trace
    (tmp_path / "t" / EVENTS).unlink()
    with pytest.raises(DamagedFileError, match=EVENTS):
        load_trace(tmp_path / "t")


FIELDS = (
    "accepted",
    "calibration",
    "case_digest",
    "detectable_effect",
    "files",
    "provenance",
    "tolerances",
)


@pytest.mark.parametrize("name", FIELDS)
def test_a_head_of_another_form_is_refused_by_file_and_field(store: GoldenStore, name: str) -> None:
    path = store.folder / "cpu" / "tiny" / HEAD
    whole = path.read_bytes()
    # A digest may be any text, and an environment any object.
    wrong = [None, 3, [], [1], True, {"a": [1]} if name == "files" else 1.5]
    for value in wrong:
        rewrite_head(store, lambda head, value=value: head.update({name: value}))
        for read in (store.head, store.load):
            with pytest.raises(DamagedFileError) as raised:
                read("cpu", "tiny")
            assert str(raised.value).startswith(f"{path}: ")
            assert f"$.{name}" in str(raised.value)
        path.write_bytes(whole)
    rewrite_head(store, lambda head: head.pop(name))
    with pytest.raises(DamagedFileError, match=f"missing required field `{name}`"):
        store.load("cpu", "tiny")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda head: head.update(more=1), "unknown field `more`"),
        (lambda head: head["accepted"].update(time=3), "accepted"),
        (lambda head: head["detectable_effect"].update(a=True), "detectable_effect"),
        (lambda head: head["tolerances"].update(a={"steps": ["1"], "values": [1.0]}), "steps"),
        (lambda head: head["tolerances"].update(a={"steps": [1.5], "values": [1.0]}), "steps"),
        (lambda head: head["tolerances"].update(a={"steps": [1], "values": []}), "1 steps and 0"),
        (lambda head: head.update(canaries={"proven_against": 3, "faults": {}}), "proven_against"),
        (lambda head: head.update(canaries={"faults": {}}), "proven_against"),
    ],
)
def test_a_detail_of_another_form_is_refused(
    store: GoldenStore, change: Callable[[dict], None], text: str
) -> None:
    rewrite_head(store, change)
    with pytest.raises(DamagedFileError, match=text):
        store.load("cpu", "tiny")
