"""Small vpMoE models of many kinds, built in this process, and one that is saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

_BODY = """
--num-layers 4 --hidden-size 32 --num-attention-heads 4 --group-query-attention
--num-query-groups 2 --kv-channels 8 --ffn-hidden-size 16 --seq-length 24
--max-position-embeddings 24 --normalization RMSNorm --norm-epsilon 1e-5 --qk-layernorm
--squared-relu --disable-bias-linear --untie-embeddings-and-output-weights
--attention-dropout 0 --hidden-dropout 0 --padded-vocab-size 64 --micro-batch-size 1
--tokenizer-type NullTokenizer
"""
_ATTENTION = """
--position-embedding-type grapem --grape-a --no-rope-freq 4 --window-size 6
--window-attn-skip-freq 4 --use-tpa --tpa-rank 2 --tpa-q-rank 3 --softmax-type learnable
"""
_EXPERTS = """
--num-experts 8 --moe-layer-freq ([0]+[1]*3) --moe-ffn-hidden-size 8
--moe-shared-expert-intermediate-size 12 --moe-router-topk 2 --moe-router-num-groups 4
--moe-router-group-topk 2 --moe-router-score-function sigmoid
--moe-router-topk-scaling-factor 2.5 --moe-router-load-balancing-type seq_aux_loss
--moe-aux-loss-coeff 1e-4 --moe-router-enable-expert-bias --moe-router-dtype fp32
"""
PARTS = {"body": _BODY.split(), "attention": _ATTENTION.split(), "experts": _EXPERTS.split()}


@dataclass(frozen=True)
class Built:
    """A model in its world of one process, with the arguments that built it."""

    model: Any
    args: Any

    def logits(self, tokens: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        """[b, s, vocabulary] of the training model."""
        from vpmoe.export.reference import positions_of

        with torch.no_grad():
            logits: torch.Tensor = self.model(
                tokens, positions_of(documents), None, document_ids=documents.int()
            )
        return logits

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint would hold of the model, name by name, put together."""
        from megatron.core.dist_checkpointing.mapping import ShardedTensor

        whole: dict[str, torch.Tensor] = {}
        for part in self.model.sharded_state_dict().values():
            if isinstance(part, ShardedTensor):
                data = part.data.detach()
                place = whole.setdefault(part.key, data.new_zeros(part.global_shape))
                place[part.global_slice()] = data.view_as(place[part.global_slice()])
        return whole

    def save(self, folder: Path) -> None:
        """Saves as a training does, after 7 steps."""
        from megatron.core import dist_checkpointing

        state = {
            "args": self.args,
            "checkpoint_version": 3.0,
            "iteration": 7,
            "model": self.model.sharded_state_dict(),
        }
        (folder / "iter_0000007").mkdir(parents=True)
        dist_checkpointing.save(state, str(folder / "iter_0000007"))
        (folder / "latest_checkpointed_iteration.txt").write_text("7")


@contextmanager
def _built(flags: Sequence[str], dtype: torch.dtype = torch.float32) -> Iterator[Built]:
    """Builds a model whose every weight is far from where it starts."""
    from vpmoe.model.meta import meta_model

    with meta_model(flags) as (args, _):
        from vpmoe.model.builder import build_model, config_from_args

        model = build_model(
            config_from_args(args),
            vocab_size=args.padded_vocab_size,
            max_sequence_length=args.max_position_embeddings,
            seed=1,
        )
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for weight in model.state_dict().values():
                if isinstance(weight, torch.Tensor):
                    size = 0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5
                    weight += size * torch.randn(weight.shape, generator=generator)
        model.eval().to(dtype)
        yield Built(model, args)


@pytest.fixture(scope="session")
def build() -> Callable[..., AbstractContextManager[Built]]:
    """Builds from flags, and a dtype; on the CPU lane alone."""
    if torch.cuda.is_available():
        pytest.skip("the CPU lane is for machines without CUDA")
    return _built


@pytest.fixture(scope="session")
def parts() -> dict[str, list[str]]:
    """Flags of a small model: `body`, vpMoE's `attention` and `experts`."""
    return PARTS


@pytest.fixture(scope="session")
def checkpoint(
    build: Callable[..., AbstractContextManager[Built]],
    parts: dict[str, list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A checkpoint of a small model with every feature; not to be changed."""
    folder = tmp_path_factory.mktemp("export") / "checkpoint"
    with build([*parts["body"], *parts["attention"], *parts["experts"]]) as built:
        built.save(folder)
    return folder


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export; not to be changed."""
    from vpmoe.export.convert import export_checkpoint

    folder = tmp_path_factory.mktemp("exported") / "export"
    export_checkpoint(checkpoint, folder)
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """A copy of the export, to damage."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))
