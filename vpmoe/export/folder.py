"""An export on disk: a folder of safetensors files and one config.json that accounts for them.

    config.json                 what the model is, and name, shape, dtype and digest of each tensor
    model-00001-of-00001.safetensors

A folder is written beside its place and put there whole. Reading it trusts nothing: the config
against its digest and against the list of known keys, and every tensor against the config.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vpmoe.export.architecture import (
    Architecture,
    ExportError,
    parse_architecture,
    tensor_shapes,
)
from vpmoe.files import new_folder

FORMAT, VERSION = "vpmoe-export", 1
CONFIG = "config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Bytes of tensors in one file: what an export holds in memory at a time.
FILE_BYTES = 2 << 30

_FILE = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_KEYS = ("format", "version", "architecture", "tokenizer", "iteration", "tensors", "digest")


@dataclass(frozen=True)
class Tokenizer:
    """What the ids mean: the tokenizer, its vocabulary's SHA-256, ids that end a text."""

    name: str
    asset_sha256: str
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as config.json accounts for it; the digest is SHA-256 of its bytes."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str
    file: str


@dataclass(frozen=True)
class Export:
    """An export whose config has been checked.

    Attributes:
        folder: where it is.
        architecture: what the model is.
        tokenizer: None where the training had none of vpMoE's.
        iteration: training steps that the weights have behind them.
        tensors: name -> what is stored of it, in the order of the forward pass.
        digest: of the whole export.
    """

    folder: Path
    architecture: Architecture
    tokenizer: Tokenizer | None
    iteration: int
    tensors: Mapping[str, StoredTensor]
    digest: str

    def read(self) -> dict[str, torch.Tensor]:
        """Reads all tensors, as they are stored.

        Returns:
            Name -> tensor.

        Raises:
            ExportError: a file is missing or damaged, holds a tensor too many or too few, or a
                tensor is not what the config says.
        """
        found: dict[str, torch.Tensor] = {}
        for file in dict.fromkeys(tensor.file for tensor in self.tensors.values()):
            found |= self._read_file(file)
        return {name: found[name] for name in self.tensors}

    def _read_file(self, file: str) -> dict[str, torch.Tensor]:
        path = self.folder / file
        stored = {name: tensor for name, tensor in self.tensors.items() if tensor.file == file}
        try:
            with safe_open(path, framework="pt") as content:
                names = set(content.keys())
                _refuse_others(path, names, set(stored))
                tensors = {name: content.get_tensor(name) for name in stored}
        except FileNotFoundError as error:
            raise ExportError(f"{path}: missing; export again") from error
        except (SafetensorError, OSError) as error:
            raise ExportError(f"{path}: damaged or unreadable: {error}; export again") from error
        for name, tensor in tensors.items():
            expected = stored[name]
            shape, dtype = tuple(tensor.shape), _dtype_name(tensor.dtype)
            if shape != expected.shape or dtype != expected.dtype:
                raise ExportError(
                    f"{path}: tensor {name}: {dtype} {list(shape)}, but {CONFIG} says "
                    f"{expected.dtype} {list(expected.shape)}; export again"
                )
            refuse_non_finite(f"{path}: tensor {name}", tensor)
            if tensor_sha256(tensor) != expected.sha256:
                raise ExportError(
                    f"{path}: tensor {name}: its bytes are not those of {CONFIG}; export again"
                )
        return tensors


def write_export(
    folder: Path,
    architecture: Architecture,
    tokenizer: Tokenizer | None,
    iteration: int,
    dtypes: Mapping[str, torch.dtype],
    read: Callable[[list[str]], Mapping[str, torch.Tensor]],
) -> Export:
    """Writes an export whole, or leaves nothing behind.

    Args:
        folder: must not exist.
        architecture: what the model is.
        tokenizer: of its ids, or None.
        iteration: training steps behind the weights.
        dtypes: name -> what each tensor is stored in.
        read: gives tensors by name; called once a file.

    Returns:
        The export that was written.

    Raises:
        ExportError: a tensor has another shape, or is not finite.
        FileExistsError: the folder exists.
    """
    shapes = tensor_shapes(architecture)
    with new_folder(folder) as place:
        groups = list(_groups(shapes, dtypes))
        tensors: dict[str, StoredTensor] = {}
        for number, names in enumerate(groups, 1):
            file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            content: dict[str, torch.Tensor] = {}
            given = read(names)
            for name in names:
                if tuple(given[name].shape) != shapes[name]:
                    raise ExportError(
                        f"tensor {name}: shape {list(given[name].shape)}, expected "
                        f"{list(shapes[name])}"
                    )
                refuse_non_finite(f"tensor {name}", given[name])
                tensor = given[name].detach().to("cpu", dtypes[name]).contiguous()
                refuse_non_finite(f"tensor {name} as {_dtype_name(dtypes[name])}", tensor)
                content[name] = tensor
                tensors[name] = StoredTensor(
                    shapes[name], _dtype_name(tensor.dtype), tensor_sha256(tensor), file
                )
            save_file(content, place / file, metadata={"format": "pt"})
        body = _body(architecture, tokenizer, iteration, tensors)
        document = {**body, "digest": _digest(body)}
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        (place / CONFIG).write_text(text, encoding="utf-8")
    return Export(folder, architecture, tokenizer, iteration, tensors, document["digest"])


def open_export(folder: Path) -> Export:
    """Reads and checks the config of an export; its tensors are read by `Export.read`.

    Args:
        folder: of the export.

    Returns:
        The export.

    Raises:
        ExportError: no export, or one that is damaged or was made by another version; the message
            names the file and the key.
    """
    path = folder / CONFIG
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ExportError(
            f"{folder}: no export: it has no {CONFIG}; give a folder that `vpmoe export` wrote"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path}: unreadable: {error}; export again") from error
    try:
        return _parse(folder, document)
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error


def refuse_non_finite(what: str, tensor: torch.Tensor) -> None:
    """Refuses NaN and infinities.

    Args:
        what: the tensor's name, for the message.
        tensor: of any shape and dtype.

    Raises:
        ExportError: there is one; the message says how many and where the first is.
    """
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        bad = (~finite).nonzero()
        raise ExportError(
            f"{what}: {len(bad)} of {tensor.numel()} entries are not finite, the first at "
            f"{bad[0].tolist()}; export a step whose weights are finite"
        )


def tensor_sha256(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's bytes, row by row, little-endian."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(memoryview(flat.numpy())).hexdigest()


def _groups(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype]
) -> Iterator[list[str]]:
    """Names of the tensors of each file."""
    names: list[str] = []
    total = 0
    for name, shape in shapes.items():
        size = torch.Size(shape).numel() * dtypes[name].itemsize
        if names and total + size > FILE_BYTES:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names


def _refuse_others(path: Path, found: Iterable[str], expected: Iterable[str]) -> None:
    found, expected = set(found), set(expected)
    for name in sorted(expected - found):
        raise ExportError(f"{path}: tensor {name}: missing; export again")
    for name in sorted(found - expected):
        raise ExportError(f"{path}: tensor {name}: not in {CONFIG}; export again")


def _body(
    architecture: Architecture,
    tokenizer: Tokenizer | None,
    iteration: int,
    tensors: Mapping[str, StoredTensor],
) -> dict[str, Any]:
    """The config without its digest, as JSON."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "architecture": architecture.as_dict(),
        "tokenizer": None
        if tokenizer is None
        else {**vars(tokenizer), "stop_ids": list(tokenizer.stop_ids)},
        "iteration": iteration,
        "tensors": {
            name: {**vars(tensor), "shape": list(tensor.shape)} for name, tensor in tensors.items()
        },
    }


def _digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _parse(folder: Path, document: Any) -> Export:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ExportError(f"format: no {FORMAT}; give a folder that `vpmoe export` wrote")
    if document.get("version") != VERSION:
        raise ExportError(
            f"version: {document.get('version')!r}; this vpMoE reads version {VERSION}"
        )
    _keys("", document, _KEYS)
    architecture = parse_architecture(document["architecture"])
    shapes = tensor_shapes(architecture)
    entries = document["tensors"]
    if not isinstance(entries, dict):
        raise ExportError("tensors: expected an object")
    for name in shapes:
        if name not in entries:
            raise ExportError(f"tensors.{name}: missing")
    for name in entries:
        if name not in shapes:
            raise ExportError(f"tensors.{name}: unknown to this architecture; leave it out")
    tensors = {name: _parse_tensor(name, entries[name], shape) for name, shape in shapes.items()}
    if type(document["iteration"]) is not int or document["iteration"] < 0:
        raise ExportError(f"iteration: expected a number of steps, found {document['iteration']!r}")
    tokenizer = _parse_tokenizer(document["tokenizer"])
    body = {name: value for name, value in document.items() if name != "digest"}
    if document["digest"] != _digest(body):
        raise ExportError(
            "digest: not that of the content; the file was changed or damaged: export again"
        )
    return Export(
        folder, architecture, tokenizer, document["iteration"], tensors, document["digest"]
    )


def _parse_tensor(name: str, entry: Any, shape: tuple[int, ...]) -> StoredTensor:
    where = f"tensors.{name}"
    _keys(where + ".", entry, ("shape", "dtype", "sha256", "file"))
    if entry["shape"] != list(shape):
        raise ExportError(f"{where}.shape: {entry['shape']!r}, expected {list(shape)}")
    if entry["dtype"] not in DTYPES:
        raise ExportError(
            f"{where}.dtype: {entry['dtype']!r} is none of {', '.join(DTYPES)}; use one"
        )
    if not isinstance(entry["file"], str) or not _FILE.fullmatch(entry["file"]):
        raise ExportError(f"{where}.file: {entry['file']!r} is no file of an export")
    if not isinstance(entry["sha256"], str):
        raise ExportError(f"{where}.sha256: expected text")
    return StoredTensor(shape, entry["dtype"], entry["sha256"], entry["file"])


def _parse_tokenizer(entry: Any) -> Tokenizer | None:
    if entry is None:
        return None
    _keys("tokenizer.", entry, ("name", "asset_sha256", "stop_ids"))
    stop = entry["stop_ids"]
    if not isinstance(stop, list) or any(type(item) is not int for item in stop):
        raise ExportError(f"tokenizer.stop_ids: expected a list of ids, found {stop!r}")
    for name in ("name", "asset_sha256"):
        if not isinstance(entry[name], str):
            raise ExportError(f"tokenizer.{name}: expected text, found {entry[name]!r}")
    return Tokenizer(entry["name"], entry["asset_sha256"], tuple(stop))


def _keys(where: str, value: Any, known: tuple[str, ...]) -> None:
    if not isinstance(value, dict):
        raise ExportError(f"{where.rstrip('.')}: expected an object, found {value!r}")
    for name in value:
        if name not in known:
            raise ExportError(f"{where}{name}: unknown key")
    for name in known:
        if name not in value:
            raise ExportError(f"{where}{name}: missing")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
