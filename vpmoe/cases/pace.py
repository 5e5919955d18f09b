"""vpMoE's training under a pacer: `vpmoe pretrain` as users run it, unobserved, a block at a time.

Wraps the same functions of Megatron's loop that the observation wraps. FLOPs of a token, forward
and backward, recomputation not counted:

    6 x (active parameters - input embedding) + sum over layers of 12 x heads x channels x keys

where the experts' parameters count by the share of them that a token is routed to, and `keys` is
the mean number of keys that a query of the layer sees: (S + 1) / 2, or less in a window.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from validation.throughput.pacer import Pacer
from vpmoe.cases.training import build_files, train

# More steps than anybody waits for.
_ENDLESS = "100000"


def run(pacer: Pacer, settings: Mapping[str, Any]) -> None:
    """Trains until the pacer stops it.

    Args:
        pacer: asked before every step.
        settings: those of `vpmoe.cases.training.run`, of which the environment is left
            out: only deterministic mode needs it.

    Raises:
        TrainingStoppedError: by the pacer.
        RuntimeError: the training refused or failed.
    """
    from vpmoe.runtime import detect_lane
    from vpmoe.tokenizer.asset import ensure_asset

    ensure_asset()
    with tempfile.TemporaryDirectory(prefix="golden-data-") as folder:
        data = Path(folder) / "data"
        build_files(settings, data)
        flags = ["--config", settings["preset"], "--synth-kd-data", str(data)]
        flags += [str(flag) for flag in settings["flags"]]
        with detect_lane().activate(), ExitStack() as stack:
            _attach(pacer, stack)
            train([*flags, "--train-iters", _ENDLESS])


def _attach(pacer: Pacer, stack: ExitStack) -> None:
    """Puts the pacer into Megatron's loop until the stack is closed."""
    from vpmoe.megatron.points import SETUP, TRAIN_STEP

    def wrap_setup(original: Callable[..., Any]) -> Callable[..., Any]:
        def setup_model_and_optimizer(*args: Any, **kwargs: Any) -> Any:
            model, optimizer, scheduler = original(*args, **kwargs)
            pacer.describe(**facts(model))
            step = optimizer.step

            def timed_step(*words: Any, **options: Any) -> Any:
                with pacer.optimizer():
                    return step(*words, **options)

            optimizer.step = timed_step
            return model, optimizer, scheduler

        return setup_model_and_optimizer

    def wrap_train_step(original: Callable[..., Any]) -> Callable[..., Any]:
        def train_step(*args: Any, **kwargs: Any) -> Any:
            pacer.before_step()
            pacer.tokens(tokens_of_step())
            return original(*args, **kwargs)

        return train_step

    stack.enter_context(SETUP.wrapped(wrap_setup))
    stack.enter_context(TRAIN_STEP.wrapped(wrap_train_step))


def tokens_of_step() -> int:
    """Tokens that a step trains on, on this rank."""
    from megatron.core.num_microbatches_calculator import get_num_microbatches
    from megatron.training import get_args

    args = get_args()
    return int(get_num_microbatches() * args.micro_batch_size * args.seq_length)


def facts(model: Any) -> dict[str, Any]:
    """Parameters, active parameters and FLOPs of a token, of the model as built."""
    from megatron.training import get_args

    args = get_args()
    share = args.moe_router_topk / args.num_experts if args.num_experts else 1.0
    total, active = 0, 0.0
    for chunk in model:
        for name, parameter in chunk.named_parameters():
            total += parameter.numel()
            routed = ".experts." in name
            if "word_embeddings" not in name:
                active += parameter.numel() * (share if routed else 1.0)
    width = 12.0 * args.num_attention_heads * args.kv_channels
    attention = sum(width * mean_keys(args, layer) for layer in range(1, args.num_layers + 1))
    return {
        "parameters": total,
        "active_parameters": round(active),
        "flops_per_token": 6.0 * active + attention,
    }


def mean_keys(args: Any, layer: int) -> float:
    """Keys that a query of a layer sees, averaged over the sequence; documents are not cut."""
    length = int(args.seq_length)
    window, skip = args.window_size, args.window_attn_skip_freq
    is_local = window is not None and (skip is None or layer % int(skip) != 0)
    # Megatron's window is a pair, left and right, without the query itself.
    reach = min(int(window[0]) + 1, length) if is_local else length
    return reach - reach * (reach - 1) / (2.0 * length)
