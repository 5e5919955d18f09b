"""Greedy decoding with the reference model: to look at what a training made."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch.nn import functional

from vpmoe.export.reference import ReferenceModel


@torch.no_grad()
def generate(
    model: ReferenceModel, prompt: Sequence[int], count: int, stop: Collection[int] = ()
) -> list[int]:
    """Appends the likeliest token, again and again; of equal ones the lowest id.

    Args:
        model: the exported model.
        prompt: at least one id.
        count: tokens to append at most.
        stop: ids that end the text; the one that does is kept.

    Returns:
        The new ids.

    Raises:
        ValueError: an empty prompt, an id outside the vocabulary, or more tokens than the model's
            longest sequence.
    """
    if not prompt:
        raise ValueError("--prompt: it has no token; give at least one")
    if count < 1:
        raise ValueError(f"--tokens {count}: must be at least 1")
    longest = model.architecture.max_sequence_length
    if len(prompt) + count > longest:
        raise ValueError(
            f"--tokens {count}: with a prompt of {len(prompt)} tokens they exceed the model's "
            f"longest sequence of {longest}; use at most {max(longest - len(prompt), 0)}"
        )
    output = model.weights["output_layer.weight"]
    ids = list(prompt)
    for _ in range(count):
        last = model.hidden_states(torch.tensor([ids]))[0, -1]
        logits = functional.linear(last, output)
        # max() and not argmax(): argmax of equal logits may be any of them.
        ids.append(int((logits == logits.max()).nonzero()[0]))
        if ids[-1] in stop:
            break
    return ids[len(prompt) :]
