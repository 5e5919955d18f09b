"""A plant that logs every operation of a run: its name, place in the source, operands and result.

Values are logged as hashes of their bits, so that two runs can be compared operation by operation
(`validation.diagnosis.first_operation`). A line of JSON each:

    [name, place, called from, [operand hashes], [result hashes], [result shapes]]

`place` is the innermost line outside of torch and of the harness, `called from` the innermost one
in the repository, where that is another. In the backward pass, outside of hooks and functions in
Python, both are those of the forward operation whose gradient is computed, and the place begins
with "backward of". Memory that nobody has written (`empty`) has no hash.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, TextIO

FOLDER = "GOLDEN_OPERATIONS"
"""Variable that names the folder of the logs; each rank writes its own file there."""
PLANT = "validation.diagnosis.operation_log:logged"
_UNWRITTEN = ("empty", "resize", "new_empty", "set_", "barrier")
_BACKWARD = "backward of "
_ENGINE = "_engine_run_backward"


def log_file(folder: Path, rank: int) -> Path:
    """Where a rank's log is."""
    return folder / f"rank{rank}.jsonl"


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """Logs every operation of this thread inside, into the folder that `FOLDER` names."""
    # Only where it is planted: the commands that read logs need no torch.
    from torch.utils._python_dispatch import TorchDispatchMode

    folder, rank = Path(os.environ[FOLDER]), int(os.environ.get("RANK", "0"))
    folder.mkdir(parents=True, exist_ok=True)

    class Log(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            return writer.run(func, args, kwargs or {})

    with log_file(folder, rank).open("w") as stream:
        writer = _Writer(stream, Path.cwd())
        with Log():
            yield


class _Writer:
    """Writes a line for each operation.

    Args:
        stream: of the log.
        root: of the repository, whose lines of source are named relative to it.
    """

    def __init__(self, stream: TextIO, root: Path) -> None:
        self._stream = stream
        self._places = _Places(root)
        self._by_node: dict[int, tuple[str, str]] = {}

    def run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        written = _written(func, args, kwargs)
        before = [t for t in _tensors((*args, *kwargs.values())) if not _among(t, written)]
        name = str(func)
        unwritten = func._schema.name.split("::")[1].startswith(_UNWRITTEN)
        operands = [] if unwritten else [_hashed(tensor) for tensor in before]
        result = func(*args, **kwargs)
        left = _tensors((result,)) or written
        line = [
            name,
            *self._place(),
            operands,
            [] if unwritten else [_hashed(tensor) for tensor in left],
            [f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in left],
        ]
        self._stream.write(json.dumps(line) + "\n")
        return result

    def _place(self) -> tuple[str, str]:
        import torch

        found = self._places.here()
        node = torch._C._current_autograd_node()
        if node is not None:
            if found[0]:  # a hook, or a backward function in Python
                return found
            place, called = self._by_node.get(node._sequence_nr(), (node.name(), ""))
            return f"{_BACKWARD}{place}", called
        # autograd counted the node of this operation just before it.
        self._by_node[torch.autograd._get_sequence_nr() - 1] = found
        return found


class _Places:
    """Names lines of source: (the innermost one of interest, the innermost one of a repository)."""

    def __init__(self, root: Path) -> None:
        import torch

        self._root = str(root.resolve()) + os.sep
        self._hidden = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
        self._names: dict[CodeType, tuple[str, bool] | None] = {}

    def here(self) -> tuple[str, str]:
        """Of the caller's stack; empty where all of it is torch's or the harness's.

        What called the engine of autograd is no place of what the engine does.
        """
        frame = sys._getframe(2)
        place = ""
        while frame is not None and frame.f_code.co_name != _ENGINE:
            named = self._named(frame.f_code)
            if named is not None:
                line = f"{named[0]}:{frame.f_lineno}"
                if named[1]:
                    return place or line, line if place else ""
                place = place or line
            frame = frame.f_back  # type: ignore[assignment]
        return place, ""

    def _named(self, code: CodeType) -> tuple[str, bool] | None:
        if code not in self._names:
            self._names[code] = self._name(code.co_filename)
        return self._names[code]

    def _name(self, file: str) -> tuple[str, bool] | None:
        if file.startswith(self._hidden) or f"{os.sep}lib{os.sep}python" in _standard(file):
            return None
        inside = file.startswith(self._root) and "site-packages" not in file
        if inside:
            return file.removeprefix(self._root), True
        return file.rpartition(f"site-packages{os.sep}")[2], False


def _standard(file: str) -> str:
    """The path of a file of Python's own library; nothing of an installed package."""
    return "" if "site-packages" in file or "dist-packages" in file else file


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The tensors that an operation writes into."""
    found = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += _tensors((value,))
    return found


def _among(tensor: Any, tensors: Sequence[Any]) -> bool:
    return any(tensor is other for other in tensors)


def _tensors(values: Sequence[Any]) -> list[Any]:
    import torch

    found = []
    for value in values:
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, torch.Tensor):
                found.append(item)
    return found


def _hashed(tensor: Any) -> str:
    """Hash of a tensor's type, shape and bits; of one without memory its kind."""
    import torch

    if tensor.is_meta or tensor.layout is not torch.strided or tensor.numel() == 0:
        return "-"
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    content = plain.reshape(-1).view(torch.uint8).numpy()
    # Against chance alone, and five times as fast as a hash that withstands an attacker.
    start = zlib.crc32(f"{tensor.dtype}{list(tensor.shape)}".encode())
    return f"{zlib.crc32(content, start):08x}"
