"""Cases without a training: flags that exclude each other, and parts of model and optimizer."""

from __future__ import annotations

from typing import Any

from validation.cases.base import Case, Needs
from vpmoe.cases.targets import MODULES, WARM

_TPA = ("use_tpa", "tpa_rank", "tpa_q_rank")
_SHARED = "moe_shared_expert_intermediate_size"
_LIMIT = ("moe_router_num_groups", "moe_router_group_topk")
_EXPERTS = (
    *("num_experts", "moe_layer_freq", "moe_ffn_hidden_size", _SHARED, "moe_router_topk", *_LIMIT),
    *("moe_router_score_function", "moe_router_topk_scaling_factor"),
    *("moe_router_load_balancing_type", "moe_aux_loss_coeff", "moe_router_enable_expert_bias"),
    *("moe_router_bias_update_rate", "moe_router_dtype"),
)
_TP2 = "--tensor-model-parallel-size 2 --sequence-parallel"
_TP4 = "--tensor-model-parallel-size 4 --sequence-parallel"
_GRAPH = "--cuda-graph-impl full_iteration --no-check-for-nan-in-loss-and-grad"


def asked(flags: str = "", *without: str) -> dict[str, Any]:
    """Flags put behind the preset's, less some fields of it."""
    return {"flags": flags, "without": list(without)}


_REFUSED = (
    asked("--context-parallel-size 2"),
    asked("--multi-latent-attention"),
    asked("--mtp-num-layers 1"),
    asked("--use-grouped-gemm-for-shared-expert"),
    asked("--normalization LayerNorm"),
    asked("", "untie_embeddings_and_output_weights"),
    asked("--attention-dropout 0.1"),
    asked("", "disable_bias_linear"),
    asked("", "disable_bias_linear", _SHARED),
    asked("--add-qkv-bias"),
    asked("--fp8-format e4m3"),
    asked("--cuda-graph-impl local"),
    asked(f"{_GRAPH} --optimizer adam --fp16"),
    asked(f"{_GRAPH} --rampup-batch-size 2 2 100"),
    asked("--position-embedding-type learned_absolute"),
    asked("--flash-decode"),
    asked("--kv-channels 15"),
    asked("--grapem-log-freq-scale 0"),
    asked("--position-embedding-type none --grapem-per-head"),
    asked("--position-embedding-type rope --no-grapem-learnable-freq"),
    asked(f"{_TP4} --grapem-per-head", *_TPA),
    asked("--num-query-groups 3"),
    asked(_TP4, *_TPA),
    asked("", "window_size", *_TPA),
    asked("", "no_rope_freq"),
    asked("--grape-a-with-rotation", "grape_a"),
    asked("", "use_tpa"),
    asked("", "window_size", "window_attn_skip_freq", "grape_a"),
    asked("", "tpa_rank"),
    asked("", "tpa_q_rank"),
    asked("--tpa-rank 0"),
    asked("--tpa-q-rank -1"),
    asked(_TP4),
    asked("--moe-router-group-score-topk 2", *_EXPERTS),
    asked("--moe-router-group-score-topk 2", *_LIMIT),
    asked("--moe-router-group-score-topk 2 --moe-enable-routing-replay"),
    asked("--moe-router-topk 5"),
    asked("--moe-router-group-topk 2 --moe-router-topk 1"),
    asked("--moe-router-group-score-topk 5"),
    asked("--moe-router-group-score-topk 0"),
    asked("--optimizer adam --normuon-aux-lr 1e-3"),
    asked("--optimizer adam", "normuon_aux_lr"),
    asked(
        "--optimizer adam --polar-express-coeffs-path coefficients.json",
        *("normuon_aux_lr", "normuon_aux_min_lr"),
    ),
    asked("--use-distributed-optimizer"),
    asked("--optimizer-cpu-offload"),
    asked("--use-precision-aware-optimizer"),
    asked("--overlap-param-gather"),
    asked("--use-torch-fsdp2"),
    asked("--use-megatron-fsdp"),
    asked("--fp16"),
    asked("--use-mup"),
    asked("--main-grads-dtype bf16"),
    asked("--exp-avg-sq-dtype fp8"),
    asked("--optimizer-cuda-graph"),
    asked("--normuon-momentum 1"),
    asked("--normuon-beta2 -0.5"),
    asked("--polar-express-safety-factor 1"),
    asked("--polar-express-coeffs-path configs/no-such-file.json"),
    asked("--normuon-aux-lr 1e-4 --normuon-aux-min-lr 2e-4"),
    asked("--decoupled-lr 1e-4"),
    asked("--window-size 16,1"),
    asked("--window-size 0"),
    asked("--window-size none"),
)
_ACCEPTED = (
    asked(),
    asked("--bf16"),
    asked("--kv-channels 14"),
    asked(f"{_TP2} --grapem-per-head", *_TPA),
    asked(_TP2),
    asked("--grape-a-with-rotation", "no_rope_freq"),
    asked("--tpa-rank 1 --tpa-q-rank 1"),
    asked("--moe-router-topk 5 --moe-router-group-topk 2"),
    asked("--moe-router-group-score-topk 4"),
    asked("--normuon-momentum 0 --normuon-beta2 0 --polar-express-safety-factor 0"),
    asked("--normuon-aux-lr 1e-4 --normuon-aux-min-lr 1e-4"),
    asked("--decoupled-lr 3e-4 --decoupled-min-lr 3e-4"),
    asked("--window-size 15,0"),
)
# Warnings, and beside each the nearest that binds.
_VAIN = (
    asked("--moe-router-num-groups 2", *_LIMIT),
    asked("--moe-router-group-topk 2"),
    asked("--moe-router-num-groups 4 --moe-router-group-topk 2"),
    asked("--moe-router-num-groups 4 --moe-router-group-topk 2 --moe-router-group-score-topk 2"),
    asked(
        "--moe-router-load-balancing-type sinkhorn --moe-aux-loss-coeff 0",
        *("moe_router_enable_expert_bias", "moe_router_bias_update_rate"),
    ),
    asked("--moe-router-topk 8", *_LIMIT),
    asked("--moe-expert-capacity-factor 4"),
    asked("--moe-expert-capacity-factor 3.5"),
    asked("--window-attn-skip-freq 1 --num-layers 1 --moe-layer-freq 1 --no-rope-freq 1"),
    asked("--window-attn-skip-freq 1 --no-rope-freq 1", *_TPA),
    asked("--window-size 64"),
    asked("--window-size 63"),
    asked("", "window_attn_skip_freq"),
    asked("--no-rope-freq 5 --grape-a-with-rotation"),
    asked("--position-embedding-type none"),
    asked("--moe-layer-freq ([0]*4) --moe-router-group-topk 2"),
)

CASES = (
    Case(
        name="refusals",
        description="what is said of flags that exclude each other, of the nearest that don't, and "
        "of limits that cannot bind",
        lanes=("cpu",),
        target="vpmoe.cases.refusals:run",
        settings={
            "base": "configs/vpmoe-tiny.toml",
            "flags": ["--global-batch-size", "8"],
            "asked": [*_REFUSED, *_ACCEPTED, *_VAIN],
        },
        preload=WARM,
        needs=Needs(modules=MODULES),
        arithmetic="wide",
    ),
    Case(
        name="formulas",
        description="parts of the model and the optimizer against formulas: numbers of parameters, "
        "entries of checkpoints, the chunked loss, polar factors, NorMuon's steps; and what they "
        "refuse",
        lanes=("cpu",),
        target="vpmoe.cases.formulas:run",
        settings={
            "base": "configs/vpmoe-tiny.toml",
            "presets": [
                "configs/vpmoe-tiny.toml",
                "configs/vpmoe-dev.toml",
                "configs/vpmoe-6b.toml",
            ],
        },
        preload=WARM,
        needs=Needs(modules=MODULES),
        arithmetic="wide",
    ),
)
