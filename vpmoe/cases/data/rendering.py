"""Records of rendered rows: for each row its ids, spans and text, and each message's place."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from validation.running.recorder import Recorder
from vpmoe.data.display import document_text
from vpmoe.data.encode import ConversationRow, DocumentEncoder
from vpmoe.data.profiles import PROFILES, get_profile
from vpmoe.data.row_content import ChatOptions
from vpmoe.data.rows import ParsedRow, Position, open_input, parse_block, read_blocks
from vpmoe.tokenizer import special
from vpmoe.tokenizer.harmony import HarmonyRenderer
from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer


def record_rows(
    recorder: Recorder, tokenizer: O200kHarmonyTokenizer, name: str, path: Path, form: str
) -> None:
    """Records every row of a file as it is rendered, and the laws of its spans.

    Args:
        recorder: of this process.
        tokenizer: encodes.
        name: of the file, in the records.
        path: rows.
        form: of messages: `harmony` or `openai`.
    """
    encoder = DocumentEncoder(tokenizer, get_profile("short"))
    rows, skipped = parse_file(path, ChatOptions(form))
    place = f"rows/{name}"
    recorder.discrete(place, [row.row_id for row in rows], tensor="ids", phase="data")
    recorder.discrete(place, skipped, tensor="skipped", phase="data")
    together = encoder.encode([row.row for row in rows])
    pieces: list[list[int]] = []
    for row in rows:
        documents = encoder.encode([row.row])
        document = f"{place}/{row.row_id.partition(':')[2] or row.row_id}"
        if isinstance(row.row, ConversationRow):
            _record_messages(recorder, tokenizer, document, row.row)
        _record_document(recorder, tokenizer, document, documents)
        pieces.append(documents.tokens.tolist())
    for law, tensor, holds in (
        (
            "rows encoded together are those encoded alone",
            "together",
            together.tokens.tolist() == [token for piece in pieces for token in piece],
        ),
        (
            "lengths are those of the documents",
            "lengths",
            together.lengths.tolist() == [len(piece) for piece in pieces],
        ),
    ):
        _law(recorder, place, law, holds, tensor)


def parse_file(path: Path, chat: ChatOptions) -> tuple[list[ParsedRow], int]:
    """Rows of a file, and how many are skipped."""
    rows, skipped = [], 0
    for block in read_blocks(open_input(path), Position()):
        found, empty = parse_block(block, chat)
        rows += found
        skipped += empty
    return rows, skipped


def record_profiles(recorder: Recorder, tokenizer: O200kHarmonyTokenizer, path: Path) -> None:
    """Records one row after every profile's messages, with and without a supervised end."""
    row = parse_file(path, ChatOptions())[0][0].row
    for name, profile in PROFILES.items():
        for supervised in (False, True):
            documents = DocumentEncoder(tokenizer, profile, supervised).encode([row])
            place = f"rows/profile/{name}/{'supervised_eod' if supervised else 'plain'}"
            _record_document(recorder, tokenizer, place, documents)
    empty = DocumentEncoder(tokenizer, PROFILES["short"]).encode([])
    _law(recorder, "rows/none", "no row is no token", not empty.tokens.size, "empty")


def record_templates(recorder: Recorder, tokenizer: O200kHarmonyTokenizer) -> None:
    """Records what the tokenizer's own chat template gives."""
    messages = [
        {"role": "user", "content": "Is it <|end|>?"},
        {"role": "assistant", "channel": "final", "content": "No."},
    ]
    ids = tokenizer.apply_chat_template(messages)
    recorder.discrete("template", list(ids), tensor="ids", phase="data")
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    recorder.discrete("template", text, tensor="text", phase="data")


def _record_messages(
    recorder: Recorder, tokenizer: O200kHarmonyTokenizer, place: str, row: ConversationRow
) -> None:
    """Where each message lies, and for converted ones what they were converted to."""
    if row.converted:
        recorder.discrete(place, list(row.messages), tensor="messages", phase="data")
    rendering = HarmonyRenderer(tokenizer).render_conversation(row.messages)
    spans = [[m.role, m.channel, m.start, m.end] for m in rendering.messages]
    recorder.discrete(place, spans, tensor="message_spans", phase="data")
    whole = [0, *(end for *_, end in spans)]
    starts = [start for _, _, start, _ in spans]
    covers = starts == whole[:-1] and whole[-1] == len(rendering.tokens)
    _law(recorder, place, "messages cover every id, in order", covers, "message_spans")


def _record_document(
    recorder: Recorder, tokenizer: O200kHarmonyTokenizer, place: str, documents: Any
) -> None:
    tokens, span, mask = documents.tokens, documents.span, documents.loss_mask
    for tensor, value in (
        ("tokens", tokens.tolist()),
        ("span", runs(span)),
        ("loss_mask", runs(mask)),
        ("text", tokenizer.detokenize(tokens.tolist())),
    ):
        recorder.discrete(place, value, tensor=tensor, phase="data")
    shown = document_text(tokenizer, tokens, mask, span)
    styles = [[part.start, part.end, str(part.style)] for part in shown.spans]
    recorder.discrete(place, styles, tensor="colours", phase="data")
    line = shown.plain.rstrip("\n").rpartition("\n")[2]
    recorder.discrete(place, line, tensor="counts", phase="data")
    for law, tensor, holds in (
        ("supervised is what is in a span", "mask", np.array_equal(mask, span != 0)),
        ("a document ends with its end token", "end", tokens[-1] == special.ENDOFTEXT),
        (
            "spans are those that the markup gives, stored for the label",
            "span",
            span.tolist() == spans_of_markup(tokenizer, tokens.tolist(), int(span[-2])),
        ),
    ):
        _law(recorder, place, law, bool(holds), tensor)


def spans_of_markup(tokenizer: O200kHarmonyTokenizer, tokens: list[int], end: int = 0) -> list[int]:
    """Spans read from the ids alone, by walking Harmony's control tokens.

    Args:
        tokenizer: gives the ids of role and channels.
        tokens: of one document.
        end: span of the document's end token.

    Returns:
        For each token the span of the one after it; 0 for the last.
    """
    (assistant,), analysis = tokenizer.tokenize("assistant"), tokenizer.tokenize("analysis")
    labels, start = [0] * len(tokens), 0
    for place, token in enumerate(tokens):
        if token == special.START:
            start = place
        elif token in (special.END, special.RETURN, special.CALL):
            message = tokens[start : place + 1]
            if message[1] == assistant and special.CHANNEL in message:
                channel = message.index(special.CHANNEL) + 1
                thinks = message[channel : channel + len(analysis)] == analysis
                labels[start : place + 1] = [1 if thinks else 2] * len(message)
    labels[-1] = end
    return [*labels[1:], 0]


def runs(values: Any) -> list[list[int]]:
    """Run lengths: [value, how many] in order."""
    return [[int(value), len(list(group))] for value, group in groupby(values.tolist())]


def _law(recorder: Recorder, place: str, name: str, holds: bool, tensor: str) -> None:
    recorder.invariant(place, name, float(not holds), 0.0, phase="data", tensor=f"law/{tensor}")
