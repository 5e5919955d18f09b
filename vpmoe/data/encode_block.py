"""What a builder's worker does: a block of rows to the bytes of its documents."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vpmoe.data.encode import ConversationRow, DocumentEncoder, Documents
from vpmoe.data.errors import DataError
from vpmoe.data.layout import RECORD, Records, document_digest, record_checks
from vpmoe.data.profiles import get_profile
from vpmoe.data.row_content import HARMONY_CHAT, ChatOptions
from vpmoe.data.rows import Block, ParsedRow, parse_block
from vpmoe.tokenizer.harmony import HarmonyError
from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer


@dataclass(frozen=True)
class EncodedBlock:
    """Documents of a block.

    Attributes:
        documents: tokens, masks and spans, back to back.
        records: `layout.RECORD` per document.
        valid: bool per document: belongs to the valid split.
        lines: int64 per document: the row's line.
        skipped: rows with an empty field.
    """

    documents: Documents
    records: Records
    valid: npt.NDArray[np.bool_]
    lines: npt.NDArray[np.int64]
    skipped: int


class BlockEncoder:
    """Encodes blocks with one configuration; holds no state between blocks.

    Args:
        vocabulary: path of `o200k_base.tiktoken`.
        profile: name of a profile.
        valid_fraction: decimal number in [0, 1].
        supervise_eod: see `DocumentEncoder`.
        chat: how rows with messages are taken.
    """

    def __init__(
        self,
        vocabulary: Path,
        profile: str,
        valid_fraction: str,
        supervise_eod: bool,
        chat: ChatOptions = HARMONY_CHAT,
    ) -> None:
        self._arguments = (vocabulary, profile, valid_fraction, supervise_eod, chat)
        self._chat = chat
        self.tokenizer = O200kHarmonyTokenizer(vocabulary)
        self._encoder = DocumentEncoder(self.tokenizer, get_profile(profile), supervise_eod)
        self._threshold = int(Decimal(valid_fraction) * 2**64)

    def __reduce__(self) -> tuple[type[BlockEncoder], tuple[Path, str, str, bool, ChatOptions]]:
        return type(self), self._arguments

    def encode(self, block: Block) -> EncodedBlock:
        """Encodes a block.

        Args:
            block: rows of a file, unparsed.

        Returns:
            Documents and records of the rows that are not skipped.

        Raises:
            DataError: the first row that cannot be used, with file and line.
        """
        rows, skipped = parse_block(block, self._chat)
        documents = encode_rows(self._encoder, block.path, rows)
        records = np.zeros(len(rows), RECORD)
        records["length"] = documents.lengths
        ids = [row.row_id.encode() for row in rows]
        records["id"] = _opaque([hashlib.blake2b(i, digest_size=16).digest() for i in ids], 16)
        ends = np.cumsum(documents.lengths, dtype=np.int64)
        arrays: dict[str, npt.NDArray[Any]] = {
            "tokens": documents.tokens,
            "lossmask": documents.loss_mask,
            "span": documents.span,
        }
        for name, array in arrays.items():
            content = memoryview(array).cast("B") if array.size else memoryview(b"")
            edges = [0, *(ends * array.itemsize).tolist()]
            digests = [document_digest(content[start:end]) for start, end in pairwise(edges)]
            records[name] = _opaque(digests, 8)
        records["check"] = record_checks(records)
        valid = np.fromiter((self._is_valid(i) for i in ids), np.bool_, len(ids))
        lines = np.fromiter((row.line for row in rows), np.int64, len(rows))
        return EncodedBlock(documents, records, valid, lines, skipped)

    def _is_valid(self, row_id: bytes) -> bool:
        digest = hashlib.blake2b(row_id, digest_size=8).digest()
        return int.from_bytes(digest, "big") < self._threshold


def encode_rows(encoder: DocumentEncoder, path: Path, rows: Sequence[ParsedRow]) -> Documents:
    """Encodes a file's rows into documents.

    Args:
        encoder: of the dataset.
        path: of the file, for messages.
        rows: the rows.

    Returns:
        A document for each row, in order.

    Raises:
        DataError: the first conversation that Harmony has no form for, with file and line.
    """
    try:
        return encoder.encode([row.row for row in rows])
    except HarmonyError:
        for row in rows:
            try:
                encoder.encode([row.row])
            except HarmonyError as error:
                converted = isinstance(row.row, ConversationRow) and row.row.converted
                counted = " (counted after --chat-format openai)" if converted else ""
                raise DataError(f"{path}:{row.line}: {error}{counted}") from error
        raise


def _opaque(digests: list[bytes], size: int) -> npt.NDArray[np.void]:
    return np.frombuffer(b"".join(digests), f"V{size}")
