"""Small models of many kinds, saved as a training saves them: one process, no training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

SMALL = """
--num-layers 4 --hidden-size 32 --num-attention-heads 4 --group-query-attention
--num-query-groups 2 --kv-channels 8 --ffn-hidden-size 16 --seq-length 24
--max-position-embeddings 24 --normalization RMSNorm --norm-epsilon 1e-5 --qk-layernorm
--squared-relu --disable-bias-linear --untie-embeddings-and-output-weights
--attention-dropout 0 --hidden-dropout 0 --padded-vocab-size 64 --micro-batch-size 1
--tokenizer-type NullTokenizer --lr 1e-2
"""
ATTENTION = """
--position-embedding-type grapem --grape-a --no-rope-freq 4 --window-size 6
--window-attn-skip-freq 4 --use-tpa --tpa-rank 2 --tpa-q-rank 3 --softmax-type learnable
"""
EXPERTS = """
--num-experts 8 --moe-layer-freq ([0]+[1]*3) --moe-ffn-hidden-size 8
--moe-shared-expert-intermediate-size 12 --moe-router-topk 2 --moe-router-num-groups 4
--moe-router-group-topk 2 --moe-router-score-function sigmoid
--moe-router-topk-scaling-factor 2.5 --moe-router-load-balancing-type seq_aux_loss
--moe-aux-loss-coeff 1e-4 --moe-router-enable-expert-bias --moe-router-dtype fp32
"""
EVERYTHING = (*SMALL.split(), *ATTENTION.split(), *EXPERTS.split())


@dataclass(frozen=True)
class Saved:
    """A model that was saved, still in its world of one process."""

    model: Any
    args: Any
    checkpoint: Path


@contextmanager
def saved(flags: list[str], checkpoint: Path, dtype: torch.dtype) -> Iterator[Saved]:
    """Builds a model whose every weight is far from where it starts, and saves it."""
    from vpmoe.model.meta import meta_model

    with meta_model(flags) as (args, _):
        from megatron.core import dist_checkpointing

        from vpmoe.model.builder import build_model, config_from_args

        model = build_model(
            config_from_args(args),
            vocab_size=args.padded_vocab_size,
            max_sequence_length=args.max_position_embeddings,
            seed=1,
        )
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, weight in model.state_dict().items():
                if isinstance(weight, torch.Tensor):
                    size = 0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5
                    weight += size * torch.randn(weight.shape, generator=generator).to(weight)
                    assert torch.isfinite(weight).all(), name
        model.eval().to(dtype)
        folder = checkpoint / "iter_0000007"
        folder.mkdir(parents=True)
        state = {
            "args": args,
            "checkpoint_version": 3.0,
            "iteration": 7,
            "model": model.sharded_state_dict(),
        }
        dist_checkpointing.save(state, str(folder))
        (checkpoint / "latest_checkpointed_iteration.txt").write_text("7")
        yield Saved(model, args, checkpoint)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Any]:
    """`saved`, in a folder of the test's own; on the CPU lane alone."""
    if torch.cuda.is_available():
        pytest.skip("the CPU lane is for machines without CUDA")

    def start(
        *flags: str, base: tuple[str, ...] = EVERYTHING, dtype: torch.dtype = torch.float32
    ) -> Any:
        return saved([*base, *flags], tmp_path / "checkpoint", dtype)

    return start
