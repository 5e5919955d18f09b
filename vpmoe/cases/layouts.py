"""The target of the cases of four processes, and of those whose checkpoint changes its layout.

The preset's layers over a small vocabulary and made-up samples, so that a step takes a second: what
is compared is how processes share a training, not the data that it reads.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from validation.running.recorder import Recorder
from vpmoe.cases.presets import small_flags
from vpmoe.cases.training import share_cores, stopping, train
from vpmoe.cases.variants import Samples, meeting_again
from vpmoe.runtime.patches import replaced

_SEED = 20


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Trains, and records what every layout has (`vpmoe.cases.canonical`).

    Args:
        recorder: of this process.
        settings: `preset` (file), `flags` (of `vpmoe pretrain`), `saved_by` (flags of a training
            that takes the first step and saves it, which the observed one goes on from; what was
            saved and what is loaded are compared bit for bit), `stop_after` (step after which the
            run ends), `perturb_seed` (moves the initial weights by one unit in the last place).

    Raises:
        RuntimeError: a training refused or failed.
    """
    from vpmoe.runtime import detect_lane

    share_cores()
    flags = small_flags(settings["preset"], settings.get("flags", ()))
    with (
        tempfile.TemporaryDirectory(prefix="golden-layouts-") as folder,
        meeting_again(),
        detect_lane().activate(),
        _made_up(),
    ):
        from vpmoe.cases.observe import observe_training

        moved: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if "saved_by" in settings:
            from vpmoe.cases.moved import Checkpoint

            place = _of_first_rank(str(Path(folder) / "checkpoint"))
            checkpoint = Checkpoint(recorder, "--no-load-optim" not in flags)
            saving = small_flags(settings["preset"], settings["saved_by"])
            with checkpoint.saved():
                train([*saving, "--save", place, "--save-interval", "1", "--exit-interval", "1"])
            flags += ["--load", place]
            moved = checkpoint.loaded()
        flags += stopping(settings)
        # What was loaded is looked at before the observation perturbs it.
        with moved, observe_training(recorder, settings.get("perturb_seed"), canonical=True):
            train(flags)


@contextlib.contextmanager
def _made_up() -> Iterator[None]:
    """Samples that depend on their number alone, in the place of Megatron's mock data."""
    from vpmoe.data import plain

    def provider(counts: Any, vp_stage: int | None = None) -> tuple[Any, None, None]:
        from megatron.training import get_args

        del vp_stage
        args = get_args()
        return Samples(counts[0], args.seq_length, args.padded_vocab_size, _SEED), None, None

    provider.is_distributed = True  # type: ignore[attr-defined]
    with replaced(plain, "train_valid_test_datasets_provider", provider):
        yield


def _of_first_rank(value: str) -> str:
    """The first rank's value, on every rank; inside `meeting_again`."""
    import torch

    if os.environ.get("WORLD_SIZE", "1") == "1":
        return value
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False
    )
    if os.environ["RANK"] == "0":
        store.set("value of the first rank", value)
    return str(store.get("value of the first rank").decode())
