"""Input files as blocks of rows: JSONL and Parquet, streamed, resumable at any block."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vpmoe.data.encode import ROW_FIELDS, ConversationRow, SynthRow
from vpmoe.data.errors import DataError
from vpmoe.data.json_text import parse_json
from vpmoe.data.row_content import (
    CONVERSATION_FIELDS,
    HARMONY_CHAT,
    ID_FIELDS,
    METADATA_FIELDS,
    ChatOptions,
    parse_row,
    row_id,
)

_BLOCK_BYTES = 1 << 19
_PARQUET_ROWS = 256
MAX_ROW_BYTES = 32 * 2**20
"""Of a row in a file. A conversation of a million tokens has a fifth of this."""
_PARQUET_MAGIC = b"PAR1"
_BOM = b"\xef\xbb\xbf"
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


@dataclass(frozen=True)
class Position:
    """Where reading goes on: in a JSONL file a byte offset, in Parquet a row; and the line."""

    offset: int = 0
    line: int = 1


@dataclass(frozen=True)
class Block:
    """Some rows as they lie in a file.

    Attributes:
        path: the file, for messages; rows without an id have its name, without the folder.
        first_line: number of the first row, from 1.
        payload: lines of JSON, or an Arrow IPC stream.
        arrow: which of the two.
        after: where the next block begins.
    """

    path: Path
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
        status = _status(self.path)
        if (status.st_size, status.st_mtime_ns) != (self.size, self.modified):
            raise DataError(f"{self.path} changed while it was read; build again")


def open_input(path: Path) -> InputFile:
    """Reads what identifies an input file.

    Args:
        path: the file.

    Returns:
        Its size, digest, format and time of change.

    Raises:
        DataError: missing, unreadable, a folder, packed, or a Parquet file that is broken or has
            not the columns of rows.
    """
    status = _status(path)
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise DataError(f"{path}: cannot be read: it is {kind}; give JSONL or Parquet files")
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            start = stream.read(8)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}; give a file that can"
        ) from error
    for magic, name in _PACKED.items():
        if start.startswith(magic):
            raise DataError(f"{path}: is packed with {name}; unpack it first")
    arrow = start.startswith(_PARQUET_MAGIC) or path.suffix == ".parquet"
    rows = None
    if arrow:
        parquet = _open_parquet(path)
        _parquet_columns(path, parquet)
        rows = parquet.metadata.num_rows
    return InputFile(path, status.st_size, digest, arrow, rows, status.st_mtime_ns)


def read_blocks(file: InputFile, start: Position) -> Iterator[Block]:
    """Reads the blocks of a file from a position on.

    Args:
        file: the file.
        start: where to begin.

    Yields:
        The blocks, in order.

    Raises:
        DataError: the file cannot be read; names file and place.
    """
    try:
        yield from (_parquet_blocks if file.arrow else _jsonl_blocks)(file, start)
    except OSError as error:
        raise DataError(
            f"{file.path}: cannot be read: {error.strerror or error}; give a file that can"
        ) from error


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        link = f" (a link to {path.readlink()})" if path.is_symlink() else ""
        raise DataError(
            f"{path}: cannot be read: {error.strerror}{link}; give JSONL or Parquet files"
        ) from error
    except ValueError as error:  # a NUL in the name
        raise DataError(
            f"{str(path)!r}: cannot be read: {error}; give JSONL or Parquet files"
        ) from error


def _jsonl_blocks(file: InputFile, start: Position) -> Iterator[Block]:
    offset, line = start.offset, start.line
    with file.path.open("rb") as stream:
        stream.seek(offset)
        # A file that grows is refused at the end; it must not be chased until then.
        while offset < file.size and (chunk := stream.read(_BLOCK_BYTES)):
            if not chunk.endswith(b"\n"):
                chunk += _rest_of_line(file.path, line + chunk.count(b"\n"), stream)
            after = Position(offset + len(chunk), line + chunk.count(b"\n"))
            payload = chunk.removeprefix(_BOM) if offset == 0 else chunk
            yield Block(file.path, line, payload, False, after)
            offset, line = after.offset, after.line


def _rest_of_line(path: Path, line: int, stream: BinaryIO) -> bytes:
    rest = stream.readline(MAX_ROW_BYTES)
    if len(rest) == MAX_ROW_BYTES and not rest.endswith(b"\n"):
        raise _too_large(path, line)
    return rest


def _too_large(path: Path, line: int, last: int | None = None) -> DataError:
    """The error of a row, or of one among several up to the last."""
    one = f"one of the rows up to {last} is" if last not in (None, line) else "a row"
    limit = f"of more than {MAX_ROW_BYTES:,} bytes"
    return DataError(f"{path}:{line}: {one} {limit}; split it, or leave it out")


def _open_parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: no whole Parquet file: {error}; write it again") from error


def _parquet_columns(path: Path, parquet: Any) -> list[str]:
    """Columns to read: a row's content and id; of conversations also what may be lost."""
    names = parquet.schema_arrow.names
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: the column `{twice[0]}` occurs twice; leave one out")
    if any(name in names for name in CONVERSATION_FIELDS):
        unread = set(METADATA_FIELDS) - set(ID_FIELDS)
        return [name for name in names if name not in unread]
    missing = [name for name in ROW_FIELDS if name not in names]
    if missing:
        raise DataError(
            f"{path}: no column `{missing[0]}`; a file has {', '.join(ROW_FIELDS)}, or "
            f"{' or '.join(CONVERSATION_FIELDS)}; this one has {', '.join(names) or 'none'}"
        )
    return [name for name in names if name in (*ROW_FIELDS, *ID_FIELDS)]


def _parquet_blocks(file: InputFile, start: Position) -> Iterator[Block]:
    import pyarrow

    parquet = _open_parquet(file.path)
    columns = _parquet_columns(file.path, parquet)
    row = 0
    for group in range(parquet.num_row_groups):
        group_rows = parquet.metadata.row_group(group).num_rows
        if row + group_rows <= start.offset:
            row += group_rows
            continue
        _refuse_large_group(file.path, parquet.metadata.row_group(group), columns, row + 1)
        try:
            for batch in parquet.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=columns):
                skip = max(0, min(start.offset - row, batch.num_rows))
                _refuse_large_rows(file.path, batch, row + 1)
                row += batch.num_rows
                if skip == batch.num_rows:
                    continue
                sink = pyarrow.BufferOutputStream()
                with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
                    writer.write_batch(batch.slice(skip))
                payload = sink.getvalue().to_pybytes()
                first = row - batch.num_rows + skip + 1
                yield Block(file.path, first, payload, True, Position(row, row + 1))
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{file.path}:{row + 1}: broken near this row: {error}; write the file again"
            ) from error


def _refuse_large_group(path: Path, group: Any, columns: Sequence[str], line: int) -> None:
    """Refuses rows that are too large on the average, before any of them is in memory."""
    for number in range(group.num_columns):
        column = group.column(number)
        read = column.path_in_schema.partition(".")[0] in columns
        if read and column.total_uncompressed_size > MAX_ROW_BYTES * group.num_rows:
            raise _too_large(path, line, line + group.num_rows - 1)


def _refuse_large_rows(path: Path, batch: Any, line: int) -> None:
    """Refuses a row that is too large before it is copied, decoded and parsed."""
    if batch.nbytes <= MAX_ROW_BYTES:
        return
    for number in range(batch.num_rows):
        if batch.slice(number, 1).nbytes > MAX_ROW_BYTES:
            raise _too_large(path, line + number)


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


def parse_block(block: Block, chat: ChatOptions = HARMONY_CHAT) -> tuple[list[ParsedRow], int]:
    """Parses the rows of a block.

    Args:
        block: the block.
        chat: how rows with messages are taken.

    Returns:
        The rows, and how many were skipped because a field is empty.

    Raises:
        DataError: the first row that cannot be used, with file and line.
    """
    rows, skipped = [], 0
    for line, value in _arrow_rows(block) if block.arrow else _json_rows(block):
        try:
            parsed = parse_row(value, chat)
            if parsed is None:
                skipped += 1
                continue
            identifier = row_id(value) or f"{block.path.name}:{line}"
        except DataError as error:
            raise DataError(f"{block.path}:{line}: {error}") from error
        rows.append(ParsedRow(identifier, line, parsed))
    return rows, skipped


def _json_rows(block: Block) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, raw in enumerate(block.payload.split(b"\n"), block.first_line):
        if not raw.strip():
            continue
        try:
            value = parse_json(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{block.path}:{number}: invalid UTF-8 at byte {error.start} of the line; "
                "rows must be UTF-8"
            ) from error
        except DataError as error:
            raise DataError(f"{block.path}:{number}: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"{block.path}:{number}: a row must be a JSON object")
        yield number, value


def _arrow_rows(block: Block) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow

    with pyarrow.ipc.open_stream(block.payload) as reader:
        table = reader.read_all()
    for number in range(table.num_rows):
        line = block.first_line + number
        value: dict[str, Any] = {}
        for name in table.column_names:
            try:
                value[name] = table[name][number].as_py()
            except UnicodeDecodeError as error:
                raise DataError(f"{block.path}:{line}: `{name}`: invalid UTF-8: {error}") from error
            # Numbers and times that Python does not have.
            except (ValueError, OverflowError, pyarrow.ArrowException) as error:
                raise DataError(f"{block.path}:{line}: `{name}`: {error}") from error
        yield line, value
