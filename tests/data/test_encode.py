"""Documents: Harmony's tokens, and masks by the closed form of `synth_kd_v1`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vpmoe.data.encode import ConversationRow, DocumentEncoder, SynthRow, check_conversation
from vpmoe.data.errors import DataError
from vpmoe.data.profiles import PROFILES, get_profile
from vpmoe.tokenizer import O200kHarmonyTokenizer, special
from vpmoe.tokenizer.harmony import HarmonyRenderer

MakeRows = Callable[..., list[dict[str, str]]]


def _synth(row: dict[str, str]) -> SynthRow:
    return SynthRow(row["query"], row["synthetic_reasoning"], row["synthetic_answer"])


def _messages(profile: str, row: SynthRow) -> list[dict[str, Any]]:
    return [
        *({**message} for message in get_profile(profile).messages),
        {"role": "user", "content": row.query},
        {"role": "assistant", "channel": "analysis", "content": row.reasoning},
        {"role": "assistant", "channel": "final", "content": row.answer},
    ]


@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize("supervise_eod", [False, True])
def test_tokens_are_the_rendering_and_masks_the_closed_form(
    tokenizer: O200kHarmonyTokenizer, make_rows: MakeRows, profile: str, supervise_eod: bool
) -> None:
    rows = [_synth(row) for row in make_rows(30)]
    documents = DocumentEncoder(tokenizer, get_profile(profile), supervise_eod).encode(rows)
    renderer = HarmonyRenderer(tokenizer)
    start = 0
    for row, length in zip(rows, documents.lengths.tolist(), strict=True):
        part = slice(start, start + length)
        start += length
        tokens = documents.tokens[part]
        rendering = renderer.render_conversation(_messages(profile, row))
        assert tokens.tolist() == [*rendering.tokens, special.ENDOFTEXT]
        a, f, last = rendering.messages[-2].start, rendering.messages[-1].start, length - 3
        if supervise_eod:
            last += 1
        index = np.arange(length)
        mask = (index >= a - 1) & (index <= last)
        span = np.where(mask, np.where(index <= f - 2, 1, 2), 0)
        assert documents.loss_mask[part].tolist() == mask.astype(int).tolist()
        assert documents.span[part].tolist() == span.tolist()
    assert start == len(documents.tokens)
    assert documents.tokens.dtype == np.int32
    assert documents.loss_mask.dtype == documents.span.dtype == np.uint8


def test_every_assistant_turn_is_supervised(tokenizer: O200kHarmonyTokenizer) -> None:
    row = ConversationRow(
        [
            {"role": "assistant", "channel": "final", "content": "hello"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "channel": "analysis", "content": "two"},
            {"role": "assistant", "channel": "final", "content": "three"},
            {"role": "user", "content": "four"},
        ]
    )
    encoder = DocumentEncoder(tokenizer, get_profile("short"))
    documents = encoder.encode([row, row])
    rendering = HarmonyRenderer(tokenizer).render_conversation(row.messages)
    raw = np.zeros(len(rendering.tokens) + 1, int)
    for message, span in zip(rendering.messages, (2, 0, 1, 2, 0), strict=True):
        raw[message.start : message.end] = span
    expected = [*raw[1:], 0]
    assert documents.span.tolist() == expected * 2
    assert documents.loss_mask.tolist() == [int(span > 0) for span in expected] * 2
    # A conversation that ends with the user has no end of an answer to supervise.
    eod = DocumentEncoder(tokenizer, get_profile("short"), supervise_eod=True).encode([row])
    assert eod.span.tolist() == expected


def test_batches_do_not_matter(tokenizer: O200kHarmonyTokenizer, make_rows: MakeRows) -> None:
    rows = [_synth(row) for row in make_rows(10)]
    encoder = DocumentEncoder(tokenizer, get_profile("short"))
    together = encoder.encode(rows)
    single = [encoder.encode([row]) for row in rows]
    for name in ("tokens", "loss_mask", "span", "lengths"):
        parts = np.concatenate([getattr(document, name) for document in single])
        assert np.array_equal(getattr(together, name), parts)
    assert encoder.encode([]).tokens.size == 0


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "empty"),
        ([{"role": "user", "content": "x"}], "no assistant"),
        ([{"role": "assistant", "content": "x"}], "channel None"),
        ([{"role": "assistant", "channel": "commentary", "content": "x"}], "commentary"),
        (["x"], "no object"),
    ],
)
def test_what_can_not_be_trained_on_is_refused(messages: list[Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        check_conversation(ConversationRow(messages))


def test_unknown_profile_lists_the_known() -> None:
    with pytest.raises(ValueError, match="unknown profile; choose from short, synth_kd_v1"):
        get_profile("x")
