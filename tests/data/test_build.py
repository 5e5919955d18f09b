"""The builder: the same bytes on any number of workers, in order, and nothing half-built."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from vpmoe.data import build as build_module
from vpmoe.data import build_folder
from vpmoe.data import rows as rows_module
from vpmoe.data.build import BuildProgress, build_dataset
from vpmoe.data.dataset_files import open_shards, read_manifest, verify_dataset
from vpmoe.data.errors import DataError
from vpmoe.tokenizer import O200kHarmonyTokenizer

MakeRows = Callable[..., list[dict[str, str]]]
WriteRows = Callable[..., Path]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks from little input."""
    monkeypatch.setattr(rows_module, "_BLOCK_BYTES", 600)
    monkeypatch.setattr(rows_module, "_PARQUET_ROWS", 3)


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _texts(folder: Path, tokenizer: O200kHarmonyTokenizer, split: str) -> list[str]:
    texts = []
    for shard in open_shards(folder, read_manifest(folder), (split,)):
        for start, length in zip(shard.starts, shard.lengths, strict=True):
            texts.append(tokenizer.detokenize(shard.arrays["tokens"][start : start + length]))
    return texts


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("kind", "many"), [("jsonl", 2), ("parquet", 4)])
def test_bytes_do_not_depend_on_workers(
    tmp_path: Path,
    make_rows: MakeRows,
    write_rows: WriteRows,
    vocabulary: Path,
    kind: str,
    many: int,
) -> None:
    """`test_kill.py` builds with 1, 2 and 4 in turn."""
    rows = make_rows(60)
    path = write_rows(tmp_path / "rows.jsonl", rows)
    if kind == "parquet":
        path = tmp_path / "rows.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)
    settings: dict[str, Any] = {"valid_fraction": "0.2", "rows_per_shard": 11}
    outputs = []
    for workers in (1, many):
        output = tmp_path / f"out{workers}"
        build_dataset([path], output, workers=workers, vocabulary=vocabulary, **settings)
        outputs.append(_files(output))
        list(verify_dataset(output))
    assert outputs[0] == outputs[1]
    assert "manifest.json" in outputs[0]


@pytest.mark.usefixtures("small_blocks")
def test_parquet_and_jsonl_give_the_same_documents(
    tmp_path: Path, make_rows: MakeRows, write_rows: WriteRows, vocabulary: Path
) -> None:
    rows = make_rows(20)
    jsonl = write_rows(tmp_path / "a.jsonl", rows)
    parquet = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet, row_group_size=6)
    for path in (jsonl, parquet):
        build_dataset([path], tmp_path / path.suffix[1:], vocabulary=vocabulary)
    ours, theirs = (_files(tmp_path / name / "train") for name in ("jsonl", "parquet"))
    assert ours == theirs


def test_order_is_kept_and_the_split_is_by_hash_of_the_id(
    tmp_path: Path,
    make_rows: MakeRows,
    write_rows: WriteRows,
    vocabulary: Path,
    tokenizer: O200kHarmonyTokenizer,
) -> None:
    rows = make_rows(50, 1) + make_rows(50, 2)
    paths = [
        write_rows(tmp_path / "one.jsonl", rows[:50]),
        write_rows(tmp_path / "two.jsonl", rows[50:]),
    ]
    output = tmp_path / "out"
    build_dataset(paths, output, valid_fraction=0.3, rows_per_shard=8, vocabulary=vocabulary)
    threshold = int(Decimal("0.3") * 2**64)
    expected: dict[str, list[str]] = {"train": [], "valid": []}
    for row in rows:
        digest = hashlib.blake2b(row["synth_id"].encode(), digest_size=8).digest()
        split = "valid" if int.from_bytes(digest, "big") < threshold else "train"
        expected[split].append(row["query"])
    for split, queries in expected.items():
        texts = _texts(output, tokenizer, split)
        assert len(texts) == len(queries) > 10
        for text, query in zip(texts, queries, strict=True):
            assert f"<|start|>user<|message|>{query}<|end|>" in text
        facts = read_manifest(output)["splits"][split]
        sizes = [shard["rows"] for shard in facts["shards"]]
        assert set(sizes[:-1]) <= {8}
        assert sum(sizes) == facts["rows"]


def test_one_shard_by_default(built: Path, tmp_path: Path, vocabulary: Path) -> None:
    rows = built.parent / "rows.jsonl"
    build_dataset([rows], tmp_path / "out", vocabulary=vocabulary)
    names = sorted(path.name for path in (tmp_path / "out" / "train").iterdir())
    assert {name[:8] for name in names} == {"shard_00"}
    assert not (tmp_path / "out" / "valid").exists()
    arrays = ("tokens", "lossmask", "span")
    assert {f"shard_00_{a}.{s}" for a in arrays for s in ("bin", "idx")} <= set(names)


def test_megatron_reads_what_its_own_builder_would_have_written(
    built: Path, tmp_path: Path
) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    for shard in open_shards(built, read_manifest(built)):
        for array, values in shard.arrays.items():
            prefix = str(shard.path(array)).removesuffix(".bin")
            theirs = IndexedDatasetBuilder(str(tmp_path / "x.bin"), dtype=values.dtype.type)
            dataset = IndexedDataset(prefix)
            assert len(dataset) == shard.rows
            for number in range(shard.rows):
                start = shard.starts[number]
                part = values[start : start + shard.lengths[number]]
                assert np.array_equal(dataset[number], part)
                theirs.add_document(torch.from_numpy(np.array(part)), [len(part)])
            theirs.finalize(str(tmp_path / "x.idx"))
            assert (tmp_path / "x.bin").read_bytes() == shard.path(array).read_bytes()
            assert (tmp_path / "x.idx").read_bytes() == shard.path(array, "idx").read_bytes()


def test_the_manifest_has_no_path_and_no_time(
    tmp_path: Path, make_rows: MakeRows, write_rows: WriteRows, vocabulary: Path
) -> None:
    contents = []
    for name in ("here", "there"):
        folder = tmp_path / name
        folder.mkdir()
        rows = write_rows(folder / "rows.jsonl", make_rows(5))
        build_dataset([rows], folder / "out", vocabulary=vocabulary)
        contents.append((folder / "out" / "manifest.json").read_bytes())
    assert contents[0] == contents[1]
    assert str(tmp_path).encode() not in contents[0]
    manifest = json.loads(contents[0])
    assert manifest["schema"] == "synth_kd_v1"
    assert manifest["tokenizer"]["vocab_size"] == 201_088
    assert manifest["splits"]["train"]["rows"] == 5


def test_supervised_eod_is_another_schema(built: Path, tmp_path: Path, vocabulary: Path) -> None:
    rows = [built.parent / "rows.jsonl"]
    result = build_dataset(rows, tmp_path / "out", supervise_eod=True, vocabulary=vocabulary)
    assert result.manifest["schema"] == "synth_kd_v1+eod"
    list(verify_dataset(tmp_path / "out"))


def test_the_same_build_again_does_nothing_and_another_is_refused(
    built: Path, tmp_path: Path, vocabulary: Path
) -> None:
    rows = [built.parent / "rows.jsonl"]
    output = tmp_path / "out"
    assert not build_dataset(rows, output, vocabulary=vocabulary).existed
    before = _files(output)
    assert build_dataset(rows, output, vocabulary=vocabulary, workers=2).existed
    with pytest.raises(DataError, match="other input or settings"):
        build_dataset(rows, output, vocabulary=vocabulary, profile="synth_kd_v1")
    assert _files(output) == before


def test_files_of_somebody_else_are_not_touched(
    built: Path, tmp_path: Path, vocabulary: Path
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "shard_00_tokens.bin").write_bytes(b"precious")
    with pytest.raises(DataError, match="no manifest"):
        build_dataset([built.parent / "rows.jsonl"], tmp_path, vocabulary=vocabulary)
    assert (tmp_path / "train" / "shard_00_tokens.bin").read_bytes() == b"precious"


def test_two_builds_of_one_folder_are_refused(
    built: Path, tmp_path: Path, vocabulary: Path
) -> None:
    import fcntl
    import os

    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(DataError, match="another build"):
            build_dataset([built.parent / "rows.jsonl"], tmp_path, vocabulary=vocabulary)
    finally:
        os.close(descriptor)


def test_duplicates(
    tmp_path: Path,
    make_rows: MakeRows,
    write_rows: WriteRows,
    vocabulary: Path,
    tokenizer: O200kHarmonyTokenizer,
) -> None:
    rows = make_rows(6)
    rows[4]["synth_id"] = rows[1]["synth_id"]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"rows\.jsonl:5: .*occurred before"):
        build_dataset([path], tmp_path / "refused", vocabulary=vocabulary)
    assert not (tmp_path / "refused" / "manifest.json").exists()
    output = tmp_path / "out"
    result = build_dataset([path], output, duplicates="skip", vocabulary=vocabulary)
    assert result.manifest["skipped"]["duplicate"] == 1
    texts = _texts(output, tokenizer, "train")
    kept = [row["query"] for n, row in enumerate(rows) if n != 4]
    assert all(query in text for query, text in zip(kept, texts, strict=True))


def test_rows_with_an_empty_field_are_skipped_and_counted(
    tmp_path: Path, make_rows: MakeRows, write_rows: WriteRows, vocabulary: Path
) -> None:
    rows: list[dict[str, Any]] = [*make_rows(5)]
    rows[0]["query"] = ""
    rows[2]["synthetic_reasoning"] = None
    rows[3]["synthetic_answer"] = " \n"
    path = write_rows(tmp_path / "rows.jsonl", rows)
    result = build_dataset([path], tmp_path / "out", vocabulary=vocabulary)
    assert result.manifest["skipped"]["empty"] == 3
    assert result.manifest["splits"]["train"]["rows"] == 2
    only = write_rows(tmp_path / "empty.jsonl", rows[:1])
    with pytest.raises(DataError, match=r"no usable row.*1 with an empty field"):
        build_dataset([only], tmp_path / "none", vocabulary=vocabulary)


def test_messages_rows_are_built_as_they_are(
    tmp_path: Path,
    write_rows: WriteRows,
    vocabulary: Path,
    tokenizer: O200kHarmonyTokenizer,
) -> None:
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "channel": "final", "content": "a"},
    ]
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": messages}])
    build_dataset([path], tmp_path / "out", vocabulary=vocabulary)
    assert _texts(tmp_path / "out", tokenizer, "train") == [
        "<|start|>user<|message|>q<|end|><|start|>assistant<|channel|>final<|message|>a"
        "<|return|><|endoftext|>"
    ]
    bad = [{"messages": [*messages, {"role": "robot", "content": "x"}]}]
    path = write_rows(tmp_path / "bad.jsonl", bad)
    with pytest.raises(DataError, match=r"bad\.jsonl:1: message 2: unknown role 'robot'"):
        build_dataset([path], tmp_path / "bad", vocabulary=vocabulary)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"valid_fraction": 1.5}, "--valid-fraction 1.5: must be in"),
        ({"valid_fraction": "x"}, "--valid-fraction x: no number"),
        ({"rows_per_shard": 0}, "--rows-per-shard 0: must be at least 1"),
        ({"workers": 0}, "--workers 0: must be at least 1"),
        ({"duplicates": "x"}, "--duplicates x: choose from error, skip"),
        ({"profile": "x"}, "--profile x: unknown profile; choose from"),
    ],
)
def test_settings_without_meaning_are_refused(
    built: Path, tmp_path: Path, vocabulary: Path, settings: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        build_dataset(
            [built.parent / "rows.jsonl"], tmp_path / "out", vocabulary=vocabulary, **settings
        )
    assert not (tmp_path / "out").exists()


def test_progress_ends_at_the_whole(built: Path, tmp_path: Path, vocabulary: Path) -> None:
    seen: list[BuildProgress] = []
    rows = built.parent / "rows.jsonl"
    build_dataset([rows], tmp_path / "out", vocabulary=vocabulary, progress=seen.append)
    assert (seen[-1].done, seen[-1].total) == (rows.stat().st_size, rows.stat().st_size)
    assert seen[-1].rows == 40


def test_input_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, make_rows: MakeRows, write_rows: WriteRows, vocabulary: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", make_rows(3))

    def grow(_: BuildProgress) -> None:
        with path.open("a") as stream:
            stream.write("\n")

    with pytest.raises(DataError, match="changed while"):
        build_dataset([path], tmp_path / "out", vocabulary=vocabulary, progress=grow)
    assert not (tmp_path / "out" / "manifest.json").exists()


_FULL_DISK = """
import resource, signal, sys
from vpmoe.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(["data", "build", *sys.argv[2:]]))
"""


def test_a_full_disk_is_a_clear_error_and_the_build_goes_on_after(
    built: Path, tmp_path: Path, vocabulary: Path
) -> None:
    rows, output = built.parent / "rows.jsonl", tmp_path / "out"
    words = ["--input", rows, "--output", output, "--vocabulary", vocabulary]
    # -B: under the limit Python would leave truncated .pyc files behind.
    command = [sys.executable, "-B", "-c", _FULL_DISK, "4000", *map(str, words)]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 2, failed.stderr
    assert "File too large" in failed.stderr
    assert "make room" in failed.stderr
    assert "Traceback" not in failed.stderr
    with pytest.raises(DataError, match="unfinished"):
        read_manifest(output)
    build_dataset([rows], output, vocabulary=vocabulary)
    build_dataset([rows], tmp_path / "clean", vocabulary=vocabulary)
    assert _files(output) == _files(tmp_path / "clean")


class _CrashError(Exception):
    pass


@pytest.mark.usefixtures("small_blocks")
def test_dying_at_any_step_leaves_nothing_that_is_accepted_and_resumes(
    tmp_path: Path,
    make_rows: MakeRows,
    write_rows: WriteRows,
    vocabulary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every atomic write of a build is one after which it dies, before or after the write."""
    from vpmoe.data import shard_writer

    path = write_rows(tmp_path / "rows.jsonl", make_rows(12))
    settings: dict[str, Any] = {
        "valid_fraction": 0.3,
        "rows_per_shard": 5,
        "vocabulary": vocabulary,
        "checkpoint_seconds": 0.0,
    }
    build_dataset([path], tmp_path / "clean", **settings)
    clean = _files(tmp_path / "clean")
    real = build_module.write_atomically
    writes = 0

    def dying(at: int, after: bool) -> Callable[[Path, bytes], None]:
        def write(target: Path, content: bytes) -> None:
            nonlocal writes
            writes += 1
            if writes == at and not after:
                raise _CrashError
            real(target, content)
            if writes == at and after:
                raise _CrashError

        return write

    died = 0
    for at in range(1, 60):
        for after in (False, True):
            output = tmp_path / f"out-{at}-{after}"
            writes = 0
            with monkeypatch.context() as patch:
                write = dying(at, after)
                patch.setattr(build_module, "write_atomically", write)
                patch.setattr(build_folder, "write_atomically", write)
                patch.setattr(shard_writer, "write_atomically", write)
                try:
                    build_dataset([path], output, **settings)
                except _CrashError:
                    died += 1
                    if not (output / "manifest.json").exists():
                        with pytest.raises(DataError, match="unfinished"):
                            list(verify_dataset(output))
                else:
                    assert died > 20
                    return
            build_dataset([path], output, **settings)
            assert _files(output) == clean
    pytest.fail("the build has more writes than were tried")
