"""The vocabulary file `o200k_base.tiktoken`: found, verified by hash, installed atomically.

No network is used: PyPI's `bpe-openai` wheel carries the file, and a user may give a copy.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import zlib
from pathlib import Path

from vpmoe.files import write_atomically

ASSET_NAME = "o200k_base.tiktoken"
ASSET_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
DEFAULT_PATH = Path("data/tokenizer") / ASSET_NAME
PATH_VARIABLE = "O200K_HARMONY_VOCAB_PATH"


class AssetError(ValueError):
    """The vocabulary is missing, or is not the one that ids are locked to."""


def default_path() -> Path:
    """Where the vocabulary is: $O200K_HARMONY_VOCAB_PATH, else data/tokenizer here."""
    return Path(os.environ.get(PATH_VARIABLE) or DEFAULT_PATH)


def read_asset(path: Path) -> bytes:
    """Reads a vocabulary file and verifies it.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        AssetError: no such file, unreadable, or of another hash.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AssetError(
            f"{path}: cannot be read ({error.strerror}); run `vpmoe tokenizer install`"
        ) from error
    _verify(content, str(path))
    return content


def ensure_asset(path: Path | str | None = None, source: Path | str | None = None) -> Path:
    """Makes sure that the verified vocabulary is at `path`.

    An existing good file is left alone. A file of another hash is an error, never replaced:
    it may be somebody's.

    Args:
        path: where it belongs; `default_path()` when None.
        source: a copy to install from, plain or gzipped; the `bpe-openai` wheel when None.

    Returns:
        Path of the file.

    Raises:
        AssetError: no source, or a file of another hash at `path` or at the source.
    """
    target = Path(path) if path is not None else default_path()
    if target.exists():
        read_asset(target)
        return target
    origin = Path(source) if source is not None else _wheel_file()
    content = _read_source(origin)
    _verify(content, str(origin))
    write_atomically(target, content)
    return target


def _wheel_file() -> Path:
    spec = importlib.util.find_spec("bpe_openai")
    if spec is None or spec.origin is None:
        raise AssetError(
            "the vocabulary comes with the package bpe-openai, which is not installed; install "
            f"it, or give a copy: `vpmoe tokenizer install --source PATH/TO/{ASSET_NAME}`"
        )
    return Path(spec.origin).parent / "data" / f"{ASSET_NAME}.gz"


def _read_source(origin: Path) -> bytes:
    try:
        content = origin.read_bytes()
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise AssetError(
            f"{origin}: the vocabulary cannot be read: {error}; give another --source"
        ) from error


def _verify(content: bytes, name: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != ASSET_SHA256:
        raise AssetError(
            f"{name}: sha256 {found} is not o200k_base ({ASSET_SHA256}); token ids would differ. "
            "Remove the file and run `vpmoe tokenizer install`"
        )
