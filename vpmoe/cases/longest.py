"""The target of the case `longest`: each kind of layer at the length that vpMoE is trained at.

What rounding or a border does beyond a few hundred tokens, no short sequence shows. A model of
2,048 tokens is built as a training builds it; each module's outputs and gradients must be those of
its formula in fp64 (`vpmoe.cases.layer_formulas`). Bounds are multiples of fp32's rounding. The
angles of GRAPE-M have one that grows with the position: they are rounded relative to themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases import layer_formulas
from vpmoe.cases.declare import EPSILON
from vpmoe.cases.layer_formulas import Shape
from vpmoe.cases.training import instead_of_training, prepared, train

_SEED = 50
# Errors relative to the largest output, and to the norm of a gradient. Measured: 2 epsilons.
_ROUNDING = 16 * EPSILON
# An angle's error is up to half a unit of the largest position's. In the sequence's length;
# measured: up to 0.16 epsilons, and 0.49 of the frequencies, whose gradient multiplies by the
# position.
_ANGLES = EPSILON
# A choice of experts that is closer than this may go either way.
_TIE = 1024 * EPSILON


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Builds the model, and holds its modules to their formulas instead of training.

    Args:
        recorder: of this process.
        settings: `preset` (file), `conversations` (JSONL file, which the start-up reads), `flags`
            (of `vpmoe pretrain`), `documents` (their lengths, together the sequence's), `layers`
            (number of a `local`, a `global`, a `dense` and a `routed` one, from 0), `scored` (how
            many tokens go through the output), `perturb_seed` (moves the seed of inputs and
            weights).

    Raises:
        RuntimeError: the training refused.
    """
    with (
        prepared(recorder, settings) as (flags, _),
        instead_of_training(lambda model: _Laws(recorder, model, settings).check()),
    ):
        train(flags)


class _Laws:
    """Runs modules and their formulas on the same numbers.

    Args:
        recorder: of this process.
        model: a `VpmoeModel` of one process, whose weights are drawn anew: wide enough for
            attention that is far from uniform.
        settings: see `run`.
    """

    def __init__(self, recorder: Recorder, model: Any, settings: Mapping[str, Any]) -> None:
        self.recorder, self.model, self.settings = recorder, model, settings
        seed = _SEED + int(settings.get("perturb_seed", 0))
        self.generator = torch.Generator().manual_seed(seed)
        config = model.config
        self.shape = Shape(
            heads=config.num_attention_heads,
            groups=config.num_query_groups,
            channels=config.kv_channels,
            eps=config.layernorm_epsilon,
            q_rank=config.tpa_q_rank,
            rank=config.tpa_rank,
            window=int(config.window_size[0]) + 1,
            frequency_scale=config.grapem_log_freq_scale,
            topk=config.moe_router_topk,
            expert_groups=config.moe_router_num_groups,
            group_topk=config.moe_router_group_topk,
            scaling=config.moe_router_topk_scaling_factor,
        )
        lengths = settings["documents"]
        self.documents = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        starts = torch.tensor([0, *lengths]).cumsum(0)[:-1]
        self.positions = torch.arange(len(self.documents)) - starts[self.documents]
        # What a module's formula adds to the loss that is differentiated, besides its outputs.
        self._further = torch.zeros((), dtype=torch.float64)
        self._draw_weights()

    def _draw_weights(self) -> None:
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if name.startswith(("embedding", "output_layer")):
                    continue  # as they are: they are most of the model
                noise = self._draw(*weight.shape)
                if weight.ndim == 1:
                    weight.add_(noise if name.endswith("softmax_offset") else 0.1 * noise)
                else:
                    weight.copy_(noise / weight.shape[1] ** 0.5)
            for name, buffer in self.model.named_buffers():
                if name.endswith("expert_bias"):
                    buffer.copy_(0.05 * self._draw(*buffer.shape))

    def _draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def check(self) -> None:
        """Checks every kind of layer, and the end of the model."""
        layers = self.model.decoder.layers
        for kind in ("local", "global"):
            number = int(self.settings["layers"][kind])
            self._check_attention(f"decoder.layers.{number}", layers[number], kind == "local")
        for kind in ("dense", "routed"):
            number = int(self.settings["layers"][kind])
            self._check_feed_forward(f"decoder.layers.{number}", layers[number], kind == "routed")
        self._check_layer(f"decoder.layers.{self.settings['layers']['dense']}")
        self._check_end()

    # --- attention ---------------------------------------------------------------------------

    def _check_attention(self, name: str, layer: Any, local: bool) -> None:
        phi = self.model.grapem.phi
        weights = _named(layer, ("input_layernorm", "self_attention"))
        if local:
            weights["phi"] = phi

        def actual(x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = layer.self_attention(
                layer.input_layernorm(x[:, None]),
                self.documents[None].int(),
                rotary_pos_emb=self.model.grapem(self.positions[None]),
            )[0]
            return found[:, 0]

        def expected(x: torch.Tensor, exact: layer_formulas.Weights) -> torch.Tensor:
            normed = layer_formulas.norm(x, exact["input_layernorm.weight"], self.shape.eps)
            own = _below(exact, "self_attention")
            if local:
                return layer_formulas.local_attention(
                    normed, own, exact["phi"], self.documents, self.shape
                )
            return layer_formulas.global_attention(normed, own, self.documents, self.shape)

        bound = _ROUNDING + (len(self.documents) * _ANGLES if local else 0.0)
        self._compare(f"{name}.self_attention", actual, expected, weights, bound)

    # --- feed-forward ------------------------------------------------------------------------

    def _check_feed_forward(self, name: str, layer: Any, routed: bool) -> None:
        weights = _named(layer, ("pre_mlp_layernorm", "mlp"))
        chosen: list[torch.Tensor] = []

        def actual(x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = layer.mlp(layer.pre_mlp_layernorm(x[:, None]))[0]
            return found[:, 0]

        def expected(x: torch.Tensor, exact: layer_formulas.Weights) -> torch.Tensor:
            normed = layer_formulas.norm(x, exact["pre_mlp_layernorm.weight"], self.shape.eps)
            own = _below(exact, "mlp")
            if not routed:
                return layer_formulas.feed_forward(
                    normed, own["linear_fc1.weight"], own["linear_fc2.weight"]
                )
            scores = (normed @ own["router.weight"].T).sigmoid()
            self._check_choice(f"{name}.mlp.router", layer.mlp.router, scores, chosen[0])
            balance = layer_formulas.balancing_loss(scores, self.shape.topk)
            self._further = self.model.config.moe_aux_loss_coeff * balance
            return layer_formulas.experts(normed, own, chosen[0], self.shape)

        handles = []
        if routed:
            handles.append(
                layer.mlp.router.register_forward_hook(
                    lambda module, inputs, outputs: chosen.append(outputs[1].bool())
                )
            )
        try:
            self._compare(f"{name}.mlp", actual, expected, weights, _ROUNDING)
        finally:
            for handle in handles:
                handle.remove()

    def _check_choice(
        self,
        name: str,
        router: Any,
        scores: torch.Tensor,
        chosen: torch.Tensor,
    ) -> None:
        """The router's choice, where it is no tie."""
        wanted, gap = layer_formulas.choice(
            scores.detach(), router.expert_bias.double(), self.shape
        )
        wrong = (wanted != chosen).any(dim=1) & (gap > _TIE)
        self._law(name, "experts are the best by their scores", float(wrong.sum()), 0.0, "choice")

    # --- a layer, and the end of the model -----------------------------------------------------

    def _check_layer(self, name: str) -> None:
        """That a layer is x + attention, and that + feed-forward."""
        layer = self.model.get_submodule(name)
        x = self._draw(len(self.documents), self.model.config.hidden_size)
        exact = {key: value.detach().double() for key, value in layer.named_parameters()}
        with torch.no_grad():
            found = layer(
                x[:, None],
                self.documents[None].int(),
                rotary_pos_emb=self.model.grapem(self.positions[None]),
            )[0][:, 0]
            wide = x.double()
            normed = layer_formulas.norm(wide, exact["input_layernorm.weight"], self.shape.eps)
            wide = wide + layer_formulas.local_attention(
                normed,
                _below(exact, "self_attention"),
                self.model.grapem.phi.double(),
                self.documents,
                self.shape,
            )
            normed = layer_formulas.norm(wide, exact["pre_mlp_layernorm.weight"], self.shape.eps)
            wide = wide + layer_formulas.feed_forward(
                normed, exact["mlp.linear_fc1.weight"], exact["mlp.linear_fc2.weight"]
            )
        bound = _ROUNDING + len(self.documents) * _ANGLES
        self._law(name, "outputs are the formula's in fp64", _error(found, wide), bound, "output")

    def _check_end(self) -> None:
        """Final norm, output and loss of a few tokens: each is on its own there."""
        count, model = int(self.settings["scored"]), self.model
        labels = torch.randint(model.vocab_size, (count,), generator=self.generator)
        weights = {
            "norm": model.decoder.final_layernorm.weight,
            "output": model.output_layer.weight,
        }

        def actual(x: torch.Tensor) -> torch.Tensor:
            normed = model.decoder.final_layernorm(x[:, None])
            logits, _ = model.output_layer(normed)
            found: torch.Tensor = model.compute_language_model_loss(labels[None], logits)
            return found[0]

        def expected(x: torch.Tensor, exact: layer_formulas.Weights) -> torch.Tensor:
            normed = layer_formulas.norm(x, exact["norm"], self.shape.eps)
            return layer_formulas.losses(normed, exact["output"], labels)

        self._compare("output_layer", actual, expected, weights, _ROUNDING, count)

    # --- comparison ----------------------------------------------------------------------------

    def _compare(
        self,
        name: str,
        actual: Callable[[torch.Tensor], torch.Tensor],
        expected: Callable[[torch.Tensor, layer_formulas.Weights], torch.Tensor],
        weights: Mapping[str, torch.nn.Parameter],
        bound: float,
        length: int | None = None,
    ) -> None:
        """Outputs, and gradients of the input and of every weight."""
        from vpmoe.megatron.moe import auxiliary_loss_scale

        x = self._draw(length or len(self.documents), self.model.config.hidden_size)
        x.requires_grad_()
        self._further = torch.zeros((), dtype=torch.float64)
        with auxiliary_loss_scale(1.0):
            output = actual(x)
            cotangent = self._draw(*output.shape)
            found = torch.autograd.grad((output * cotangent).sum(), [x, *weights.values()])
        wide = x.detach().double().requires_grad_()
        exact = {key: value.detach().double().requires_grad_() for key, value in weights.items()}
        truth = expected(wide, exact)
        total = (truth * cotangent).sum() + self._further
        wanted = torch.autograd.grad(total, [wide, *exact.values()])
        self._law(name, "outputs are the formula's in fp64", _error(output, truth), bound, "output")
        for key, one, other in zip(["input", *weights], found, wanted, strict=True):
            distance = float((one.double() - other).norm() / other.norm())
            self._law(name, "gradients are the formula's in fp64", distance, bound, f"{key}.grad")

    def _law(self, name: str, law: str, error: float, bound: float, tensor: str) -> None:
        self.recorder.invariant(name, law, error, bound, tensor=tensor)


def _named(layer: Any, parts: Sequence[str]) -> dict[str, torch.nn.Parameter]:
    """A layer's parameters in some of its parts, by their names below it."""
    return {
        name: weight for name, weight in layer.named_parameters() if name.partition(".")[0] in parts
    }


def _below(weights: layer_formulas.Weights, part: str) -> dict[str, torch.Tensor]:
    prefix = f"{part}."
    return {
        name.removeprefix(prefix): weight
        for name, weight in weights.items()
        if name.startswith(prefix)
    }


def _error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found.double() - truth).abs().max() / truth.abs().max())
