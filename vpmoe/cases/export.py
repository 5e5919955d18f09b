"""The target of the case `export`: a trained model, exported, computed without Megatron, imported.

A short training is saved and exported. The reference forward pass must give the training model's
logits, and the export, imported and exported again, must be itself bit for bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases.statics import unwrap
from vpmoe.cases.training import build_files, share_cores, train

_SEED = 30
# Of the positions whose logits are recorded: all of them are 13 million numbers.
_STRIDE = 8
# Two runs in fp32 of sums over some thousand terms, each rounded at every layer, against fp64.
# Measured: 8 and 15 units of the largest logit's last place, on one model with every feature.
_BOUND = 64 * 2.0**-23


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Trains, exports, compares, imports, and decodes a few tokens.

    Args:
        recorder: of this process.
        settings: `preset` (file), `conversations` (JSONL file), `flags` (of `vpmoe pretrain`),
            `prompt` (text), `tokens` (to decode).
    """
    from vpmoe.runtime import detect_lane
    from vpmoe.tokenizer.asset import ensure_asset

    share_cores()
    ensure_asset()
    with tempfile.TemporaryDirectory(prefix="golden-export-") as name, detect_lane().activate():
        folder = Path(name)
        build_files(settings, folder / "data")
        flags = ["--config", settings["preset"], "--synth-kd-data", str(folder / "data")]
        flags += [str(flag) for flag in settings["flags"]]
        trained = _train(flags, folder / "checkpoint")
        _export(recorder, settings, folder, trained)


class _Logits:
    """A training model's logits on some tokens.

    Args:
        model: the model, in training mode or not, which stays as it is.
        step: the attribute.

    Attributes:
        step: training steps behind the model.
        tokens: int64 [1, s].
        documents: int64 [1, s], two documents.
        logits: [1, s, vocabulary].
    """

    step: int
    tokens: torch.Tensor
    documents: torch.Tensor
    logits: torch.Tensor

    def __init__(self, model: Any, step: int) -> None:
        from vpmoe.export.reference import positions_of

        length = model.max_sequence_length
        generator = torch.Generator().manual_seed(_SEED)
        self.step = step
        self.tokens = torch.randint(model.vocab_size, (1, length), generator=generator)
        self.documents = (torch.arange(length) >= length * 3 // 8).long()[None]
        training = model.training
        model.eval()
        with torch.no_grad():
            self.logits = model(
                self.tokens,
                positions_of(self.documents),
                None,
                document_ids=self.documents.int(),
            )
        model.train(training)


def _train(flags: list[str], checkpoint: Path) -> _Logits:
    """Trains and saves; the logits of the model that is saved."""
    from vpmoe.megatron.points import SAVE_CHECKPOINT

    found: list[_Logits] = []

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def save_checkpoint(iteration: int, model: Any, *args: Any, **kwargs: Any) -> Any:
            found.append(_Logits(unwrap(model[0]), iteration))
            return original(iteration, model, *args, **kwargs)

        return save_checkpoint

    with SAVE_CHECKPOINT.wrapped(wrap):
        saving = ["--save", str(checkpoint), "--save-interval", "1000000"]
        train([*flags, *saving, "--no-save-optim", "--no-save-rng"])
    return found[-1]


def _export(
    recorder: Recorder, settings: Mapping[str, Any], folder: Path, trained: _Logits
) -> None:
    """Records the export, tensor by tensor, its logits, and what it decodes."""
    from vpmoe.export.convert import export_checkpoint, import_export
    from vpmoe.export.generate import generate
    from vpmoe.export.reference import ReferenceModel
    from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer

    step = trained.step
    export = export_checkpoint(folder / "checkpoint", folder / "export")
    import_export(folder / "export", folder / "imported")
    again = export_checkpoint(folder / "imported", folder / "again")
    recorder.discrete(
        "export", export.architecture.as_dict(), tensor="architecture", step=step, phase="resume"
    )
    tensors = export.read()
    for name, tensor in tensors.items():
        module, _, weight = name.rpartition(".")
        recorder.tensor(
            step=step, micro_batch=0, phase="resume", module=module, tensor=weight, value=tensor
        )
        recorder.invariant(
            module,
            "export, import and export again: the same bits",
            float(export.tensors[name] != again.tensors[name]),
            0.0,
            step=step,
            phase="resume",
            tensor=f"{weight}.round_trip",
        )

    truth = ReferenceModel(export.architecture, tensors, torch.float64)
    expected = truth(trained.tokens, trained.documents)
    largest = float(expected.abs().max())
    model = ReferenceModel(export.architecture, tensors)
    logits = model(trained.tokens, trained.documents)
    for name, found in (("training", trained.logits), ("reference", logits)):
        recorder.invariant(
            "export",
            f"logits of the {name} model in fp32 are the reference's in fp64",
            float((found - expected).abs().max()) / largest,
            _BOUND,
            step=step,
            phase="forward",
            tensor=f"{name}_logits",
        )
    recorder.tensor(
        step=step,
        micro_batch=0,
        phase="forward",
        module="export",
        tensor="logits",
        value=logits[:, ::_STRIDE],
    )
    tokenizer = O200kHarmonyTokenizer()
    assert export.tokenizer is not None
    prompt = tokenizer.encode(settings["prompt"])
    ids = generate(model, prompt, settings["tokens"], export.tokenizer.stop_ids)
    recorder.discrete("export", ids, tensor="decoded_ids", step=step, phase="forward")
