"""Every parameter of a built model has its initial value from a rule, and from the seed alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

_DENSE = {"num_moe_experts": None}
_BIASED = {**_DENSE, "use_tpa": False, "add_bias_linear": True}
_BIASED_EXPERTS = {
    "use_tpa": False,
    "add_bias_linear": True,
    "moe_shared_expert_intermediate_size": None,
}
_GATED = {"gated_linear_unit": True, "activation_func": torch.nn.functional.silu}

MODELS: dict[str, dict[str, Any]] = {
    "every feature": {},
    "grouped experts": {"expert_kernel": "grouped"},
    "gated": _GATED,
    "dense": _DENSE,
    "qkv biases": {"use_tpa": False, "add_qkv_bias": True},
    "biases": _BIASED,
    "biases, gated": {**_BIASED, **_GATED},
    "biases of experts": _BIASED_EXPERTS,
    "gate of the shared expert": {"moe_shared_expert_gate": True},
    "output gate": {**_DENSE, "use_tpa": False, "attention_output_gate": True},
    "frequencies of every head": {"grapem_per_head": True},
    "RoPE": {"position_embedding_type": "rope", "softmax_type": "off-by-one"},
    "bf16": {"params_dtype": torch.bfloat16, "bf16": True},
    "bf16, biases": {**_BIASED_EXPERTS, "params_dtype": torch.bfloat16, "bf16": True},
}


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Memory that is allocated and not written reads as NaN."""
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", MODELS)
def test_no_parameter_or_buffer_is_left_as_allocated(
    small_model: Callable[..., Any], poisoned_memory: None, name: str
) -> None:
    model = small_model(**MODELS[name])
    for kind in (model.named_parameters(), model.named_buffers()):
        for path, tensor in kind:
            assert tensor.isfinite().all(), path
            if path.endswith(".bias"):
                assert not tensor.any(), path


@pytest.mark.parametrize("name", MODELS)
def test_every_matrix_follows_the_seed_and_nothing_else(
    small_model: Callable[..., Any], name: str
) -> None:
    one, again, other = (small_model(seed=seed, **MODELS[name]) for seed in (1, 1, 2))
    for (path, a), (_, b), (_, c) in zip(
        one.named_parameters(), again.named_parameters(), other.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), path
        assert torch.equal(a, c) == (a.ndim < 2), path


@pytest.mark.parametrize(
    ("shape", "name"), [((3,), "unruled"), ((), "unruled"), ((2, 3, 4), "weight3"), ((1,) * 4, "x")]
)
def test_a_parameter_that_no_rule_covers_is_refused_by_name(
    small_model: Callable[..., Any], shape: tuple[int, ...], name: str
) -> None:
    from megatron.core.process_groups_config import ProcessGroupCollection

    from vpmoe.model.initialization import initialize_weights

    model = small_model()
    model.decoder.layers[1].register_parameter(name, torch.nn.Parameter(torch.empty(shape)))
    groups = ProcessGroupCollection.use_mpu_process_groups()
    with pytest.raises(ValueError, match=rf"decoder\.layers\.1\.{name}: no rule"):
        initialize_weights(model, model.config, 1, groups)


@pytest.mark.parametrize("bias", ["add_bias_linear", "add_qkv_bias"])
def test_tpa_refuses_biases(small_model: Callable[..., Any], bias: str) -> None:
    with pytest.raises(ValueError, match="TPA's factors have no bias"):
        small_model(**{**_DENSE, bias: True})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (_BIASED_EXPERTS, "no bias"),
        (_GATED, "no gate"),
        ({"moe_apply_probs_on_input": True, "moe_router_topk": 1}, "weigh their outputs"),
    ],
)
def test_grouped_experts_refuse_with_the_way_out(
    small_model: Callable[..., Any], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=rf"{reason}.*use --expert-kernel sequential"):
        small_model(**changes, expert_kernel="grouped")
    small_model(**changes, expert_kernel="sequential")
    small_model(**changes)
