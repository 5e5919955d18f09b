"""Texts with runs that are long beyond reason: tiktoken's ids, and never a panic."""

from __future__ import annotations

import pytest
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vpmoe.tokenizer import O200kHarmonyTokenizer, special
from vpmoe.tokenizer.encoder import reference_encoding

_LONG_S = "\u017f"  # quicktok and tiktoken differ on it, so that tiktoken encodes the text
_BLANKS = " \t\v\f\x85\xa0\u1680\u2003\u2028\u202f\u205f\u3000"
# Every class that the split pattern names, and what lies between them for Python or Unicode.
_CLASSES = (
    *("A", "É", "ǅ", "ʰ", "中", "\u0301", "a", "é", _LONG_S, "\u088f"),
    *("1", "٣", "½", "/", "!", "'", "'s", "'LL", "€", "🌈", "\x00", "\x1c", "\u200b", "\ufffd"),
    *("\r", "\n", "\r\n", " \n", "\t ", *_BLANKS),
)
_RUNS = st.tuples(
    st.sampled_from(_CLASSES), st.sampled_from((1, 1, 2, 3, 998, 999, 1000, 1001, 1002, 2500))
)


@pytest.fixture(scope="module")
def reference(tokenizer: O200kHarmonyTokenizer) -> tiktoken.Encoding:
    """tiktoken itself."""
    return reference_encoding([tokenizer.inv_vocab[n] for n in range(special.BASE_SIZE)])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(runs=st.lists(_RUNS, min_size=1, max_size=6), end=st.sampled_from(("", _LONG_S)))
def test_long_runs_of_every_class_have_tiktokens_ids(
    tokenizer: O200kHarmonyTokenizer,
    reference: tiktoken.Encoding,
    runs: list[tuple[str, int]],
    end: str,
) -> None:
    text = _LONG_S + "".join(piece * count for piece, count in runs) + end
    expected = reference.encode_ordinary(text)
    assert tokenizer.tokenize(text) == expected
    assert tokenizer.encode_batch(["x", text])[1].tolist() == expected


@pytest.mark.parametrize("blanks", [" ", "\t", "\xa0", "\u2028", " \t", "\v"])
@pytest.mark.parametrize("tail", ["", "x", "!", "\nx", "1"])
def test_a_million_blanks_are_encoded(
    tokenizer: O200kHarmonyTokenizer, blanks: str, tail: str
) -> None:
    """The rest of a text has the ids that it has without the code point, which quicktok gives."""
    rest = "!" + blanks * (1_000_000 // len(blanks)) + tail
    head = tokenizer.tokenize(_LONG_S)
    assert tokenizer.tokenize(_LONG_S + rest) == head + tokenizer.tokenize(rest)


@pytest.mark.parametrize("piece", ["A", "a", "中", "\u0301", "1", "!", "/\n", "\n", "\r", " \n"])
def test_a_million_of_anything_else_come_back(tokenizer: O200kHarmonyTokenizer, piece: str) -> None:
    text = _LONG_S + piece * (1_000_000 // len(piece))
    assert tokenizer.decode_bytes(tokenizer.tokenize(text)) == text.encode()
