"""Cases of the alternatives: other ways to compute the same training, and other models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from validation.cases.base import Case, Needs
from vpmoe.cases.declare import EPSILON
from vpmoe.cases.targets import MODULES, WARM

Variant = Mapping[str, Any]

# GRAPE-M's frequencies have a sum over layers, positions and heads for a gradient, which cancels.
_SUMMED = {"summed": 256 * EPSILON}
# The same operations in the same order.
_EXACT = {"losses": 0.0, "gradients": 0.0, "updates": 0.0, **_SUMMED}
# Other sums. NorMuon's slope of 989 at zero amplifies the rounding of rank-deficient gradients.
_ROUNDED = {"losses": 4 * EPSILON, "gradients": 128 * EPSILON, "updates": 2e-4, **_SUMMED}

# Logits of 24 tokens: the last of three chunks is a shorter one.
_CHUNK = 24 * 512 * 4
_CHUNKED = ("--loss-kernel", "chunked")
_GROUPED = ("--expert-kernel", "grouped")
_SOME = ("--recompute-granularity", "selective", "--recompute-modules")
_FULL = ("--recompute-granularity", "full", "--recompute-num-layers", "1", "--recompute-method")
_BALANCE = "--moe-router-load-balancing-type"
_PP = ("--pipeline-model-parallel-size", "2")
_TP = ("--tensor-model-parallel-size", "2", "--sequence-parallel")
_EP = ("--expert-model-parallel-size", "2")
_DENSE = ("--moe-layer-freq", "([0]*4)")

# Five polynomials that are not Polar Express': Newton-Schulz, as Muon has it (Jordan, 2024).
_NEWTON_SCHULZ = [[3.4445, -4.7750, 2.0315]] * 5
_TPA = ("use_tpa", "tpa_rank", "tpa_q_rank")
_SHARED = ("moe_shared_expert_intermediate_size",)
_ROUTES = ("moe_router_num_groups", "moe_router_group_topk")
_BIAS = ("moe_router_enable_expert_bias", "moe_router_bias_update_rate")


def same(other: str, within: Mapping[str, float], *flags: str, **options: Any) -> Variant:
    """A variant that must equal another one."""
    held = {"same_as": other, "within": dict(within), "summed": ["grapem.phi"]}
    return {"flags": list(flags), **held, **options}


def model(*flags: str, **options: Any) -> Variant:
    """A variant that its golden holds."""
    return {"flags": list(flags), **options}


def variants(
    name: str,
    description: str,
    found: Mapping[str, Variant],
    *,
    steps: int = 2,
    processes: int = 1,
    files: Mapping[str, Any] | None = None,
) -> Case:
    """A case that trains variants of the tiny preset, in the order given."""
    settings: dict[str, Any] = {
        "preset": "configs/vpmoe-tiny.toml",
        "flags": ["--train-iters", str(steps)],
        "variants": [{"name": name, **variant} for name, variant in found.items()],
    }
    if files:
        settings["files"] = dict(files)
    return Case(
        name=name,
        description=description,
        lanes=("cpu",),
        target="vpmoe.cases.variants:run",
        settings=settings,
        processes=processes,
        traced_steps=(steps,),
        preload=WARM,
        needs=Needs(modules=MODULES),
        arithmetic="wide",
    )


CASES = (
    variants(
        "alternatives",
        "the tiny vpMoE computed in other ways: the same losses, gradients and updates",
        {
            "plain": model(),
            "chunked_loss": same("plain", _ROUNDED, *_CHUNKED, chunk_bytes=_CHUNK),
            "grouped_experts": same("plain", _ROUNDED, *_GROUPED),
            "recompute_core": same("plain", _EXACT, *_SOME, "core_attn"),
            "recompute_mlp": same("plain", _EXACT, *_SOME, "mlp"),
            "recompute_moe": same("plain", _EXACT, *_SOME, "moe"),
            "recompute_uniform": same("plain", _EXACT, *_FULL, "uniform"),
            "recompute_block": same("plain", _EXACT, *_FULL, "block"),
            "dropout": model("--hidden-dropout", "0.1"),
            "recompute_dropout": same(
                "dropout",
                _EXACT,
                *("--hidden-dropout", "0.1", *_FULL, "uniform"),
            ),
            "per_token_loss": same("plain", _ROUNDED, "--calculate-per-token-loss"),
            "window_as_pair": same("plain", _EXACT, "--window-size", "15,0"),
            "group_score_by_hand": same("plain", _EXACT, "--moe-router-group-score-topk", "2"),
            # As published, with 16 digits: ours are computed, and differ in the last.
            "coefficients_by_hand": same(
                "plain", _ROUNDED, "--polar-express-coeffs-path", "{folder}/polar_express.json"
            ),
            "eager_attention": same("plain", _EXACT, "--attention-kernel", "eager"),
            "sequential_experts": same("plain", _EXACT, "--expert-kernel", "sequential"),
            "dispatch_all_to_all": same(
                "plain", _ROUNDED, "--moe-token-dispatcher-type", "alltoall"
            ),
            "frozen": model("--no-grapem-learnable-freq", unmoved=["grapem.phi"]),
            "rope": same("frozen", _ROUNDED, "--position-embedding-type", "rope"),
            "alike_frequencies": same(
                "plain", _ROUNDED, "--grapem-per-head", unlike=["grapem"], steps=1
            ),
        },
        files={
            "polar_express.json": [
                [8.156554524902461, -22.48329292557795, 15.878769915207462],
                [4.042929935166739, -2.808917465908714, 0.5000178451051316],
                [3.8916678022926607, -2.772484153217685, 0.5060648178503393],
                [3.285753657755655, -2.3681294933425376, 0.46449024233003106],
                [2.3465413258596377, -1.7097828382687081, 0.42323551169305323],
            ]
        },
    ),
    variants(
        "alternative_models",
        "models and optimizers that differ from the tiny vpMoE in one thing each",
        {
            "softmax_vanilla": model("--softmax-type", "vanilla"),
            "softmax_off_by_one": model("--softmax-type", "off-by-one"),
            "plain_attention": model(without=_TPA),
            "heads_without_groups": model(
                without=(*_TPA, "group_query_attention", "num_query_groups")
            ),
            "no_qk_norm": model(without=("qk_layernorm",)),
            "no_window": model(
                without=(*_TPA, "window_size", "window_attn_skip_freq", "no_rope_freq", "grape_a")
            ),
            "windows_by_list": model(
                *("--window-attn-skip-freq", "[1,0,1,1]", "--no-rope-freq", "[0,1,0,0]")
            ),
            "biases": model(*_DENSE, without=(*_TPA, *_SHARED, "disable_bias_linear")),
            "gated": model("--swiglu", without=("squared_relu",)),
            "no_grape_a": model(without=("grape_a",)),
            "frequencies_of_groups": model("--grapem-per-head", groups_differ=True),
            "frequencies_scaled": model("--grapem-log-freq-scale", "4.0"),
            "rotation_with_bias": model("--grape-a-with-rotation", without=("no_rope_freq",)),
            "no_positions": model("--position-embedding-type", "none", without=("no_rope_freq",)),
            "routing_softmax": model("--moe-router-score-function", "softmax", without=_BIAS),
            "routing_without_groups": model(without=(*_ROUTES, *_BIAS)),
            "balance_aux": model(_BALANCE, "aux_loss", "--moe-aux-loss-coeff", "1e-2"),
            "balance_global": model(_BALANCE, "global_aux_loss", "--moe-aux-loss-coeff", "1e-2"),
            "balance_none": model(_BALANCE, "none"),
            "balance_sinkhorn": model(
                *(_BALANCE, "sinkhorn", "--moe-aux-loss-coeff", "0"), without=(*_ROUTES, *_BIAS)
            ),
            "z_loss": model("--moe-z-loss-coeff", "1e-2"),
            "capacity": model("--moe-expert-capacity-factor", "0.75"),
            "no_shared_expert": model(without=_SHARED),
            "moe_every_second": model("--moe-layer-freq", "2"),
            "normuon_momentum": model("--normuon-momentum", "0.5"),
            "normuon_no_memory": model("--normuon-beta2", "0.0"),
            "safety_factor": model("--polar-express-safety-factor", "0.25"),
            "newton_schulz": model("--polar-express-coeffs-path", "{folder}/newton_schulz.json"),
            "rates_of_their_own": model(
                *("--normuon-aux-lr", "2e-3", "--normuon-aux-min-lr", "1e-4"),
                *("--decoupled-lr", "1e-3", "--decoupled-min-lr", "1e-5"),
            ),
            "one_rate": model(without=("normuon_aux_lr", "normuon_aux_min_lr")),
            "other_sizes": model(
                *("--hidden-size", "48", "--num-attention-heads", "6", "--num-query-groups", "3"),
                *("--kv-channels", "8", "--ffn-hidden-size", "40", "--moe-ffn-hidden-size", "24"),
                *("--rotary-base", "500", "--norm-epsilon", "1e-3", "--init-method-std", "0.05"),
                *("--moe-router-topk-scaling-factor", "1.5", "--moe-router-dtype", "fp64"),
                *("--moe-router-bias-update-rate", "1e-2", "--seed", "4321"),
            ),
            "other_optimization": model(
                *("--lr", "2e-3", "--min-lr", "1e-4", "--clip-grad", "0.25"),
                *("--adam-beta1", "0.8", "--adam-beta2", "0.9", "--adam-eps", "1e-4"),
                *("--lr-decay-style", "linear", "--lr-decay-iters", "3"),
            ),
            "no_decay": model("--weight-decay", "0.0"),
        },
        files={"newton_schulz.json": _NEWTON_SCHULZ},
    ),
    variants(
        "alternatives_of_two",
        "alternatives of two processes: what data parallelism computes, tensor by tensor",
        {
            "plain": model(),
            "experts_grouped_ep": same("plain", _ROUNDED, *_EP, *_GROUPED),
            "pipeline": same("plain", _ROUNDED, *_PP),
            "pipeline_virtual": same(
                "plain", _ROUNDED, *_PP, "--num-virtual-stages-per-pipeline-rank", "2"
            ),
            "tensor": same("plain", _ROUNDED, *_TP),
            "tensor_distributed": same("plain", _ROUNDED, *_TP, "--normuon-tp-mode", "distributed"),
            "tensor_blockwise": model(*_TP, "--normuon-tp-mode", "blockwise"),
            "tensor_whole_experts": same(
                "plain", _ROUNDED, *_TP, "--expert-tensor-parallel-size", "1"
            ),
            "tensor_whole_experts_ep": same(
                "plain", _ROUNDED, *_TP, *_EP, "--expert-tensor-parallel-size", "1"
            ),
            "tensor_grouped": same("plain", _ROUNDED, *_TP, *_GROUPED),
            "tensor_chunked": same("plain", _ROUNDED, *_TP, *_CHUNKED, chunk_bytes=_CHUNK // 2),
            "tensor_recompute": same("plain", _ROUNDED, *_TP, *_FULL, "uniform"),
            "per_token_loss": same("plain", _ROUNDED, "--calculate-per-token-loss"),
            "frequencies": model("--grapem-per-head", groups_differ=True),
            "tensor_frequencies": same(
                "frequencies", _ROUNDED, *_TP, "--grapem-per-head", groups_differ=True
            ),
            "dense": model(*_DENSE),
            "tensor_dense_chunked": same(
                "dense",
                _ROUNDED,
                *("--tensor-model-parallel-size", "2", *_DENSE, *_CHUNKED),
                chunk_bytes=_CHUNK // 2,
            ),
        },
        processes=2,
    ),
)
