"""Reads a Megatron checkpoint (`torch_dist`) of any layout, in one process and without its layout.

Checkpoints hold pickles. They are read with lists of what they may name, and nothing else is
looked up or called: the index with a restricted unpickler, tensors with torch's own
(`weights_only`), the training's arguments with torch's and Megatron's list of safe classes.
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import warnings
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

from vpmoe.export.architecture import ExportError

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
COMMON = "common_state/shard_0_1"

_DCP = "torch.distributed.checkpoint."
_PERMITTED = {
    (_DCP + "filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    *(
        (_DCP + "metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}
# Of several optimizers, Megatron may number each one's state.
_OPTIMIZER = re.compile(r"(chained_\d+\.)?optimizer\.")
# What reading a damaged file raises, in torch's layers.
_DAMAGE = (
    AssertionError,
    AttributeError,
    CheckpointException,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


class Checkpoint:
    """A checkpoint that is open for reading.

    Args:
        path: the folder of a training's `--save`, whose latest checkpoint is taken, or one
            checkpoint in it, such as `iter_0000100`.

    Attributes:
        folder: of the checkpoint.
        args: arguments of the training that saved it.
        iteration: steps that it had made.
        shapes: name -> shape of every tensor but the optimizer's.
        dtypes: name -> what each was saved in.

    Raises:
        ExportError: there is none, it is damaged, or it names what a checkpoint does not hold.
    """

    folder: Path
    args: argparse.Namespace
    iteration: int
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]

    def __init__(self, path: Path) -> None:
        self.folder = find_checkpoint(path)
        self._reader = _Reader(self.folder)
        try:
            metadata = self._reader.read_metadata()
        except _DAMAGE as error:
            raise ExportError(
                f"{self.folder / '.metadata'}: {_words(error)}; give another checkpoint"
            ) from error
        entries = {
            name: entry
            for name, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and not _OPTIMIZER.match(name)
        }
        self.shapes = {name: tuple(entry.size) for name, entry in entries.items()}
        self.dtypes = {name: entry.properties.dtype for name, entry in entries.items()}
        if COMMON not in metadata.state_dict_metadata:
            raise ExportError(
                f"{self.folder}: holds no training arguments ({COMMON}); give a checkpoint that "
                "`vpmoe pretrain` saved"
            )
        common = self._load({COMMON: io.BytesIO()})[COMMON]
        # Megatron wraps an object in a list of one.
        common = common[0] if isinstance(common, list) and common else common
        args = common.get("args") if isinstance(common, dict) else None
        if not isinstance(args, argparse.Namespace):
            raise ExportError(
                f"{self.folder}: {COMMON} holds no training arguments; give a "
                "checkpoint that `vpmoe pretrain` saved"
            )
        self.args = args
        self.iteration = int(common.get("iteration", 0))

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Reads tensors whole, each in the dtype that it was saved in, on the CPU.

        Args:
            names: of the tensors.

        Returns:
            Name -> tensor.

        Raises:
            ExportError: a file is missing or damaged.
        """
        # NaN where nothing is stored: a hole is refused with the NaNs.
        return self._load(
            {
                name: torch.full(self.shapes[name], float("nan"), dtype=self.dtypes[name])
                for name in names
            }
        )

    def _load(self, state: dict[str, Any]) -> dict[str, Any]:
        try:
            # torch warns that it loads in one process, as it is told to.
            with warnings.catch_warnings(action="ignore"):
                load(state, storage_reader=self._reader, planner=_Planner(), no_dist=True)
        except _DAMAGE as error:
            raise ExportError(f"{self.folder}: {_words(error)}; give another checkpoint") from error
        return state


def find_checkpoint(path: Path) -> Path:
    """Finds the folder of one checkpoint: `path` itself, or the latest in it.

    Args:
        path: a checkpoint, or the folder of a training's `--save`.

    Returns:
        The folder.

    Raises:
        ExportError: neither.
    """
    if (path / ".metadata").is_file():
        return path
    tracker = path / TRACKER
    try:
        latest = tracker.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(
            f"{path}: no checkpoint: it has neither .metadata nor {TRACKER}; give the folder of "
            "`--save`, or one checkpoint in it, of --ckpt-format torch_dist"
        ) from error
    if latest != RELEASE and not latest.isdecimal():
        raise ExportError(
            f"{tracker}: expected a number of steps, found {latest[:40]!r}; "
            "give one checkpoint's folder"
        )
    folder = path / (RELEASE if latest == RELEASE else f"iter_{int(latest):07d}")
    if not (folder / ".metadata").is_file():
        raise ExportError(
            f"{folder}: no torch_dist checkpoint, though {tracker} names it; give another"
        )
    return folder


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        permitted = (module, name) in _PERMITTED or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        )
        if not permitted:
            raise pickle.UnpicklingError(
                f"names {module}.{name}, which no checkpoint's index holds"
            )
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    """torch's reader, whose index is unpickled with a list of what it may name."""

    _index: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        del args, kwargs
        if self._index is None:
            with Path(self.path, ".metadata").open("rb") as file:
                index = _MetadataUnpickler(file).load()
            if not isinstance(index, Metadata):
                raise ValueError("no index of a checkpoint")
            for place in (index.storage_data or {}).values():
                relative = PurePosixPath(place.relative_path)
                if relative.is_absolute() or ".." in relative.parts:
                    raise ValueError(f"names the file {relative} outside the checkpoint")
            self._index = index
        return self._index


class _Planner(DefaultLoadPlanner):
    """torch's planner, whose objects are loaded with torch's restricted unpickler."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        from vpmoe.megatron.unpickling import safe_classes

        with torch.serialization.safe_globals(safe_classes()):
            loaded = torch.load(value, map_location="cpu", weights_only=True)
        self.original_state_dict[read_item.dest_index.fqn] = loaded


def _words(error: BaseException) -> str:
    """A reader's error in one line; torch wraps it in the traceback of its only rank."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, OSError) and error.filename:
        return f"{os.fspath(error.filename)}: {error.strerror}"
    return f"damaged or unreadable: {type(error).__name__}: {lines[0]}"
