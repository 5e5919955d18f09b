"""A differing token is shown as text, on both sides."""

from __future__ import annotations

from validation.cases import discover_cases
from validation.compare import compare
from validation.gate.tokens import decoded_tokens
from validation.running.recorder import Recorder
from validation.running.source import find_root
from validation.trace import Trace
from vpmoe.tokenizer import O200kHarmonyTokenizer
from vpmoe.tokenizer.asset import ensure_asset


def trace(text: str) -> Trace:
    """A run that fed these tokens."""
    ids = O200kHarmonyTokenizer(ensure_asset()).tokenize(text)
    recorder = Recorder()
    recorder.discrete("dataset", len(ids) + len(text), tensor="manifest", phase="data")
    recorder.discrete("batch", list(ids), tensor="tokens", step=3, phase="data")
    return recorder.trace("tiny_moe", {})


def test_the_text_around_the_first_differing_token() -> None:
    golden, actual = trace("The cat sat on the mat."), trace("The cat lay on the mat.")
    comparison = compare(golden, actual)
    decoded = decoded_tokens(discover_cases(find_root())["tiny_moe"], comparison)
    assert decoded["golden"] == ("The cat", " sat", " on the mat.")
    assert decoded["actual"] == ("The cat", " lay", " on the mat.")


def test_nothing_to_decode() -> None:
    same = compare(trace("One."), trace("One."))
    assert decoded_tokens(discover_cases(find_root())["tiny_moe"], same) == {}
