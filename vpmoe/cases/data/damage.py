"""Records of damaged datasets: what verification and the loader say, and that neither accepts."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from validation.running.recorder import Recorder
from vpmoe.cases.data.refusing import record_refusal
from vpmoe.data.dataset_files import open_shards, read_manifest, verify_dataset
from vpmoe.data.documents import DocumentStore, verify_files
from vpmoe.data.layout import MANIFEST, RECORD, document_digest, record_checks, seal

_SHARD = "train/shard_01"
_DOCUMENT = 2  # of the shard: neither its first nor its last

Damage = Callable[[Path], None]


def record_damage(recorder: Recorder, built: Path, folder: Path) -> None:
    """Damages copies of a dataset, each in one way.

    Args:
        recorder: of this process.
        built: a dataset of several shards and two splits.
        folder: an empty one.
    """
    whole = {name: check(built) for name, check in _CHECKS.items()}
    recorder.discrete("damage/none", whole, tensor="accepted", phase="data")
    for name, damage in _damages(built).items():
        damaged = folder / "dataset"
        shutil.copytree(built, damaged)
        damage(damaged)
        for check, read in _CHECKS.items():
            record_refusal(recorder, f"damage/{name}/{check}", partial(read, damaged), folder)
        shutil.rmtree(damaged)
    shutil.copytree(built, folder / "dataset")
    store = DocumentStore(folder / "dataset", "train")
    copied = copy.deepcopy(store)  # as a process that loads data gets it
    same = all(np.array_equal(store.read(3)[name], value) for name, value in copied.read(3).items())
    recorder.invariant(
        "damage/none", "a copied store reads the same", float(not same), 0.0, phase="data"
    )
    before = store.read(0)["span"].tolist()
    _flip("train/shard_00_span.bin", 0)(folder / "dataset")
    record_refusal(
        recorder, "damage/after_opening/read", lambda: store.read(0)["span"].tolist(), folder
    )
    recorder.discrete("damage/after_opening", before, tensor="span", phase="data")
    shutil.rmtree(folder / "dataset" / "valid")
    manifest = read_manifest(built)
    manifest["splits"]["valid"] = {"rows": 0, "tokens": 0, "shards": []}
    (folder / "dataset" / MANIFEST).write_bytes(seal(manifest))
    record_refusal(
        recorder, "damage/no_split", lambda: DocumentStore(folder / "dataset", "valid"), folder
    )


def _verify(folder: Path) -> int:
    return sum(shard.rows for shard in verify_dataset(folder))


def _share(folder: Path) -> None:
    """What a training's ranks check before it begins."""
    for part in range(2):
        verify_files(folder, part, 2)


def _load(folder: Path) -> int:
    """What a training reads, without whole files before."""
    stores = [DocumentStore(folder, split) for split in ("train", "valid")]
    return sum(len(store.read(n)["tokens"]) for store in stores for n in range(len(store)))


_CHECKS: Mapping[str, Callable[[Path], Any]] = {"verify": _verify, "share": _share, "load": _load}


def _damages(built: Path) -> Mapping[str, Damage]:
    shard = open_shards(built, read_manifest(built), ("train",))[1]
    start, length = int(shard.starts[_DOCUMENT]), int(shard.lengths[_DOCUMENT])
    damages: dict[str, Damage] = {
        "token": _flip(f"{_SHARD}_tokens.bin", 4 * (start + 1)),
        "mask": _flip(f"{_SHARD}_lossmask.bin", start + 5),
        "span": _flip(f"{_SHARD}_span.bin", start + length - 1),
        "record": _flip(f"{_SHARD}_documents.bin", RECORD.itemsize * _DOCUMENT + 3),
        "record_of_other_shard": _copied("train/shard_00_documents.bin", f"{_SHARD}_documents.bin"),
        "index_header": _flip(f"{_SHARD}_tokens.idx", 3),
        "index_lengths": _flip(f"{_SHARD}_tokens.idx", 34 + 4 * _DOCUMENT),
        "index_pointers": _flip(f"{_SHARD}_span.idx", 34 + 4 * shard.rows + 8 * _DOCUMENT),
        "index_documents": _flip(f"{_SHARD}_lossmask.idx", 34 + 12 * shard.rows + 8 * _DOCUMENT),
        "foreign_id": _token(start + 3, 201_088),
        "negative_id": _token(start + 3, -1),
        "other_id": _token(start + 3, 5),
        "swapped_sidecars": _swapped(f"{_SHARD}_lossmask.bin", f"{_SHARD}_span.bin"),
        "missing": lambda folder: (folder / f"{_SHARD}_span.bin").unlink(),
        "folder": _made_folder(f"{_SHARD}_tokens.idx"),
        "further_file": _written("train/x.bin", b""),
        "manifest_missing": lambda folder: (folder / MANIFEST).unlink(),
        "manifest_folder": _made_folder(MANIFEST),
        "manifest_changed": _changed(lambda m: m["skipped"].update(empty=9), sealed=False),
        "manifest_no_json": _written(MANIFEST, b"{"),
        "manifest_other_kind": _written(MANIFEST, b"[]"),
        "other_schema": _changed(lambda m: m.update(schema="synth_kd_v0")),
        "other_tokenizer": _changed(lambda m: m["tokenizer"].update(vocab_size=200_019)),
        "other_size": _changed(_longer),
        "broken_schema": _relabelled(start, start + length),
    }
    arrays = {
        "tokens.bin": 4,
        "lossmask.bin": 1,
        "span.bin": 1,
        "documents.bin": 0,
        "tokens.idx": 0,
    }
    for name, size in arrays.items():
        kept = size * (start + 2) if size else RECORD.itemsize * _DOCUMENT
        damages[f"cut_{name}"] = _cut(f"{_SHARD}_{name}", kept)
    for place, size in (("header", 9), ("pointers", 34 + 4 * shard.rows + 20)):
        damages[f"cut_index_{place}"] = _cut(f"{_SHARD}_span.idx", size)
    damages["cut_index_documents"] = _cut(f"{_SHARD}_span.idx", 34 + 12 * shard.rows + 24)
    damages["grown"] = _grown(f"{_SHARD}_tokens.bin")
    damages["records_missing"] = _records_missing
    return damages


def _edit(name: str, change: Callable[[bytearray], Any]) -> Damage:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        change(content)
        (folder / name).write_bytes(content)

    return damage


def _flip(name: str, at: int) -> Damage:
    def change(content: bytearray) -> None:
        content[at] ^= 1

    return _edit(name, change)


def _cut(name: str, size: int) -> Damage:
    def change(content: bytearray) -> None:
        del content[size:]

    return _edit(name, change)


def _grown(name: str) -> Damage:
    return _edit(name, lambda content: content.extend(b"\0\0\0\0"))


def _token(at: int, value: int) -> Damage:
    def change(content: bytearray) -> None:
        content[4 * at : 4 * at + 4] = np.int32(value).tobytes()

    return _edit(f"{_SHARD}_tokens.bin", change)


def _copied(source: str, target: str) -> Damage:
    def damage(folder: Path) -> None:
        shutil.copy(folder / source, folder / target)

    return damage


def _written(name: str, content: bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def _swapped(one: str, other: str) -> Damage:
    def damage(folder: Path) -> None:
        first, second = ((folder / name).read_bytes() for name in (one, other))
        (folder / one).write_bytes(second)
        (folder / other).write_bytes(first)

    return damage


def _made_folder(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def _records_missing(folder: Path) -> None:
    """A file is cut, and the one that would say in which document is missing and comes later."""
    _cut(f"{_SHARD}_tokens.bin", 40)(folder)
    (folder / f"{_SHARD}_documents.bin").unlink()
    manifest = json.loads((folder / MANIFEST).read_bytes())
    shard = manifest["splits"]["train"]["shards"][1]
    shard["files"] = dict(reversed(shard["files"].items()))  # its digest is that of sorted keys
    (folder / MANIFEST).write_bytes(json.dumps(manifest).encode())


def _changed(change: Callable[[dict[str, Any]], Any], sealed: bool = True) -> Damage:
    """A manifest that somebody edited, and sealed again or not."""

    def damage(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        change(manifest)
        content = seal(manifest) if sealed else json.dumps(manifest).encode()
        (folder / MANIFEST).write_bytes(content)

    return damage


def _longer(manifest: dict[str, Any]) -> None:
    manifest["splits"]["train"]["shards"][1]["tokens"] += 1


def _relabelled(start: int, end: int) -> Damage:
    """A document in a span that there is not, whose digests and manifest were made to fit."""

    def damage(folder: Path) -> None:
        span = bytearray((folder / f"{_SHARD}_span.bin").read_bytes())
        span[start] = 3
        (folder / f"{_SHARD}_span.bin").write_bytes(span)
        records = np.fromfile(folder / f"{_SHARD}_documents.bin", RECORD)
        records["span"][_DOCUMENT] = np.void(document_digest(bytes(span[start:end])))
        records["check"] = record_checks(records)
        records.tofile(folder / f"{_SHARD}_documents.bin")
        _changed(lambda manifest: _sealed_again(manifest, folder))(folder)

    return damage


def _sealed_again(manifest: dict[str, Any], folder: Path) -> None:
    files = manifest["splits"]["train"]["shards"][1]["files"]
    for name, facts in files.items():
        content = (folder / "train" / name).read_bytes()
        facts["sha256"] = hashlib.sha256(content).hexdigest()
