"""Runs Megatron's `pretrain()` with the model alone: no tokenizer, data set or optimizer of vpMoE.

    python megatron_run.py PLAN.json

PLAN.json is a list of runs: {"ranks", "flags", "out"}. Importing Megatron takes seconds, so on the
CPU it is imported once and every rank of every run is a fork; CUDA doesn't survive a fork, so on a
GPU every rank is a process. A run leaves `out/curve.json` with the
loss, gradient norm and learning rate of each step, and its checkpoint where `--save` says.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch

from validation.running.ports import reserved_port
from vpmoe.megatron.repairs import skip_helper_build
from vpmoe.runtime import detect_lane
from vpmoe.runtime.patches import replaced

_MEGATRON_FLAGS = """
--eval-iters 0 --eval-interval 1000000 --no-one-logger --ckpt-format torch_dist --log-interval 1
--tokenizer-type NullTokenizer --num-workers 0 --lr 1e-2 --lr-decay-style constant --adam-eps 1e-3
"""
BASE_FLAGS = (*detect_lane().default_flags, *_MEGATRON_FLAGS.split())


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Documents(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Samples that depend on their index alone: tokens of two documents in a row."""

    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        self.count, self.length, self.vocabulary = count, length, vocabulary

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1000 + index)
        # Skewed, so that there is something to learn.
        draws = torch.rand(self.length + 1, generator=generator) ** 2
        tokens = (draws * self.vocabulary).long()
        first = int(torch.randint(1, self.length, (1,), generator=generator))
        position = torch.arange(self.length)
        return {
            "tokens": tokens[:-1],
            "labels": tokens[1:],
            "position_ids": torch.where(position < first, position, position - first),
            "document_ids": (position >= first).int(),
            "loss_mask": torch.ones(self.length),
        }


def datasets(counts: list[int], vp_stage: int | None = None) -> tuple[Any, Any, Any]:
    """Megatron's dataset provider."""
    from megatron.training import get_args

    args = get_args()
    train = Documents(counts[0], args.seq_length, args.padded_vocab_size)
    return train, None, None


datasets.is_distributed = True  # type: ignore[attr-defined]


def loss_function(mask: torch.Tensor, losses: torch.Tensor) -> tuple[Any, Any, Any]:
    """Sum of the losses, number of tokens, report."""
    total, tokens = (losses.float() * mask).sum(), mask.sum().int()
    return total, tokens, {"lm loss": torch.stack((total.detach(), tokens.float()))}


def forward_step(iterator: Any, model: Any) -> Any:
    """Every rank reads the samples: tensor- and pipeline-parallel ranks read the same ones."""
    batch = {name: tensor.to(DEVICE) for name, tensor in next(iterator).items()}
    losses = model(
        batch["tokens"],
        batch["position_ids"],
        None,
        labels=batch["labels"],
        document_ids=batch["document_ids"],
    )
    return losses, partial(loss_function, batch["loss_mask"])


def train(flags: list[str], out: Path) -> None:
    """One run of this rank."""
    import megatron.training.training as training
    from megatron.core.enums import ModelType
    from megatron.training import pretrain
    from megatron.training.argument_utils import pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_args, validate_args
    from megatron.training.global_vars import set_global_variables

    from vpmoe.model.arguments import add_model_args, validate_model_args
    from vpmoe.model.builder import model_provider

    curve: list[dict[str, float]] = []
    log = training.training_log

    def recording_log(loss_dict: Any, total: Any, *args: Any, **kwargs: Any) -> Any:
        curve.append(
            {
                "lm_loss": float(loss_dict["lm loss"]) if loss_dict else float("nan"),
                "grad_norm": float(args[5]),
            }
        )
        return log(loss_dict, total, *args, **kwargs)

    def add_args(parser: Any) -> Any:
        choices = parser._option_string_actions["--position-embedding-type"]
        choices.choices = [*choices.choices, "grapem"]
        return add_model_args(parser)

    with replaced(sys, "argv", ["megatron_run", *BASE_FLAGS, *flags]):
        args = parse_args(add_args)
    # Megatron's fault-tolerance set-up parses the command line again, without our choices.
    with (
        replaced(sys, "argv", ["megatron_run"]),
        replaced(training, "training_log", recording_log),
    ):
        validate_args(args, {})
        validate_model_args(args)
        set_global_variables(args)
        pretrain(
            pretrain_cfg_container_from_args(args),
            datasets,
            ModelType.encoder_or_decoder,
            forward_step,
            model_provider=model_provider,
        )
    last = torch.distributed.get_world_size() - 1
    if torch.distributed.get_rank() == last:
        out.mkdir(parents=True, exist_ok=True)
        (out / "curve.json").write_text(json.dumps(curve))


def rank_main(run: dict[str, Any], rank: int, port: int) -> int:
    """A forked rank; its output goes to a log beside the run's other files."""
    out = Path(run["out"])
    out.mkdir(parents=True, exist_ok=True)
    log = os.open(out / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(run["ranks"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    }
    try:
        train(run["flags"], out)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def start(run: dict[str, Any], rank: int, port: int) -> int:
    """Starts a rank; returns its process id."""
    if torch.cuda.is_available():
        words = [sys.executable, __file__, json.dumps(run), str(rank), str(port)]
        return os.spawnv(os.P_NOWAIT, sys.executable, words)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        code = rank_main(run, rank, port)
        sys.stdout.flush()
        os._exit(code)
    return child


def wait(children: list[int]) -> bool:
    """Waits for a run's ranks; a rank that fails takes the others, which would wait for it, along.

    Returns:
        Whether all of them exited with 0.
    """
    running, good = set(children), True
    while running:
        child, status = os.waitpid(-1, 0)
        running.discard(child)
        # Megatron's checkpoint writer is a process of its own and would outlive its rank.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(status) != 0 and good:
            good = False
            for other in running:
                os.kill(other, signal.SIGKILL)
    return good


def main(words: list[str]) -> int:
    """Runs a plan, one run after the other, or one rank on a GPU."""
    torch.set_num_threads(1)
    failed = 0
    with detect_lane().activate(), skip_helper_build():
        if len(words) == 3:
            return rank_main(json.loads(words[0]), int(words[1]), int(words[2]))
        if not torch.cuda.is_available():
            import megatron.training  # noqa: F401

            import vpmoe.model.builder  # noqa: F401
        for run in json.loads(Path(words[0]).read_text()):
            with reserved_port() as port:
                failed += not wait([start(run, rank, port) for rank in range(run["ranks"])])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
