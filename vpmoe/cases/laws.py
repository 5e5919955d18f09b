"""The target of the case `laws`: invariants of the built model, whatever its weights are.

No golden knows the right answer here: two ways to compute the same thing must agree. Bounds are
multiples of fp32's rounding error: 2^-23 times the square root of the longest sum, over the
vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases.training import instead_of_training, prepared, train

_EPSILON = 2.0**-23
_SEQUENCES = 4
# Ids that the invariants are checked on: any will do, embedding rows of a few thousand are enough.
_IDS = 4096
_SEED = 20


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Builds the model as a training does, and checks every invariant on it instead of training.

    Args:
        recorder: of this process.
        settings: `preset` (file), `conversations` (JSONL file, which the start-up reads),
            `perturb_seed` (moves the seed of the inputs).
    """
    seed = int(settings.get("perturb_seed", 0))
    with (
        prepared(recorder, settings) as (flags, _),
        instead_of_training(lambda model: check_invariants(recorder, model, seed)),
    ):
        train(flags)


@dataclass(frozen=True)
class Inputs:
    """A batch: int64 [b, s] each, document ids int32."""

    tokens: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    documents: torch.Tensor

    def rows(self, chosen: Any) -> Inputs:
        """Some of the sequences."""
        return Inputs(*(getattr(self, name)[chosen] for name in _FIELDS))

    def part(self, start: int, end: int) -> Inputs:
        """Some of the tokens of each sequence."""
        return Inputs(*(getattr(self, name)[:, start:end] for name in _FIELDS))


_FIELDS = ("tokens", "labels", "positions", "documents")


def check_invariants(recorder: Recorder, model: Any, seed: int) -> None:
    """Records each invariant's error against its bound.

    Args:
        recorder: receives each as a law.
        model: a `VpmoeModel` of one process; its norms, offsets and frequencies are moved away
            from where they start, since many a bug shows only in weights that have learnt.
        seed: of inputs and weights.
    """
    length, vocabulary = model.max_sequence_length, model.vocab_size
    rounding = _EPSILON * math.sqrt(vocabulary)
    generator = torch.Generator().manual_seed(_SEED + seed)
    _move_vectors(model, generator)
    ids = torch.randint(_IDS, (2, _SEQUENCES, length), generator=generator)
    place = torch.arange(length).expand(_SEQUENCES, -1)
    inputs = Inputs(ids[0], ids[1], place, torch.zeros_like(place, dtype=torch.int32))
    losses = _losses(model, inputs)
    for name, error, bound in (
        ("permutation", _permutation(model, inputs, losses), rounding),
        ("causality", _causality(model, inputs, losses, generator), rounding),
        ("padding", _padding(model, inputs, losses), rounding),
        ("packing", _packing(model, inputs), rounding),
        # Angles are rounded relative to themselves, so they lose what positions gain.
        ("shift", _shift(model, inputs, losses), rounding * 2),
        ("loss scale", _loss_scale(model, inputs), 0.0),
    ):
        recorder.invariant("model", name, error, bound, tensor=name.replace(" ", "_"))
    for name, error in _accumulation(model, inputs).items():
        recorder.invariant(name, "accumulation", error, 4 * rounding, tensor="accumulation")
    for name, layer in model.named_modules():
        if name.endswith("self_attention") and layer.core_attention.pattern.window is not None:
            outputs, gradients = _window(model, layer, length, generator)
            recorder.invariant(name, "outputs forget what is beyond the window", outputs, 0.0)
            recorder.invariant(
                name, "gradients end at the window", gradients, 0.0, tensor="gradient_law"
            )


def _move_vectors(model: torch.nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * noise.to(parameter))


def _losses(model: Any, inputs: Inputs) -> torch.Tensor:
    """Cross entropy per token, [b, s]."""
    with torch.no_grad():
        return _forward(model, inputs)


def _forward(model: Any, inputs: Inputs) -> torch.Tensor:
    found: torch.Tensor = model(
        inputs.tokens,
        inputs.positions,
        None,
        labels=inputs.labels,
        document_ids=inputs.documents,
    )
    return found


def _gradients(
    model: Any, inputs: Inputs, scale: float, auxiliary: float
) -> dict[str, torch.Tensor]:
    """Gradients of `scale` times the summed losses; the routers' losses weigh `auxiliary`."""
    from vpmoe.megatron.moe import auxiliary_loss_scale

    with auxiliary_loss_scale(auxiliary):
        named = dict(model.named_parameters())
        total = _forward(model, inputs).sum() * scale
        # Not backward(): that would fill Megatron's gradient buffers.
        found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {n: g for n, g in zip(named, found, strict=True) if g is not None}


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    largest = float(expected.abs().max())
    return float((found - expected).abs().max()) / (largest or 1.0)


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, relative to the norm."""
    size = float(expected.norm())
    return float((found - expected).norm()) / (size or 1.0)


def _permutation(model: Any, inputs: Inputs, losses: torch.Tensor) -> float:
    order = [2, 0, 3, 1]
    return _error(_losses(model, inputs.rows(order)), losses[order])


def _causality(
    model: Any, inputs: Inputs, losses: torch.Tensor, generator: torch.Generator
) -> float:
    """Losses of what came before other words."""
    keep = inputs.tokens.shape[1] * 5 // 8
    tokens = inputs.tokens.clone()
    tokens[:, keep:] = torch.randint(_IDS, tokens[:, keep:].shape, generator=generator)
    changed = Inputs(tokens, inputs.labels, inputs.positions, inputs.documents)
    return _error(_losses(model, changed)[:, :keep], losses[:, :keep])


def _padding(model: Any, inputs: Inputs, losses: torch.Tensor) -> float:
    """A shorter sequence alone, and with padding of a document of its own behind it."""
    from vpmoe.tokenizer import special

    keep = inputs.tokens.shape[1] * 3 // 4
    tokens, documents = inputs.tokens.clone(), inputs.documents.clone()
    tokens[:, keep:], documents[:, keep:] = special.PAD, 1
    padded = _losses(model, Inputs(tokens, inputs.labels, inputs.positions, documents))
    alone = _losses(model, inputs.part(0, keep))
    return max(_error(padded[:, :keep], alone), _error(alone, losses[:, :keep]))


def _packing(model: Any, inputs: Inputs) -> float:
    """Two documents in one sequence, and each alone."""
    cut = inputs.tokens.shape[1] * 3 // 8
    positions, documents = inputs.positions.clone(), inputs.documents.clone()
    positions[:, cut:] -= cut
    documents[:, cut:] = 1
    packed = Inputs(inputs.tokens, inputs.labels, positions, documents)
    parts = [packed.part(0, cut), packed.part(cut, inputs.tokens.shape[1])]
    alone = torch.cat([_losses(model, part) for part in parts], dim=1)
    return _error(_losses(model, packed), alone)


def _shift(model: Any, inputs: Inputs, losses: torch.Tensor) -> float:
    """Positions are relative: all of them moved by a constant."""
    moved = Inputs(inputs.tokens, inputs.labels, inputs.positions + 17, inputs.documents)
    return _error(_losses(model, moved), losses)


def _loss_scale(model: Any, inputs: Inputs) -> float:
    """A loss scaled by a power of two scales every gradient, bit for bit."""
    once = _gradients(model, inputs, 1.0, 1.0)
    scaled = _gradients(model, inputs, 8.0, 8.0)
    return max(_distance(scaled[name], 8.0 * gradient) for name, gradient in once.items())


def _accumulation(model: Any, inputs: Inputs) -> dict[str, float]:
    """Gradients of a batch, and the sum of its sequences' own, per tensor."""
    whole = _gradients(model, inputs, 1.0, 0.0)
    total = {name: torch.zeros_like(gradient) for name, gradient in whole.items()}
    for row in range(_SEQUENCES):
        for name, gradient in _gradients(model, inputs.rows([row]), 1.0, 0.0).items():
            total[name] += gradient
    return {name: _distance(total[name], gradient) for name, gradient in whole.items()}


def _window(model: Any, layer: Any, length: int, generator: torch.Generator) -> tuple[float, float]:
    """A local layer's last output with other text beyond its window, and where its gradient ends.

    Returns:
        Change of the output; the largest gradient beyond the window, or inf if there is none
        within it.
    """
    window = int(model.config.window_size[0]) + 1  # as configured, not as the layer has it
    hidden = torch.randn(length, 1, model.config.hidden_size, generator=generator)
    hidden = hidden.to(next(layer.parameters()))
    other = hidden.clone()
    beyond = length - window
    other[:beyond] = torch.randn(other[:beyond].shape, generator=generator).to(other)
    rotation = model.grapem(torch.arange(length)[None]) if hasattr(model, "grapem") else None

    def last(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.requires_grad_()
        output = layer(x, None, rotary_pos_emb=rotation)[0][-1]
        return output.detach(), torch.autograd.grad(output.square().sum(), x)[0]

    (one, gradient), (two, _) = last(hidden), last(other)
    used = gradient.abs().amax(dim=(1, 2))
    if not bool((used[beyond:] > 0).all()):
        return _error(two, one), math.inf
    return _error(two, one), float(used[:beyond].max())
