"""The vocabulary file: found, verified, installed whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest

from vpmoe.tokenizer import asset


def test_installs_the_locked_file_without_network(tmp_path: Path) -> None:
    path = asset.ensure_asset(tmp_path / "new" / "o200k_base.tiktoken")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == asset.ASSET_SHA256
    assert len(path.read_bytes().splitlines()) == 199_998
    assert [p.name for p in path.parent.iterdir()] == ["o200k_base.tiktoken"]


def test_an_existing_good_file_is_left_alone(vocabulary: Path) -> None:
    before = vocabulary.stat().st_mtime_ns
    assert asset.ensure_asset(vocabulary) == vocabulary
    assert vocabulary.stat().st_mtime_ns == before


def test_installs_from_a_given_copy(vocabulary: Path, tmp_path: Path) -> None:
    packed = tmp_path / "copy.gz"
    packed.write_bytes(gzip.compress(vocabulary.read_bytes(), 1))
    path = asset.ensure_asset(tmp_path / "out.tiktoken", packed)
    assert path.read_bytes() == vocabulary.read_bytes()


def test_another_hash_is_refused_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "o200k_base.tiktoken"
    path.write_bytes(b"IQ== 0\n")
    with pytest.raises(asset.AssetError, match="sha256"):
        asset.ensure_asset(path)
    assert path.read_bytes() == b"IQ== 0\n"


@pytest.mark.parametrize("content", [b"wrong", b"\x1f\x8bbroken"])
def test_a_bad_source_leaves_nothing_behind(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "source"
    source.write_bytes(content)
    with pytest.raises(asset.AssetError, match="source"):
        asset.ensure_asset(tmp_path / "out" / "x.tiktoken", source)
    assert not (tmp_path / "out").exists()


def test_a_missing_file_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(asset.AssetError, match="vpmoe tokenizer install"):
        asset.read_asset(tmp_path / "absent")
