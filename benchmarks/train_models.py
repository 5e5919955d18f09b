"""The models that `benchmarks.train` compares: vpMoE, and Megatron-core's GPT of the same sizes.

A stock model is Megatron's own GPTModel on Transformer Engine, tuned: GQA and RoPE, TEGroupedMLP,
fused permutation, routing, RoPE and cross entropy, fused Adam. It is trained through the same entry
on the same data with the same loss, without documents.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from vpmoe.cases.gpu import DETERMINISTIC, FUSED, GRAPHED
from vpmoe.config import load_preset

# What the device has to do the same for all: no logging, no waiting for checks of the loss, garbage
# collected at will.
_COMMON = (
    *("--train-iters", "100000", "--log-interval", "100000", "--num-workers", "2"),
    *("--no-check-for-nan-in-loss-and-grad", "--manual-gc", "--manual-gc-interval", "100000"),
)
_UNFUSED = ("--expert-kernel", "grouped", "--loss-kernel", "full")
# Gradients travel while others are computed.
_OVERLAP = ("--overlap-grad-reduce",)
_STOCK = (
    *("--transformer-impl", "transformer_engine", "--moe-token-dispatcher-type", "alltoall"),
    *("--moe-grouped-gemm", "--moe-permute-fusion", "--moe-router-fusion"),
    *("--cross-entropy-loss-fusion", "--cross-entropy-fusion-impl", "native"),
    *("--no-gradient-accumulation-fusion", "--no-bias-gelu-fusion", "--cuda-graph-impl", "none"),
)
_OURS_ALONE = ("grape", "tpa_", "use_tpa", "no_rope", "normuon_", "polar_express_", "softmax_type")
_WINDOW = ("window_size", "window_attn_skip_freq")

MODELS: Mapping[str, str] = {
    "stock": "Megatron-core + TE, tuned",
    "stock-window": "Megatron-core + TE with its window and learnable softmax",
    "vpmoe-deterministic": "vpMoE in deterministic mode, as goldens are recorded",
    "vpmoe": "vpMoE",
    "vpmoe-graph": "vpMoE in a CUDA graph",
    "vpmoe-graph-deterministic": "vpMoE in a CUDA graph, deterministic",
    "vpmoe-dp2": "vpMoE in a CUDA graph on two GPUs, data parallel",
    "vpmoe-unfused": "vpMoE with grouped experts and all logits",
    "vpmoe-ep2": "vpMoE on two GPUs, data and expert parallel",
}
RANKS: Mapping[str, int] = {"vpmoe-dp2": 2, "vpmoe-ep2": 2}
"""Of the models that run on several GPUs."""
_FLAGS: Mapping[str, tuple[str, ...]] = {
    "vpmoe-deterministic": ("--deterministic-mode",),
    "vpmoe-graph": GRAPHED,
    "vpmoe-graph-deterministic": (*GRAPHED, *FUSED, "--deterministic-mode"),
    "vpmoe-dp2": (*GRAPHED, *_OVERLAP),
    "vpmoe-ep2": (
        *(*_UNFUSED, "--optimizer-cuda-graph", "--expert-model-parallel-size", "2", *_OVERLAP),
    ),
    "vpmoe-unfused": _UNFUSED,
}


def environment_of(model: str) -> Mapping[str, str]:
    """Variables that a model's flags ask for."""
    return DETERMINISTIC if "--deterministic-mode" in _FLAGS.get(model, ()) else {}


def is_graphed(model: str) -> bool:
    """Whether hooks don't run in a model's steps."""
    return "--cuda-graph-impl" in _FLAGS.get(model, ())


def flags_of(
    model: str, config: Path, layers: int | None, tokens: int, data: Path, more: list[str]
) -> list[str]:
    """A model's flags.

    Args:
        model: one of `MODELS`.
        config: a preset, whose sizes every model has.
        layers: another number of layers, the first one dense; None for the preset's.
        tokens: of a step on a GPU; whole sequences.
        data: folder of the dataset.
        more: further flags, put last.

    Raises:
        ValueError: tokens are no whole sequences.
    """
    preset = load_preset(config)
    fields = dict(preset.fields)
    if layers is not None:
        fields["num_layers"] = layers
        fields["moe_layer_freq"] = f"([0]+[1]*{layers - 1})"
    if tokens % fields["seq_length"]:
        raise ValueError(f"{tokens} tokens are no whole sequences of {fields['seq_length']}")
    fields["micro_batch_size"] = tokens // fields["seq_length"]
    fields["global_batch_size"] = fields["micro_batch_size"] * RANKS.get(model, 1)
    for name in ("train_iters", "log_interval"):
        fields.pop(name)
    extra = _FLAGS.get(model, ())
    if model.startswith("stock"):
        window = _WINDOW if model == "stock" else ()
        fields = {
            name: value
            for name, value in fields.items()
            if not name.startswith(_OURS_ALONE) and name not in window
        }
        fields |= {"position_embedding_type": "rope", "optimizer": "adam", "lr": 1e-4}
        fields["min_lr"] = 1e-5
        if model == "stock-window":
            left = fields.pop("window_size") - 1
            fields |= {"window_size": f"{left},0", "softmax_type": "learnable"}
        extra = _STOCK
    flags = replace(preset, fields=fields).to_flags()
    return [*flags, *_COMMON, *extra, "--synth-kd-data", str(data), *more]


@contextlib.contextmanager
def providers(model: str) -> Iterator[None]:
    """Makes vpMoE's training entry build and step a stock model."""
    if not model.startswith("stock"):
        yield
        return
    import vpmoe.model.builder as builder
    import vpmoe.pretrain as pretrain
    from vpmoe.runtime.lane import GPU
    from vpmoe.runtime.patches import replaced

    with ExitStack() as stack:
        for owner, name, value in (
            (builder, "model_provider", _stock_model),
            (pretrain, "forward_step", _stock_step),
            # The lane's flags choose vpMoE's layers and switch fusions off.
            (pretrain, "detect_lane", lambda: replace(GPU, default_flags=())),
        ):
            stack.enter_context(replaced(owner, name, value))
        yield


def _stock_model(
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
    config: Any = None,
    pg_collection: Any = None,
) -> Any:
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.training import get_args
    from megatron.training.argument_utils import core_transformer_config_from_args

    args = get_args()
    config = config or core_transformer_config_from_args(args)
    return GPTModel(
        config,
        get_gpt_decoder_block_spec(config, True, args.normalization, vp_stage=vp_stage),
        args.padded_vocab_size,
        args.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        position_embedding_type="rope",
        rotary_base=args.rotary_base,
        share_embeddings_and_output_weights=False,
        pg_collection=pg_collection,
        vp_stage=vp_stage,
    )


def _stock_step(
    data_iterator: Iterator[Any], model: Any, return_schedule_plan: bool = False
) -> tuple[Any, Callable[[Any], Any]]:
    del return_schedule_plan
    from vpmoe.data.batch import get_batch
    from vpmoe.data.loss import loss_function

    batch = get_batch(data_iterator)
    output = model(batch.tokens, batch.position_ids, None, labels=batch.labels)
    return output, loss_function(batch)
