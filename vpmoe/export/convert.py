"""`vpmoe export` and `vpmoe import`: from a training's checkpoint to an export, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vpmoe.export.architecture import Architecture, ExportError, tensor_shapes
from vpmoe.export.checkpoint import RELEASE, TRACKER, Checkpoint
from vpmoe.export.flags import architecture_of, flags_of
from vpmoe.export.folder import DTYPES, Export, Tokenizer, open_export, write_export
from vpmoe.files import new_folder
from vpmoe.tokenizer.asset import ASSET_SHA256
from vpmoe.tokenizer.special import CALL, ENDOFTEXT, RETURN

TOKENIZER = "O200kHarmonyTokenizer"


def export_checkpoint(path: Path, folder: Path, *, fp32: bool = False) -> Export:
    """Exports a checkpoint.

    Args:
        path: of the checkpoint, of any layout; see `Checkpoint`.
        folder: of the export; must not exist.
        fp32: store every tensor in fp32, instead of what it was trained in. Exact for bf16 and
            fp16.

    Returns:
        The export that was written.

    Raises:
        ExportError: the checkpoint is damaged, or of a model that an export does not describe: a
            flag, or a tensor that is missing, unknown, of another shape or dtype, or not finite.
        FileExistsError: the folder exists.
    """
    checkpoint = Checkpoint(path)
    try:
        model = architecture_of(checkpoint.args)
        _check_tensors(checkpoint, model)
        tokenizer = None
        if checkpoint.args.tokenizer_type == TOKENIZER:
            tokenizer = Tokenizer(TOKENIZER, ASSET_SHA256, (ENDOFTEXT, RETURN, CALL))
        dtypes = {
            name: torch.float32 if fp32 else checkpoint.dtypes[name]
            for name in tensor_shapes(model)
        }
        return write_export(folder, model, tokenizer, checkpoint.iteration, dtypes, checkpoint.read)
    except ExportError as error:
        if str(error).startswith((str(folder), str(checkpoint.folder))):
            raise
        raise ExportError(f"{checkpoint.folder}: {error}") from error


def _check_tensors(checkpoint: Checkpoint, model: Architecture) -> None:
    expected = tensor_shapes(model)
    for name in expected:
        if name not in checkpoint.shapes:
            raise ExportError(
                f"tensor {name}: missing; give a checkpoint that `vpmoe pretrain` saved"
            )
    for name, shape in checkpoint.shapes.items():
        if name not in expected:
            raise ExportError(
                f"tensor {name}: an export does not describe a model that has it; "
                "see docs/export.md"
            )
        if shape != expected[name]:
            raise ExportError(
                f"tensor {name}: shape {list(shape)}, but the training arguments give "
                f"{list(expected[name])}"
            )
        if checkpoint.dtypes[name] not in DTYPES.values():
            raise ExportError(
                f"tensor {name}: {checkpoint.dtypes[name]} is none of {', '.join(DTYPES)}; "
                "export a "
                "checkpoint of one of these"
            )


def import_export(folder: Path, path: Path) -> None:
    """Makes a checkpoint of an export, which `vpmoe pretrain --load` starts a training from.

    It is Megatron's kind for weights alone, a release: it holds no optimizer, and a training that
    loads it counts its steps from 0. Layouts are free, as for any checkpoint.

    Args:
        folder: of the export.
        path: of the checkpoint; must not exist.

    Raises:
        ExportError: the export is damaged, or of a model that no flags of vpMoE build.
        FileExistsError: the checkpoint exists.
    """
    export = open_export(folder)
    tensors = export.read()
    with new_folder(path) as place:
        release = place / RELEASE
        release.mkdir()
        _save(release, export, tensors)
        (place / TRACKER).write_text(RELEASE)


def _save(folder: Path, export: Export, tensors: dict[str, torch.Tensor]) -> None:
    from vpmoe.model.meta import meta_model

    # Stacked experts: the same checkpoint, from a module a layer instead of two an expert.
    flags = [*flags_of(export.architecture), "--expert-kernel", "grouped"]
    with meta_model(flags) as (args, model):
        from megatron.core import dist_checkpointing
        from megatron.core.dist_checkpointing.mapping import ShardedTensor

        if architecture_of(args) != export.architecture:
            raise ExportError(
                f"{export.folder}: architecture: no flags of `vpmoe pretrain` build these layers; "
                "see docs/export.md"
            )
        if export.tokenizer is None:
            args.tokenizer_type = "NullTokenizer"
        state = model.sharded_state_dict()
        for value in state.values():
            if isinstance(value, ShardedTensor):
                _fill(value, tensors)
        content: dict[str, Any] = {
            "args": args,
            "checkpoint_version": 3.0,
            "iteration": export.iteration,
            "model": state,
        }
        dist_checkpointing.save(content, str(folder))


def _fill(place: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Gives a sharded tensor of the model on the meta device its part of the export's."""
    whole = tensors[place.key]
    if tuple(whole.shape) != tuple(place.global_shape):
        raise ExportError(
            f"tensor {place.key}: shape {list(whole.shape)}, the model has "
            f"{list(place.global_shape)}"
        )
    part = whole[place.global_slice()]
    place.data = part.reshape(place.local_shape).contiguous()
    place.dtype = part.dtype
