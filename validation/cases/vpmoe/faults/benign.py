"""Changes that preserve behaviour up to rounding: every check must let them pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from validation.cases.base import Benign
from validation.cases.vpmoe.faults.einsum import einsum_attention
from validation.cases.vpmoe.faults.planting import Planted, patched

_declared: list[Benign] = []


def harmless(
    name: str, description: str, case: str = "tiny_moe"
) -> Callable[[Callable[[], Planted]], Callable[[], Planted]]:
    """Declares the function below as a harmless change."""

    def declare(plant: Callable[[], Planted]) -> Callable[[], Planted]:
        target = f"{plant.__module__}:{plant.__name__}"
        _declared.append(Benign(id=name, description=description, plant=target, case=case))
        return plant

    return declare


def declared() -> tuple[Benign, ...]:
    """All of them, in order."""
    return tuple(_declared)


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

    return patched("megatron.core.transformer.moe.router", "TopKRouter.gating", wrap)


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
