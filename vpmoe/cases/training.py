"""The target of vpMoE's training cases: `vpmoe pretrain` on shipped conversations, observed."""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from validation.running.recorder import Recorder
from vpmoe.cases.tokens import record_documents


def warm() -> None:
    """Imports Megatron inside the lane and loads the vocabulary, for all runs forked from here."""
    # Transformer Engine would import every framework that it finds.
    os.environ.setdefault("NVTE_FRAMEWORK", "pytorch")
    from vpmoe.runtime import detect_lane
    from vpmoe.tokenizer.asset import ensure_asset, read_asset
    from vpmoe.tokenizer.encoder import shared_encoder

    shared_encoder(read_asset(ensure_asset()))
    with detect_lane().activate():
        from vpmoe.megatron.contracts import check_training

        check_training()  # which imports all that a training does
        for module in ("vpmoe.arguments", "vpmoe.cases.observe"):
            importlib.import_module(module)


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Builds the dataset, trains, and lets the observation record what happens.

    Args:
        recorder: of this process.
        settings: `preset` (file), `conversations` (JSONL file), `flags` (of `vpmoe pretrain`),
            `profile` of the rendering, `valid_fraction` (share of the rows in the valid split, 0 if
            not given), `stop_after` (step after which the run ends as if cut
            short), `resume_after` (step after which an unobserved run is saved, to be resumed and
            observed), `perturb_seed` (moves the initial weights by one unit in the last place),
            `environment` (variables that the user has not set, such as cuBLAS's workspace),
            `compiled` (false runs Megatron's fused functions as they are written), `by_kind` (true
            also records each parameter's marks, and rates and clipping by kind of parameter),
            `canonical` (records, of traced steps, the parts of tensors that every layout has).

    Raises:
        RuntimeError: the training refused or failed.
    """
    for name, value in settings.get("environment", {}).items():
        os.environ.setdefault(name, value)
    with (
        prepared(recorder, settings) as (flags, folder),
        compiling(settings.get("compiled", True)),
    ):
        from vpmoe.cases.observe import observe_training

        if settings.get("resume_after"):
            checkpoint, after = str(folder / "checkpoint"), str(settings["resume_after"])
            saving = ["--save", checkpoint, "--save-interval", after, "--exit-interval", after]
            train([*flags, *saving])
            flags += ["--load", checkpoint]
        with observe_training(
            recorder,
            settings.get("perturb_seed"),
            by_kind=settings.get("by_kind", False),
            canonical=settings.get("canonical", False),
        ):
            train([*flags, *stopping(settings)])


@contextlib.contextmanager
def prepared(recorder: Recorder, settings: Mapping[str, Any]) -> Iterator[tuple[list[str], Path]]:
    """Builds a case's dataset, then enters the lane.

    Args:
        recorder: of this process; receives the dataset's digests.
        settings: `preset` (file), `flags` (of `vpmoe pretrain`), and those of `build_files`.

    Yields:
        Flags of a training on the dataset, which is `data` in a temporary folder; that folder.
    """
    from vpmoe.runtime import detect_lane
    from vpmoe.tokenizer.asset import ensure_asset

    share_cores()
    ensure_asset()
    with tempfile.TemporaryDirectory(prefix="golden-data-") as name:
        folder = Path(name)
        data = build_data(recorder, settings, folder / "data")
        flags = ["--config", settings["preset"], "--synth-kd-data", str(data)]
        flags += [str(flag) for flag in settings.get("flags", ())]
        with detect_lane().activate():
            yield flags, folder


def stopping(settings: Mapping[str, Any]) -> list[str]:
    """The flags that end a training after the step `stop_after`, if the settings name one."""
    step = settings.get("stop_after")
    return ["--exit-interval", str(step)] if step else []


@contextlib.contextmanager
def instead_of_training(act: Callable[[Any], None]) -> Iterator[None]:
    """Has a training end before its first step, once it has built its model.

    Args:
        act: called with the model, without Megatron's wrappers.
    """
    from vpmoe.cases.statics import unwrap
    from vpmoe.megatron.points import SETUP

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def setup_model_and_optimizer(*args: Any, **kwargs: Any) -> Any:
            model, _, _ = original(*args, **kwargs)
            act(unwrap(model[0]))
            raise SystemExit(0)  # as Megatron ends a run

        return setup_model_and_optimizer

    with SETUP.wrapped(wrap):
        yield


@contextlib.contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """Lets torch compile inside, or not; Megatron's own flag comes after its decorators."""
    if wanted:
        yield
        return
    import torch._dynamo.config as dynamo

    with dynamo.patch(disable=True):
        yield


def share_cores() -> None:
    """Gives each rank its part of the CPU's cores, unless the user has said how many threads."""
    import torch

    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))


def train(flags: list[str]) -> None:
    """Runs `vpmoe pretrain`, inside the lane.

    Args:
        flags: of `vpmoe pretrain`.

    Raises:
        RuntimeError: it refused or failed.
    """
    from vpmoe.pretrain import main

    try:
        code = main(flags)
    except SystemExit as stop:  # Megatron ends a run at --exit-interval like this
        code = 0 if stop.code is None else int(stop.code)
    if code:
        raise RuntimeError(f"vpmoe pretrain ended with {code}")


def build_data(recorder: Recorder, settings: Mapping[str, Any], folder: Path) -> Path:
    """Builds the dataset from conversations and records its digests, on each rank."""
    build_files(settings, folder)
    from validation.files import decode_json, read_file

    manifest = folder / "manifest.json"
    document = decode_json(read_file(manifest), manifest)
    recorder.discrete("dataset", document, tensor="manifest", phase="data")
    record_documents(recorder, folder)
    return folder


def build_files(settings: Mapping[str, Any], folder: Path) -> None:
    """Builds the dataset from conversations, and records nothing."""
    from vpmoe.data.build import build_dataset

    build_dataset(
        [Path(settings["conversations"])],
        folder,
        workers=1,
        valid_fraction=settings.get("valid_fraction", 0.0),
        **_profile(settings),
    )


def _profile(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"profile": settings["profile"]} if "profile" in settings else {}
