"""Input files as blocks of rows: JSONL and Parquet, streamed, resumable at any block."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpmoe.data.encode import ROW_FIELDS, ConversationRow, SynthRow, check_conversation
from vpmoe.data.errors import DataError

_BLOCK_BYTES = 1 << 19
_PARQUET_ROWS = 256
_PARQUET_MAGIC = b"PAR1"
_PARQUET_FIELDS = ("synth_id", "messages", *ROW_FIELDS)
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Position:
    """Where reading goes on: in a JSONL file a byte offset, in Parquet a row; and the line."""

    offset: int = 0
    line: int = 1


@dataclass(frozen=True)
class Block:
    """Some rows as they lie in a file.

    Attributes:
        name: the file's name, without its folder.
        first_line: number of the first row, from 1.
        payload: lines of JSON, or an Arrow IPC stream.
        arrow: which of the two.
        after: where the next block begins.
    """

    name: str
    first_line: int
    payload: bytes
    arrow: bool
    after: Position


@dataclass(frozen=True)
class InputFile:
    """An input file: name, size and digest identify it; its folder does not."""

    path: Path
    size: int
    sha256: str
    arrow: bool
    rows: int | None
    modified: int

    @property
    def extent(self) -> int:
        """The offset at which the file ends."""
        return self.size if self.rows is None else self.rows

    def check_unchanged(self) -> None:
        """Raises DataError when the file was written to since it was opened."""
        status = self.path.stat()
        if (status.st_size, status.st_mtime_ns) != (self.size, self.modified):
            raise DataError(f"{self.path} changed while it was read; build again")


def open_input(path: Path) -> InputFile:
    """Reads what identifies an input file.

    Raises:
        DataError: missing, unreadable, or a broken Parquet file.
    """
    try:
        status = path.stat()
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            arrow = stream.read(4) == _PARQUET_MAGIC or path.suffix == ".parquet"
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    rows = None
    if arrow:
        rows = _open_parquet(path).metadata.num_rows
    return InputFile(path, status.st_size, digest, arrow, rows, status.st_mtime_ns)


def read_blocks(file: InputFile, start: Position) -> Iterator[Block]:
    """Blocks of a file from a position on.

    Raises:
        DataError: the file cannot be read; names file and place.
    """
    try:
        yield from (_parquet_blocks if file.arrow else _jsonl_blocks)(file, start)
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read: {error}") from error


def _jsonl_blocks(file: InputFile, start: Position) -> Iterator[Block]:
    offset, line = start.offset, start.line
    with file.path.open("rb") as stream:
        stream.seek(offset)
        # A file that grows is refused at the end; it must not be chased until then.
        while offset < file.size and (chunk := stream.read(_BLOCK_BYTES)):
            if not chunk.endswith(b"\n"):
                chunk += stream.readline()
            after = Position(offset + len(chunk), line + chunk.count(b"\n"))
            payload = chunk.removeprefix(_BOM) if offset == 0 else chunk
            yield Block(file.path.name, line, payload, False, after)
            offset, line = after.offset, after.line


def _open_parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: no whole Parquet file: {error}") from error


def _parquet_blocks(file: InputFile, start: Position) -> Iterator[Block]:
    import pyarrow

    parquet = _open_parquet(file.path)
    columns = [name for name in _PARQUET_FIELDS if name in parquet.schema_arrow.names]
    row = 0
    for group in range(parquet.num_row_groups):
        group_rows = parquet.metadata.row_group(group).num_rows
        if row + group_rows <= start.offset:
            row += group_rows
            continue
        try:
            for batch in parquet.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=columns):
                skip = max(0, min(start.offset - row, batch.num_rows))
                row += batch.num_rows
                if skip == batch.num_rows:
                    continue
                sink = pyarrow.BufferOutputStream()
                with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
                    writer.write_batch(batch.slice(skip))
                payload = sink.getvalue().to_pybytes()
                first = row - batch.num_rows + skip + 1
                yield Block(file.path.name, first, payload, True, Position(row, row + 1))
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file.path}: broken near row {row + 1}: {error}") from error


@dataclass(frozen=True)
class ParsedRow:
    """A row to encode.

    Attributes:
        row_id: `synth_id`, or the file's name and line.
        line: number in the file, from 1.
        row: its content.
    """

    row_id: str
    line: int
    row: SynthRow | ConversationRow


def parse_block(block: Block) -> tuple[list[ParsedRow], int]:
    """Rows of a block, and how many were skipped because a field is empty.

    Raises:
        DataError: the first row that cannot be used, with file and line.
    """
    rows, skipped = [], 0
    for line, value in _arrow_rows(block) if block.arrow else _json_rows(block):
        try:
            parsed = _parse_row(value)
        except DataError as error:
            raise DataError(f"{block.name}:{line}: {error}") from error
        if parsed is None:
            skipped += 1
            continue
        row_id = value.get("synth_id")
        if not isinstance(row_id, str | int | None) or isinstance(row_id, bool):
            raise DataError(f"{block.name}:{line}: `synth_id` must be a text, found {row_id!r}")
        if row_id is None or row_id == "":
            row_id = f"{block.name}:{line}"
        rows.append(ParsedRow(str(row_id), line, parsed))
    return rows, skipped


def _json_rows(block: Block) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, raw in enumerate(block.payload.split(b"\n"), block.first_line):
        if not raw.strip():
            continue
        try:
            value = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{block.name}:{number}: invalid UTF-8 at byte {error.start} of the line"
            ) from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{block.name}:{number}: no JSON: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"{block.name}:{number}: a row must be a JSON object")
        yield number, value


def _arrow_rows(block: Block) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow

    with pyarrow.ipc.open_stream(block.payload) as reader:
        table = reader.read_all()
    for number in range(table.num_rows):
        line = block.first_line + number
        try:
            value = {name: table[name][number].as_py() for name in table.column_names}
        except UnicodeDecodeError as error:
            raise DataError(f"{block.name}:{line}: invalid UTF-8: {error}") from error
        yield line, value


def _parse_row(value: Mapping[str, Any]) -> SynthRow | ConversationRow | None:
    if value.get("messages") is not None:
        messages = value["messages"]
        if not isinstance(messages, Sequence) or isinstance(messages, str):
            raise DataError(f"`messages` must be a list, found {messages!r:.80}")
        _check_text(messages)
        row = ConversationRow(messages)
        check_conversation(row)
        return row
    texts = []
    for name in ROW_FIELDS:
        if name not in value:
            raise DataError(f"no field `{name}`; a row has {', '.join(ROW_FIELDS)}, or `messages`")
        text = value[name]
        if text is None or text == "" or (isinstance(text, str) and text.isspace()):
            return None
        if not isinstance(text, str):
            raise DataError(f"`{name}` must be a text, found {text!r:.80}")
        _check_text(text)
        texts.append(text)
    return SynthRow(*texts)


def _check_text(value: Any) -> None:
    """Refuses lone surrogates, which JSON can spell and UTF-8 cannot."""
    if isinstance(value, str):
        if value.isascii():
            return
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"lone surrogate U+{ord(value[error.start]):04X} at character {error.start}"
            ) from error
    elif isinstance(value, Mapping):
        for name, item in value.items():
            _check_text(name)
            _check_text(item)
    elif isinstance(value, Sequence):
        for item in value:
            _check_text(item)
