"""Rows to documents: token ids with a loss mask and spans, label-aligned (`synth_kd_v1`).

Spans: 0 none, 1 analysis, 2 final. The loss mask is 1 on the tokens of assistant messages, header
and closing token included. Both are stored for the label, not for the input: stored[i] = raw[i+1],
the last is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vpmoe.data.errors import DataError
from vpmoe.data.profiles import Profile
from vpmoe.tokenizer import special
from vpmoe.tokenizer.harmony import HarmonyError, HarmonyRenderer, MessageSpan
from vpmoe.tokenizer.harmony_values import show
from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer

SPAN_NONE, SPAN_ANALYSIS, SPAN_FINAL = 0, 1, 2
# A call, and what is said before it, is what the model does and not what it thinks.
_SPANS = {"analysis": SPAN_ANALYSIS, "final": SPAN_FINAL, "commentary": SPAN_FINAL}
_CHANNELS = ("analysis", "final")
ROW_FIELDS = ("query", "synthetic_reasoning", "synthetic_answer")

Tokens = npt.NDArray[np.int32]
Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SynthRow:
    """A row of SYNTH: one question, its reasoning, its answer."""

    query: str
    reasoning: str
    answer: str


@dataclass(frozen=True)
class ConversationRow:
    """A row with messages of its own; no profile is put before it.

    Attributes:
        messages: in Harmony's form.
        converted: they were made from another form; only then may they have channel commentary.
    """

    messages: Sequence[Mapping[str, Any]]
    converted: bool = False


@dataclass(frozen=True)
class Documents:
    """Documents back to back.

    Attributes:
        tokens: int32 [n], every document ends with `<|endoftext|>`.
        loss_mask: uint8 [n], label-aligned.
        span: uint8 [n], label-aligned.
        lengths: int32 [documents].
    """

    tokens: Tokens
    loss_mask: Mask
    span: Mask
    lengths: npt.NDArray[np.int32]


class DocumentEncoder:
    """Encodes rows with one tokenizer and profile.

    Args:
        tokenizer: the tokenizer.
        profile: the messages before a SYNTH row's query.
        supervise_eod: also train the prediction of `<|endoftext|>` after an assistant message.
    """

    def __init__(
        self, tokenizer: O200kHarmonyTokenizer, profile: Profile, supervise_eod: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._renderer = HarmonyRenderer(tokenizer)
        self._supervise_eod = supervise_eod
        prefix = self._renderer.render_conversation(profile.messages).tokens
        self._before_query = _ids([*prefix, *self._header("user")])
        self._end = _ids([special.END])
        self._analysis = _ids(self._header("assistant", "analysis"))
        self._final = _ids([special.END, *self._header("assistant", "final")])
        self._tail = _ids([special.RETURN])
        self._eod = _ids([special.ENDOFTEXT])

    def encode(self, rows: Sequence[SynthRow | ConversationRow], threads: int = 1) -> Documents:
        """Encodes rows into documents.

        Args:
            rows: the rows; see `check_conversation` for what must hold.
            threads: threads of the encoder.

        Returns:
            A document for each row, in order.

        Raises:
            HarmonyError: a conversation that Harmony has no form for.
        """
        texts = [
            text
            for row in rows
            if isinstance(row, SynthRow)
            for text in (row.query, row.reasoning, row.answer)
        ]
        encoded = iter(self._tokenizer.encode_batch(texts, threads))
        pieces: list[Tokens] = []
        spans: list[int] = []
        counts: list[int] = []
        for row in rows:
            before = len(pieces)
            if isinstance(row, SynthRow):
                query, reasoning, answer = next(encoded), next(encoded), next(encoded)
                pieces += (self._before_query, query, self._end, self._analysis, reasoning)
                pieces += (self._final[:1], self._final[1:], answer, self._tail, self._eod)
                spans += (0, 0, 0, 1, 1, 1, 2, 2, 2, 2 * self._supervise_eod)
            else:
                self._add_conversation(row, pieces, spans)
            counts.append(len(pieces) - before)
        return _assemble(pieces, spans, counts)

    def _add_conversation(
        self, row: ConversationRow, pieces: list[Tokens], spans: list[int]
    ) -> None:
        rendering = self._renderer.render_conversation(row.messages)
        for message in rendering.messages:
            pieces.append(_ids(rendering.tokens[message.start : message.end]))
            spans.append(_span_of(message))
        pieces.append(self._eod)
        spans.append(spans[-1] if self._supervise_eod else SPAN_NONE)

    def _header(self, role: str, channel: str | None = None) -> list[int]:
        header = [special.START, *self._tokenizer.tokenize(role)]
        if channel is not None:
            header += [special.CHANNEL, *self._tokenizer.tokenize(channel)]
        return [*header, special.MESSAGE]


def check_conversation(row: ConversationRow) -> None:
    """Checks that a conversation can be trained on.

    Args:
        row: the conversation.

    Raises:
        DataError: no assistant message, or an assistant channel that the loss does not know.
    """
    if not row.messages:
        raise DataError("`messages` is empty")
    assistants = 0
    for number, message in enumerate(row.messages):
        if not isinstance(message, Mapping):
            raise DataError(f"message {number} is no object: {show(message)}")
        if message.get("role") == "assistant":
            assistants += 1
            channel = message.get("channel")
            if channel not in (tuple(_SPANS) if row.converted else _CHANNELS):
                raise DataError(
                    f"message {number}: assistant channel {show(channel)}; the loss knows analysis "
                    "and final (and, with --chat-format openai, commentary)"
                )
    if not assistants:
        raise DataError("no assistant message: nothing to train on")


def _span_of(message: MessageSpan) -> int:
    return _SPANS[str(message.channel)] if message.role == "assistant" else SPAN_NONE


def _assemble(pieces: list[Tokens], spans: list[int], counts: list[int]) -> Documents:
    if not pieces:
        empty = np.zeros(0, np.uint8)
        return Documents(np.zeros(0, np.int32), empty, empty, np.zeros(0, np.int32))
    sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
    tokens = np.concatenate(pieces)
    raw = np.repeat(np.array(spans, np.uint8), sizes)
    first_piece = np.cumsum([0, *counts[:-1]])
    lengths = np.add.reduceat(sizes, first_piece)
    span = np.empty_like(raw)
    span[:-1] = raw[1:]
    span[np.cumsum(lengths) - 1] = SPAN_NONE  # the next document's first token is not its label
    mask = (span != SPAN_NONE).astype(np.uint8)
    return Documents(tokens, mask, span, lengths.astype(np.int32))


def _ids(tokens: Sequence[int]) -> Tokens:
    return np.array(tokens, np.int32)


__all__ = [
    "ROW_FIELDS",
    "SPAN_ANALYSIS",
    "SPAN_FINAL",
    "SPAN_NONE",
    "ConversationRow",
    "DocumentEncoder",
    "Documents",
    "HarmonyError",
    "SynthRow",
    "check_conversation",
]
