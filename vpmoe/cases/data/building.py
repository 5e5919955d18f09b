"""Records of built datasets: files, documents, splits; and that no way to build changes them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from validation.running.recorder import Recorder
from vpmoe.cases.data.refusing import record_refusal
from vpmoe.data import encode_pool, shard_writer
from vpmoe.data import rows as rows_module
from vpmoe.data.build import BuildProgress, BuildResult, build_dataset
from vpmoe.data.build_folder import STATE, locked
from vpmoe.data.documents import DocumentStore
from vpmoe.data.layout import MANIFEST
from vpmoe.data.rows import Position, open_input, read_blocks
from vpmoe.runtime.patches import replaced

_SETTINGS: dict[str, Any] = {"valid_fraction": "0.3", "rows_per_shard": 7}


class _StoppedError(Exception):
    """A build that is killed."""


def record_build(recorder: Recorder, rows: Path, chats: Path, folder: Path) -> Path:
    """Builds the same rows in every way, records one result and the laws of the others.

    Args:
        recorder: of this process.
        rows: SYNTH rows, without ids.
        chats: conversations in OpenAI's form.
        folder: an empty one.

    Returns:
        The dataset of the rows, in several shards and two splits.
    """
    first = folder / "first"
    with replaced(rows_module, "_BLOCK_BYTES", 1500), replaced(rows_module, "_PARQUET_ROWS", 3):
        progress: list[BuildProgress] = []
        result = build_dataset([rows], first, progress=progress.append, **_SETTINGS)
        seen = [[p.done, p.total, p.rows, p.tokens] for p in progress]
        recorder.discrete("build/progress", seen, phase="data")
        record_dataset(recorder, "build", result.manifest, first)
        expected = contents(first)
        for name, make in _ways(rows, folder):
            place, output = f"build/{name}", folder / name
            record_refusal(recorder, place, partial(_made, make, output), folder)
            _compare(recorder, place, expected, contents(output))
        _record_shards(recorder, rows, expected, folder)
        _record_formats(recorder, chats, folder)
    return first


def record_dataset(
    recorder: Recorder, place: str, manifest: Mapping[str, Any], folder: Path
) -> None:
    """Records a dataset: its manifest field by field, and every document of both splits."""
    for name, value in manifest.items():
        if name != "splits":
            recorder.discrete(f"{place}/manifest", value, tensor=name, phase="data")
    for split, facts in manifest["splits"].items():
        numbers = {name: facts[name] for name in ("rows", "tokens")}
        recorder.discrete(f"{place}/manifest", numbers, tensor=split, phase="data")
        for shard in facts["shards"]:
            where = f"{place}/{split}/{shard['name']}"
            numbers = {name: shard[name] for name in ("rows", "tokens")}
            recorder.discrete(where, numbers, tensor="size", phase="data")
            for name, file in shard["files"].items():
                recorder.discrete(where, file, tensor=name, phase="data")
        if facts["rows"]:
            store = DocumentStore(folder, split)
            for document in range(len(store)):
                value = [*store.locate(document), store.record(document)]
                where = f"{place}/{split}/document{document}"
                recorder.discrete(where, value, tensor="record", phase="data")


def _made(make: Callable[[Path], BuildResult], output: Path) -> dict[str, bool]:
    made = make(output)
    return {"resumed": made.resumed, "existed": made.existed}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _ways(rows: Path, folder: Path) -> Sequence[tuple[str, Callable[[Path], BuildResult]]]:
    """Other ways to the same bytes, but for the manifest's inputs."""
    table = pyarrow.Table.from_pylist(
        [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    )
    # A row without an id has that of its file's name and line.
    parquet = folder / "parquet_rows" / rows.name
    parquet.parent.mkdir()
    shuffled = table.select(sorted(table.column_names))
    pyarrow.parquet.write_table(shuffled, parquet, row_group_size=8)

    def stopped(path: Path, output: Path) -> BuildResult:
        """Killed after every second block, with a checkpoint before or not, and started again."""
        for attempt in range(100):
            left, wait = [2], (1e9, 0.0)[attempt % 2]

            def stop(_: BuildProgress, left: list[int] = left) -> None:
                left[0] -= 1
                if not left[0]:
                    raise _StoppedError

            try:
                return build_dataset(
                    [path], output, progress=stop, checkpoint_seconds=wait, **_SETTINGS
                )
            except _StoppedError:
                (output / f".{STATE}.left").write_bytes(b"")
        raise RuntimeError("the build never ends")

    def again(output: Path) -> BuildResult:
        build_dataset([rows], output, **_SETTINGS)
        (output / STATE).write_bytes(b"")
        return build_dataset([rows], output, **_SETTINGS)

    return (
        ("two_workers", lambda output: build_dataset([rows], output, workers=2, **_SETTINGS)),
        ("parquet", lambda output: build_dataset([parquet], output, **_SETTINGS)),
        ("interrupted", lambda output: stopped(rows, output)),
        ("parquet_interrupted", lambda output: stopped(parquet, output)),
        ("again", again),
    )


def _record_shards(
    recorder: Recorder, rows: Path, expected: Mapping[str, bytes], folder: Path
) -> None:
    """One shard holds what several hold, and two files what one holds."""
    settings = _SETTINGS | {"rows_per_shard": None}
    build_dataset([rows], folder / "one_shard", **settings)
    one = contents(folder / "one_shard")
    recorder.discrete("build/one_shard", sorted(one), tensor="files", phase="data")
    for name in sorted(one):
        if name.endswith(".bin"):
            split, _, array = name.partition("/shard_00_")
            parts = sorted(n for n in expected if n.startswith(split) and n.endswith(array))
            whole = b"".join(expected[part] for part in parts)
            law = "shards in order hold what one holds"
            _law(recorder, "build/one_shard", law, one[name] == whole, f"{split}/{array}")
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    named = [{"synth_id": f"row-{n}"} | json.loads(line) for n, line in enumerate(lines)]
    texts = [json.dumps(row, ensure_ascii=False) + "\n" for row in named]
    files = {"whole": texts, "head": texts[:11], "tail": texts[11:]}
    paths = {name: folder / f"{name}.jsonl" for name in files}
    for name, some in files.items():
        paths[name].write_text("".join(some), encoding="utf-8")
    build_dataset([paths["whole"]], folder / "one_file", **_SETTINGS)
    build_dataset([paths["head"], paths["tail"]], folder / "two_files", **_SETTINGS)
    one, two = contents(folder / "one_file"), contents(folder / "two_files")
    _compare(recorder, "build/two_files", one, two)
    repeated = [paths["head"], paths["whole"]]
    made = build_dataset(repeated, folder / "skipped", duplicates="skip", **_SETTINGS)
    recorder.discrete("build/duplicates", made.manifest["skipped"], tensor="skipped", phase="data")
    _compare(recorder, "build/duplicates", one, contents(folder / "skipped"))
    record_refusal(
        recorder,
        "build/refused/duplicate",
        lambda: build_dataset(repeated, folder / "duplicate"),
        folder,
    )


def _record_formats(recorder: Recorder, chats: Path, folder: Path) -> None:
    """Conversations with tools, from JSONL and from Parquet, and their end supervised."""
    lines = chats.read_text(encoding="utf-8").splitlines()
    columns = [json.loads(line) for line in lines]
    # Parquet has one type for a column: arguments and contents as the text that they are.
    plain = [row for row in columns if row["synth_id"] in ("plain", "thinking", "older")]
    parquet, jsonl = folder / "chats.parquet", folder / "chats.jsonl"
    names = sorted({name for row in plain for name in row})
    table = pyarrow.table({name: [row.get(name) for row in plain] for name in names})
    pyarrow.parquet.write_table(table, parquet)
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in plain))
    options: dict[str, Any] = {"chat_format": "openai", "profile": "synth_kd_v1"}
    for path, name in ((jsonl, "jsonl"), (parquet, "parquet")):
        build_dataset([path], folder / f"chats_{name}", **options)
    _compare(
        recorder,
        "build/chats_parquet",
        contents(folder / "chats_jsonl"),
        contents(folder / "chats_parquet"),
    )
    made = build_dataset(
        [chats], folder / "chats", supervise_eod=True, ignore_columns=["source"], **options
    )
    record_dataset(recorder, "build/chats", made.manifest, folder / "chats")


def _compare(
    recorder: Recorder, place: str, expected: Mapping[str, bytes], found: Mapping[str, bytes]
) -> None:
    """A law for each file; of the manifest all but the inputs."""
    for name in sorted({*expected, *found}):
        a, b = expected.get(name), found.get(name)
        if name == MANIFEST and a is not None and b is not None:
            a, b = (_without_inputs(content) for content in (a, b))
        _law(recorder, place, "the same bytes as built in one go", a == b, name)


def _without_inputs(manifest: bytes) -> bytes:
    changing = ("inputs", "digest", "skipped", "config", "config_sha256")
    document = {k: v for k, v in json.loads(manifest).items() if k not in changing}
    return json.dumps(document).encode()


def record_build_refusals(recorder: Recorder, rows: Path, built: Path, folder: Path) -> None:
    """Records what a build refuses: settings, folders, a killed worker, a changed input, a disk.

    Args:
        recorder: of this process.
        rows: SYNTH rows.
        built: a dataset of them.
        folder: an empty one.
    """
    (folder / "foreign" / "train").mkdir(parents=True)
    (folder / "foreign" / "train" / "x").write_bytes(b"")
    (folder / "file").write_bytes(b"")
    for name, state in (("damaged", b"{"), ("partial", b'{"identity": {}, "file": 0}')):
        (folder / name).mkdir()
        (folder / name / STATE).write_bytes(state)
    (folder / "other").mkdir()
    (folder / "other" / STATE).write_bytes(b'{"identity": {}, "file": null}')
    blank = folder / "blank.jsonl"
    blank.write_bytes(b'\n{"query": ""}\n' * 2)
    changing = folder / "changing.jsonl"
    changing.write_bytes(rows.read_bytes())

    def build(output: str = "new", **settings: Any) -> Any:
        given: dict[str, Any] = {"inputs": [rows], "output": folder / output} | settings
        return build_dataset(**given)

    def grow(_: BuildProgress) -> None:
        with changing.open("ab") as stream:
            stream.write(b"\n")

    def write(name: str, number: int) -> Callable[..., None]:
        def fail(path: Path, content: bytes) -> None:
            del content
            raise OSError(number, os.strerror(number), str(path) if name else None)

        return fail

    refusals: dict[str, Callable[[], Any]] = {
        "fraction_no_number": lambda: build(valid_fraction="half"),
        "fraction_too_large": lambda: build(valid_fraction="1.5"),
        "rows_per_shard": lambda: build(rows_per_shard=0),
        "duplicates": lambda: build(duplicates="keep"),
        "chat_format": lambda: build(chat_format="x"),
        "profile": lambda: build(profile="x"),
        "workers": lambda: build(workers=0),
        "no_input": lambda: build(inputs=[]),
        "no_row": lambda: build("none", inputs=[blank]),
        "foreign_folder": lambda: build("foreign"),
        "a_file": lambda: build("file"),
        "damaged_state": lambda: build("damaged"),
        "partial_state": lambda: build("partial"),
        "other_state": lambda: build("other"),
        "other_dataset": lambda: build_dataset([blank], built),
        "changed_input": lambda: build("changed", inputs=[changing], progress=grow),
    }
    for name, call in refusals.items():
        record_refusal(recorder, f"build/refused/{name}", call, folder)
    with locked(folder / "locked"):
        record_refusal(recorder, "build/refused/locked", lambda: build("locked"), folder)
    for name, number, path in (
        ("full_disk", errno.ENOSPC, "named"),
        ("broken_disk", errno.EIO, ""),
        ("no_permission", errno.EACCES, "named"),
    ):
        with replaced(shard_writer, "write_atomically", write(path, number)):
            record_refusal(recorder, f"build/refused/{name}", partial(build, name), folder)
    with replaced(encode_pool, "ProcessPoolExecutor", _KilledPool):
        record_refusal(
            recorder, "build/refused/killed_worker", lambda: build("killed", workers=2), folder
        )
    with replaced(Path, "open", _forbidden):
        record_refusal(recorder, "build/refused/unreadable", lambda: open_input(rows), folder)
    file = open_input(rows)
    with replaced(Path, "open", _forbidden):
        record_refusal(
            recorder,
            "build/refused/unreadable_later",
            lambda: len(list(read_blocks(file, Position()))),
            folder,
        )


class _KilledPool:
    """A pool of processes one of which is killed."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def submit(self, *_: Any) -> Any:
        raise BrokenProcessPool

    def shutdown(self, **_: Any) -> None:
        pass


def _forbidden(path: Path, *_: Any, **__: Any) -> Any:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path.name)


def _law(recorder: Recorder, place: str, name: str, holds: bool, tensor: str) -> None:
    recorder.invariant(place, name, float(not holds), 0.0, phase="data", tensor=f"law/{tensor}")
