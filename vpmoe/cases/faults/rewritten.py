"""Harmless changes: other ways to compute the same, in another order or with more bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vpmoe.cases.faults.benign import harmless
from vpmoe.cases.faults.einsum import einsum_attention
from vpmoe.cases.faults.planting import Planted, arguments, keywords, patched, result
from vpmoe.megatron import points


def _attention(wrap: Callable[[Any], Any]) -> Planted:
    """Puts another computation in the place of the eager backend's."""
    return patched("vpmoe.model.attention.backends", "eager_attention", wrap)


@harmless("attention-by-einsum", "logits and context by einsum over grouped heads")
def attention_by_einsum() -> Planted:
    """Keys and values are not repeated."""
    return _attention(lambda original: einsum_attention)


@harmless("attention-in-fp64", "attention computed in fp64 and rounded")
def attention_in_fp64() -> Planted:
    """A more exact kernel."""

    def wrap(original: Any) -> Any:
        def attend(q: Any, k: Any, v: Any, offset: Any, document_ids: Any, pattern: Any) -> Any:
            wide = None if offset is None else offset.double()
            found = original(q.double(), k.double(), v.double(), wide, document_ids, pattern)
            return found.to(q.dtype)

        return attend

    return _attention(wrap)


@harmless("attention-by-sequence", "sequences of a micro-batch, one after the other")
def attention_by_sequence() -> Planted:
    """Another blocking of the same sums."""

    def wrap(original: Any) -> Any:
        def attend(q: Any, k: Any, v: Any, offset: Any, document_ids: Any, pattern: Any) -> Any:
            import torch

            parts = []
            for b in range(q.shape[1]):
                one = slice(b, b + 1)
                ids = None if document_ids is None else document_ids[one]
                parts.append(original(q[:, one], k[:, one], v[:, one], offset, ids, pattern))
            return torch.cat(parts, dim=1)

        return attend

    return _attention(wrap)


@harmless("norm-by-hand", "RMSNorm from mean and rsqrt, not torch's fused one")
def norm_by_hand() -> Planted:
    """Unfused against fused."""

    def wrap(original: Any) -> Any:
        def forward(self: Any, x: Any) -> Any:
            import torch

            scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)
            return x * scale * self.weight

        return forward

    return patched("vpmoe.model.norm", "RMSNorm.forward", wrap)


@harmless("tpa-by-einsum", "TPA's heads composed by einsum, divided before the sum")
def tpa_by_einsum() -> Planted:
    """Another order of operations."""

    def wrap(original: Any) -> Any:
        def compose(self: Any, a: Any, b: Any, heads: int, rank: int) -> Any:
            import torch

            factors = a.unflatten(-1, (heads, rank)) / rank, b.unflatten(-1, (rank, self.channels))
            return torch.einsum("sbhr,sbrd->sbhd", *factors)

        return compose

    return patched("vpmoe.model.tpa", "TensorProductQKV._compose", wrap)


@harmless("rotation-by-complex-numbers", "GRAPE-M's planes as complex numbers")
def rotation_by_complex_numbers() -> Planted:
    """The same rotation, written as a product."""

    def wrap(original: Any) -> Any:
        def rotate(x: Any, cos_sin: Any) -> Any:
            import torch

            turn = torch.complex(cos_sin[0], cos_sin[1])
            first, second = x.chunk(2, dim=-1)
            turned = torch.complex(first.contiguous(), second.contiguous()) * turn
            return torch.cat((turned.real, turned.imag), dim=-1)

        return rotate

    return patched("vpmoe.model.self_attention", "rotate", wrap)


@harmless("router-in-fp64", "router logits computed in fp64 and rounded")
def router_in_fp64() -> Planted:
    """A more exact router."""

    def wrap(original: Any) -> Any:
        def gating(self: Any, hidden: Any) -> Any:
            import torch

            logits = torch.nn.functional.linear(hidden.double(), self.weight.double())
            return logits.to(hidden.dtype)

        return gating

    return patched(*points.GATING.place, wrap)


@harmless("normuon-in-small-chunks", "matrices orthogonalised in smaller stacks")
def normuon_in_small_chunks() -> Planted:
    """Another batching of the same products."""
    return patched("vpmoe.optimizer.normuon", "_SMALLEST_CHUNK", lambda original: 1 << 12)


@harmless("polar-express-in-fp64", "Polar Express in fp64 and rounded")
def polar_express_in_fp64() -> Planted:
    """A more exact optimizer."""

    def wrap(original: Any) -> Any:
        def polar_express(matrices: Any, *args: Any, **kwargs: Any) -> Any:
            return original(matrices.double(), *args, **kwargs).to(matrices.dtype)

        return polar_express

    return patched("vpmoe.optimizer.normuon", "polar_express", wrap)


@harmless("attention-by-head", "query heads one after the other")
def attention_by_head() -> Planted:
    """Another blocking of the same sums."""

    def wrap(original: Any) -> Any:
        def attend(q: Any, k: Any, v: Any, offset: Any, ids: Any, pattern: Any) -> Any:
            import dataclasses

            import torch

            share = q.shape[2] // k.shape[2]
            parts = []
            for head in range(q.shape[2]):
                one, group = slice(head, head + 1), slice(head // share, head // share + 1)
                slopes = None if pattern.slopes is None else pattern.slopes[one]
                own = dataclasses.replace(pattern, slopes=slopes)
                column = None if offset is None else offset[one]
                parts.append(
                    original(q[:, :, one], k[:, :, group], v[:, :, group], column, ids, own)
                )
            return torch.cat(parts, dim=-1)

        return attend

    return _attention(wrap)


@harmless("attention-scales-queries", "queries are scaled, not their products with keys")
def attention_scales_queries() -> Planted:
    """Another order of operations."""

    def wrap(original: Any) -> Any:
        def attend(q: Any, k: Any, v: Any, offset: Any, ids: Any, pattern: Any) -> Any:
            import dataclasses

            unscaled = dataclasses.replace(pattern, scale=1.0)
            return original(q * pattern.scale, k, v, offset, ids, unscaled)

        return attend

    return _attention(wrap)


@harmless("norm-in-fp64", "RMSNorm computed in fp64 and rounded")
def norm_in_fp64() -> Planted:
    """A more exact norm."""

    def wrap(original: Any) -> Any:
        def forward(self: Any, x: Any) -> Any:
            import torch

            weight = self.weight.double()
            found = torch.nn.functional.rms_norm(x.double(), weight.shape, weight, self.eps)
            return found.to(x.dtype)

        return forward

    return patched("vpmoe.model.norm", "RMSNorm.forward", wrap)


@harmless("angles-in-fp64", "GRAPE-M's angles computed in fp64 and rounded")
def angles_in_fp64() -> Planted:
    """More exact frequencies."""

    def wrap(original: Any) -> Any:
        def rotation_angles(phi: Any, positions: Any, scale: float) -> Any:
            return original(phi.double(), positions, scale).to(phi.dtype)

        return rotation_angles

    return patched("vpmoe.model.grape", "rotation_angles", wrap)


@harmless("rotation-by-matrices", "GRAPE-M's planes turned by 2 x 2 matrices")
def rotation_by_matrices() -> Planted:
    """The same rotation, written as a product."""

    def wrap(original: Any) -> Any:
        def rotate(x: Any, cos_sin: Any) -> Any:
            import torch

            cos, sin = cos_sin
            turn = torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)
            planes = torch.stack(x.chunk(2, dim=-1), -1).unsqueeze(-1)
            return torch.cat((turn @ planes).squeeze(-1).unbind(-1), dim=-1)

        return rotate

    return patched("vpmoe.model.self_attention", "rotate", wrap)


@harmless("tpa-factors-in-parts", "TPA's factors by several products, not one")
def tpa_factors_in_parts() -> Planted:
    """Unfused against fused."""

    def wrap(original: Any) -> Any:
        import types

        import torch

        def linear(x: Any, weight: Any) -> Any:
            return torch.cat([original.linear(x, part) for part in weight.split(8)], dim=-1)

        return types.SimpleNamespace(linear=linear)

    return patched("vpmoe.model.tpa", "functional", wrap)


@harmless("tpa-divides-its-factors", "TPA divides a factor by the rank, not the sum")
def tpa_divides_its_factors() -> Planted:
    """Another order of operations."""

    def wrap(original: Any) -> Any:
        def compose(self: Any, a: Any, b: Any, heads: int, rank: int) -> Any:
            return original(self, a / rank, b, heads, rank) * rank

        return compose

    return patched("vpmoe.model.tpa", "TensorProductQKV._compose", wrap)


@harmless("linear-in-fp64", "linear layers computed in fp64 and rounded")
def linear_in_fp64() -> Planted:
    """More exact products, forward and backward."""

    def wrap(original: Any) -> Any:
        def linear(x: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
            import torch

            wide = torch.nn.functional.linear(x.double(), weight.double())
            return wide.to(x.dtype)

        return linear

    return patched(*points.LINEAR.place, wrap)


@harmless("linear-by-plain-autograd", "linear layers by torch's own product and gradient")
def linear_by_plain_autograd() -> Planted:
    """Unfused against Megatron's."""

    def wrap(original: Any) -> Any:
        return lambda x, weight, *args, **kwargs: x.matmul(weight.t())

    return patched(*points.LINEAR.place, wrap)


@harmless("linear-in-two-halves", "linear layers sum two halves of their inputs")
def linear_in_two_halves() -> Planted:
    """Another order of summation."""

    def wrap(original: Any) -> Any:
        def linear(x: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
            half = x.shape[-1] // 2
            first = x[..., :half].matmul(weight[:, :half].t())
            return first + x[..., half:].matmul(weight[:, half:].t())

        return linear

    return patched(*points.LINEAR.place, wrap)


@harmless("logits-in-fp64", "the cross entropy of logits widened to fp64")
def logits_in_fp64() -> Planted:
    """A more exact loss."""

    def wrap(original: Any) -> Any:
        def compute(self: Any, labels: Any, logits: Any) -> Any:
            return original(self, labels, logits.double()).to(logits.dtype)

        return compute

    return patched(*points.MODEL_LOSS.place, wrap)


@harmless("cross-entropy-by-torch", "torch's cross entropy, not Megatron's vocabulary-parallel one")
def cross_entropy_by_torch() -> Planted:
    """Another formula of the same loss."""

    def wrap(original: Any) -> Any:
        def compute(self: Any, labels: Any, logits: Any) -> Any:
            import torch

            flat = torch.nn.functional.cross_entropy(
                logits.transpose(0, 1).flatten(0, 1).float(), labels.flatten(), reduction="none"
            )
            return flat.view(labels.shape)

        return compute

    return patched(*points.MODEL_LOSS.place, wrap)


@harmless("square-by-product", "squared ReLU as a product, not a power")
def square_by_product() -> Planted:
    """Another formula of the same activation."""

    def wrap(original: Any) -> Any:
        def squared_relu(x: Any) -> Any:
            positive = x.clamp(min=0.0)
            return positive * positive

        return squared_relu

    return patched(*points.SQUARED_RELU.place, wrap)


@harmless("router-scores-in-fp64", "routing weights computed in fp64 and rounded")
def router_scores_in_fp64() -> Planted:
    """More exact weights."""

    def wrap(original: Any) -> Any:
        def route(logits: Any, topk: int, **kwargs: Any) -> Any:
            weights, chosen = original(logits.double(), topk, **kwargs)
            return weights.to(logits.dtype), chosen

        return route

    return patched(*points.ROUTING.place, wrap)


@harmless("experts-last-first", "experts compute in the opposite order")
def experts_last_first() -> Planted:
    """Another order of independent products."""

    def wrap(original: Any) -> Any:
        def forward(self: Any, hidden: Any, counts: Any, weights: Any) -> Any:
            import torch

            sizes = counts.tolist()
            tokens, shares = hidden.split(sizes), weights.split(sizes)
            order = range(len(sizes) - 1, -1, -1)
            found = {i: self.local_experts[i](tokens[i], shares[i])[0] for i in order}
            return torch.cat([found[i] for i in range(len(sizes))], dim=0), None

        return forward

    return patched(*points.EXPERTS.place, wrap)


@harmless("gradient-norm-in-fp64", "the gradient norm accumulated in fp64")
def gradient_norm_in_fp64() -> Planted:
    """A more exact norm."""

    def wrap(original: Any) -> Any:
        def get_grad_norm_fp32(grads: Any, norm_type: float = 2, **_: Any) -> float:
            found = [grads] if hasattr(grads, "norm") else list(grads)
            return float(sum(float(g.double().square().sum()) for g in found) ** 0.5)

        return get_grad_norm_fp32

    return patched(*points.GRAD_NORM.place, wrap)


@harmless("normuon-matrix-by-matrix", "matrices orthogonalised one by one")
def normuon_matrix_by_matrix() -> Planted:
    """Another batching of the same products."""

    def wrap(original: Any) -> Any:
        def polar_express(matrices: Any, *args: Any, **kwargs: Any) -> Any:
            import torch

            parts = [original(one, *args, **kwargs) for one in matrices.split(1)]
            return torch.cat(parts)

        return polar_express

    return patched("vpmoe.optimizer.normuon", "polar_express", wrap)


@harmless("polar-express-transposed", "the polar factor of the transpose, transposed")
def polar_express_transposed() -> Planted:
    """An identity of the polar factor."""

    def wrap(original: Any) -> Any:
        def polar_express(matrices: Any, *args: Any, **kwargs: Any) -> Any:
            return original(matrices.mT.contiguous(), *args, **kwargs).mT.contiguous()

        return polar_express

    return patched("vpmoe.optimizer.normuon", "polar_express", wrap)


@harmless("adamw-tensor-by-tensor", "AdamW without foreach", "tiny_adam", None)
def adamw_tensor_by_tensor() -> Planted:
    """Another implementation of torch's."""
    return keywords("torch.optim", "AdamW", foreach=False)


@harmless("adamw-fused", "torch's fused AdamW", "tiny_adam", None)
def adamw_fused() -> Planted:
    """Another implementation of torch's."""
    return keywords("torch.optim", "AdamW", fused=True)


@harmless("residual-in-fp64", "residuals added in fp64 and rounded")
def residual_in_fp64() -> Planted:
    """A more exact sum."""

    def change(get: Any) -> Any:
        def add(given: Any, residual: Any, probability: float) -> Any:
            output, bias = given
            found = get((output.double(), bias), residual.double(), probability)
            return found.to(residual.dtype)

        return add

    return result("vpmoe.model.layer_specs", "get_bias_dropout_add", change)


@harmless("loss-summed-backwards", "token losses summed from the last to the first")
def loss_summed_backwards() -> Planted:
    """Another order of summation."""

    def change(losses: Any, batch: Any, weights: Any) -> tuple[Any, ...]:
        import dataclasses

        back = {name: getattr(batch, name).flip(-1) for name in ("span_id", "loss_mask")}
        return (losses.flip(-1), dataclasses.replace(batch, **back), weights)

    return arguments("vpmoe.data.loss", "span_loss", change)
