"""Trains a small dense vpMoE on a dataset in several layouts: python layout_runs.py PLAN.json

Megatron's `pretrain()` with vpMoE's tokenizer, dataset, batches, loss and forward step. The plan
and the forked ranks are those of `tests/model/megatron_run.py`. Every rank leaves `out/rankN.json`:
per step the losses and gradient norm that Megatron reports, and per micro-batch the samples.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "model"))
import megatron_run

from vpmoe.runtime.patches import replaced


def train(flags: list[str], out: Path) -> None:
    """One run of this rank."""
    import megatron.training.training as training
    from megatron.core.enums import ModelType
    from megatron.training import pretrain
    from megatron.training.argument_utils import pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_args, validate_args
    from megatron.training.global_vars import set_global_variables

    import vpmoe.data.batch as data_batch
    from vpmoe.data.arguments import add_data_args, validate_data_args
    from vpmoe.data.dataset import train_valid_test_datasets_provider
    from vpmoe.model.arguments import add_model_args, validate_model_args
    from vpmoe.model.builder import model_provider
    from vpmoe.pretrain import forward_step
    from vpmoe.tokenizer.arguments import add_tokenizer_args, validate_tokenizer_args
    from vpmoe.tokenizer.megatron import install

    install()
    steps: list[dict[str, Any]] = []
    samples: list[list[int]] = []
    log, get_batch = training.training_log, data_batch.get_batch

    def recording_log(losses: Any, total: Any, *args: Any, **kwargs: Any) -> Any:
        step = {name: float(value) for name, value in losses.items()}
        steps.append(step | {"grad_norm": float(args[5])})
        return log(losses, total, *args, **kwargs)

    def recording_get_batch(iterator: Any) -> Any:
        batch = get_batch(iterator)
        if torch.is_grad_enabled():
            samples.append(batch.sample_ids.tolist())
        return batch

    def add_args(parser: Any) -> Any:
        for flag, choice in (
            ("--position-embedding-type", "grapem"),
            ("--tokenizer-type", "O200kHarmonyTokenizer"),
        ):
            action = parser._option_string_actions[flag]
            action.choices = [*action.choices, choice]
        return add_data_args(add_tokenizer_args(add_model_args(parser)))

    with replaced(sys, "argv", ["layout_runs", *megatron_run.BASE_FLAGS, *flags]):
        args = parse_args(add_args)
    with (
        replaced(sys, "argv", ["layout_runs"]),
        replaced(training, "training_log", recording_log),
        replaced(data_batch, "get_batch", recording_get_batch),
    ):
        validate_args(args, {})
        validate_tokenizer_args(args)
        validate_data_args(args)
        validate_model_args(args)
        set_global_variables(args)
        pretrain(
            pretrain_cfg_container_from_args(args),
            train_valid_test_datasets_provider,
            ModelType.encoder_or_decoder,
            forward_step,
            model_provider=model_provider,
        )
    result = {"steps": steps, "samples": samples}
    (out / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    megatron_run.train = train
    sys.exit(megatron_run.main(sys.argv[1:]))
