"""A document as a person reads it: text with control tokens, spans coloured."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from vpmoe.tokenizer.special import BASE_SIZE
from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer

_STYLES = {0: "dim", 1: "yellow", 2: "green"}


def document_text(tokenizer: O200kHarmonyTokenizer, tokens: Any, mask: Any, span: Any) -> Text:
    """A document in colours: a token is coloured when it is a label that the loss counts.

    Args:
        tokenizer: decodes.
        tokens: int32 [n].
        mask: loss mask [n], label-aligned: element i is about token i + 1.
        span: span [n], label-aligned.

    Returns:
        The text (dim: not supervised, yellow: analysis, green: final), then a line of counts.
    """
    labels = [0, *span[:-1].tolist()]
    text = Text()
    start = 0
    for end in range(1, len(tokens) + 1):
        control = int(tokens[end - 1]) >= BASE_SIZE
        same_label = end < len(tokens) and labels[end] == labels[start]
        if same_label and not control and int(tokens[end]) < BASE_SIZE:
            continue
        run = tokens[start:end].tolist()
        style = _STYLES[labels[start]] + (" bold" if control else "")
        text.append(tokenizer.detokenize(run), style)
        start = end
    counts = ", ".join(
        f"{name} {int((span == number).sum())}" for number, name in ((1, "analysis"), (2, "final"))
    )
    text.append(f"\n{len(tokens)} tokens, {int(mask.sum())} supervised: {counts}\n", "reset")
    return text
