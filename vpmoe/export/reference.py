"""The reference forward pass: an exported vpMoE in plain PyTorch, to read, check and decode with.

It imports torch and the export's own description, and nothing of the training model. It is written
to be read beside `docs/export.md`, not to be fast: every probability is materialised, experts run
one after the other, and nothing is cached between tokens. Load it in fp32, or in fp64 for a truth
that fp32 runs can be held against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vpmoe.export.architecture import Architecture, Experts, ExportError, Layer, tensor_shapes


class ReferenceModel(nn.Module):
    """An exported model.

    Args:
        model: what it is.
        tensors: name -> tensor, exactly those of `tensor_shapes(model)`.
        dtype: what it computes in, float32 or float64; every tensor is converted to it.

    Raises:
        ExportError: a tensor is missing, unknown or of another shape.
    """

    def __init__(
        self, model: Architecture, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        shapes = tensor_shapes(model)
        for name in sorted(shapes.keys() - tensors.keys()):
            raise ExportError(f"tensor {name}: missing")
        for name in sorted(tensors.keys() - shapes.keys()):
            raise ExportError(f"tensor {name}: unknown to this architecture")
        for name, shape in shapes.items():
            found = tuple(tensors[name].shape)
            if found != shape:
                raise ExportError(f"tensor {name}: shape {list(found)}, expected {list(shape)}")
        self.architecture = model
        self.weights = {name: tensors[name].to(dtype) for name in shapes}

    @torch.no_grad()
    def forward(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Logits [b, s, vocabulary]; arguments as of `hidden_states`."""
        return functional.linear(
            self.hidden_states(tokens, document_ids), self.weights["output_layer.weight"]
        )

    @torch.no_grad()
    def hidden_states(self, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Computes what the output layer reads.

        Args:
            tokens: integers [b, s].
            document_ids: integers [b, s], equal within a document, whose tokens attend to each
                other alone; positions restart where they change. None is one document a row.

        Returns:
            [b, s, hidden].

        Raises:
            ValueError: an id outside the vocabulary, or a sequence that is too long.
        """
        model, weights = self.architecture, self.weights
        if tokens.shape[1] > model.max_sequence_length:
            raise ValueError(
                f"{tokens.shape[1]} tokens: the model's longest sequence has "
                f"{model.max_sequence_length}"
            )
        if int(tokens.min()) < 0 or int(tokens.max()) >= model.vocab_size:
            raise ValueError(f"an id outside the vocabulary 0..{model.vocab_size - 1}")
        if document_ids is None:
            document_ids = torch.zeros_like(tokens)
        rotations = self._rotations(positions_of(document_ids))
        x = weights["embedding.word_embeddings.weight"][tokens]
        for number, layer in enumerate(model.layers):
            prefix = f"decoder.layers.{number}."
            normed = self._norm(x, prefix + "input_layernorm.weight")
            x = x + self._attention(
                prefix + "self_attention.", layer, normed, document_ids, rotations
            )
            normed = self._norm(x, prefix + "pre_mlp_layernorm.weight")
            if layer.experts:
                x = x + self._mixture(prefix + "mlp.", normed)
            else:
                x = x + self._mlp(prefix + "mlp.", normed)
        return self._norm(x, "decoder.final_layernorm.weight")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight."""
        mean_square = x.square().mean(dim=-1, keepdim=True)
        return x * (mean_square + self.architecture.norm_epsilon).rsqrt() * self.weights[name]

    def _rotations(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """cos and sin of position * frequency, [b, s, groups or 1, channels / 2] each."""
        model = self.architecture
        planes = model.kv_channels // 2
        if model.position_embedding == "none":
            return None
        dtype = self.weights["output_layer.weight"].dtype
        if model.position_embedding == "grapem":
            phi = self.weights["grapem.phi"].view(-1, planes)
            frequencies = (phi / model.grapem_log_freq_scale).exp()
        else:
            exponents = torch.arange(planes, dtype=dtype) / planes
            frequencies = (1.0 / model.rotary_base**exponents)[None]
        angles = positions.to(dtype)[:, :, None, None] * frequencies
        return angles.cos(), angles.sin()

    def _attention(
        self,
        prefix: str,
        layer: Layer,
        x: Tensor,
        document_ids: Tensor,
        rotations: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Attention of one layer, [b, s, hidden] to the same."""
        model = self.architecture
        query, key, value = self._heads(prefix + "linear_qkv.", layer, x)
        if model.qk_norm:
            query = self._norm(query, prefix + "q_layernorm.weight")
            key = self._norm(key, prefix + "k_layernorm.weight")
        if layer.rotates:
            assert rotations is not None
            query, key = _rotate(query, *rotations), _rotate(key, *rotations)

        # Consecutive query heads share a key and value head. [b, heads, s, channels]
        shared = model.num_attention_heads // model.num_query_groups
        key, value = (t.repeat_interleave(shared, dim=2) for t in (key, value))
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        logits = query @ key.transpose(-1, -2) / math.sqrt(model.kv_channels)

        place = torch.arange(x.shape[1])
        distance = place[:, None] - place[None, :]
        if layer.alibi:
            slopes = torch.tensor(alibi_slopes(model.num_attention_heads), dtype=x.dtype)
            logits = logits - slopes[:, None, None] * distance
        allowed = distance >= 0
        if layer.window is not None:
            allowed = allowed & (distance < layer.window)
        same = document_ids[:, :, None] == document_ids[:, None, :]
        logits = logits.masked_fill(~(allowed & same)[:, None], -math.inf)

        probabilities = self._softmax(logits, prefix)
        context = (probabilities @ value).transpose(1, 2).flatten(2)
        return functional.linear(context, self.weights[prefix + "linear_proj.weight"])

    def _heads(self, prefix: str, layer: Layer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query [b, s, heads, channels], key and value [b, s, groups, channels]."""
        model, weights = self.architecture, self.weights
        heads, groups, channels = (
            model.num_attention_heads,
            model.num_query_groups,
            model.kv_channels,
        )
        if not layer.tpa:
            # The rows of a group: its query heads, its key, its value.
            size = heads // groups
            rows = functional.linear(x, weights[prefix + "weight"])
            rows = rows.unflatten(-1, (groups, size + 2, channels))
            query, key, value = rows.split((size, 1, 1), dim=-2)
            return query.flatten(2, 3), key.squeeze(-2), value.squeeze(-2)
        assert model.tpa is not None

        def product(name: str, count: int, rank: int) -> Tensor:
            a = functional.linear(x, weights[f"{prefix}a_{name}"]).unflatten(-1, (count, rank))
            b = functional.linear(x, weights[f"{prefix}b_{name}"]).unflatten(-1, (rank, channels))
            return a @ b / rank

        return (
            product("q", heads, model.tpa.q_rank),
            product("k", groups, model.tpa.rank),
            product("v", groups, model.tpa.rank),
        )

    def _softmax(self, logits: Tensor, prefix: str) -> Tensor:
        """Probabilities of the keys; a head's own logit takes part and carries no value."""
        kind = self.architecture.softmax
        if kind == "vanilla":
            return logits.softmax(dim=-1)
        if kind == "learnable":
            offset = self.weights[prefix + "core_attention.softmax_offset"]
        else:
            offset = logits.new_zeros(logits.shape[1])
        column = offset[None, :, None, None].expand(*logits.shape[:-1], 1)
        return torch.cat((logits, column), dim=-1).softmax(dim=-1)[..., :-1]

    def _mlp(self, prefix: str, x: Tensor) -> Tensor:
        """W2 relu(W1 x)^2."""
        return _squared_relu_mlp(
            x,
            self.weights[prefix + "linear_fc1.weight"],
            self.weights[prefix + "linear_fc2.weight"],
        )

    def _mixture(self, prefix: str, x: Tensor) -> Tensor:
        """The chosen experts' outputs, weighed, and the shared expert's."""
        experts = self.architecture.experts
        assert experts is not None
        tokens = x.flatten(0, 1)
        logits = functional.linear(tokens, self.weights[prefix + "router.weight"])
        bias = self.weights[prefix + "router.expert_bias"] if experts.bias else None
        weights = route(logits, bias, experts)
        first = self.weights[prefix + "experts.experts.linear_fc1.weight"]
        second = self.weights[prefix + "experts.experts.linear_fc2.weight"]
        output = torch.zeros_like(tokens)
        for expert in range(experts.count):
            chosen = weights[:, expert].nonzero().squeeze(-1)
            if len(chosen):
                outputs = _squared_relu_mlp(tokens[chosen], first[expert], second[expert])
                output[chosen] += weights[chosen, expert, None] * outputs
        output = output.view_as(x)
        if experts.shared_ffn_hidden_size:
            output = output + self._mlp(prefix + "shared_experts.", x)
        return output


def route(logits: Tensor, bias: Tensor | None, experts: Experts) -> Tensor:
    """The weight of every expert for every token, 0 for those that were not chosen.

    Args:
        logits: [n, experts].
        bias: [experts], added to the scores for the choice alone, or None.
        experts: the rule.

    Returns:
        [n, experts] in the logits' dtype.
    """
    if experts.score_function == "sigmoid":
        scores = logits.sigmoid()
    else:
        scores = logits.softmax(dim=-1) if experts.pre_softmax else logits
    preference = scores if bias is None else scores + bias
    if experts.groups > 1:
        # A group counts by its best few experts.
        grouped = preference.unflatten(-1, (experts.groups, -1))
        best = grouped.topk(experts.group_score_topk, dim=-1).values.sum(dim=-1)
        groups = torch.zeros_like(best, dtype=torch.bool)
        groups.scatter_(1, best.topk(experts.group_topk, dim=-1).indices, True)
        preference = grouped.masked_fill(~groups[..., None], -math.inf).flatten(1)
    chosen = preference.topk(experts.topk, dim=-1).indices
    weights = scores.gather(1, chosen)
    if experts.score_function == "softmax" and not experts.pre_softmax:
        weights = weights.softmax(dim=-1)
    elif experts.score_function == "sigmoid" and experts.topk > 1:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return torch.zeros_like(logits).scatter(1, chosen, weights * experts.scaling_factor)


def positions_of(document_ids: Tensor) -> Tensor:
    """Positions [b, s] that restart where document_ids [b, s] change."""
    place = torch.arange(document_ids.shape[1]).expand_as(document_ids)
    starts = torch.ones_like(document_ids, dtype=torch.bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return place - torch.where(starts, place, 0).cummax(dim=1).values


def alibi_slopes(heads: int) -> Sequence[float]:
    """The slopes 2^(-8h/H), h = 1..H.

    Where H is no power of two: those of the power below, then every other one of the power above.
    """
    power = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    between = [2 ** (-4 * h / power) for h in range(1, 2 * power, 2)]
    return (slopes + between)[:heads]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the planes (i, i + channels / 2) of x [b, s, heads, channels] by the angles."""
    if cos.shape[2] > 1:
        cos, sin = (t.repeat_interleave(x.shape[2] // t.shape[2], dim=2) for t in (cos, sin))
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _squared_relu_mlp(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return functional.linear(functional.linear(x, first).relu().square(), second)
