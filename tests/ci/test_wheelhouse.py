"""The wheelhouse builder: what is left out, and thinning that changes nothing else."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import struct
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "ci"))

import thin_cuda
import wheelhouse


def _fat_binary(entries: list[tuple[int, int, bytes]]) -> bytes:
    body = b""
    for kind, arch, code in entries:
        header = struct.pack("<HHIQ", kind, 0x101, 64, len(code)).ljust(28, b"\1")
        body += (header + struct.pack("<I", arch)).ljust(64, b"\2") + code
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_thinning_keeps_one_architecture_and_every_offset() -> None:
    ours, other, ptx = b"\xaa" * 96, b"\xbb" * 48, b"\xcc" * 40
    containers = (
        _fat_binary([(2, 80, other), (2, 90, ours)]) + b"pad!" + _fat_binary([(1, 90, ptx)])
    )
    library = b"\x7fELF text before " + containers + b" text after"
    thinned = thin_cuda.thin_library(library, 90)
    assert len(thinned) == len(library)
    assert thinned == library.replace(other, bytes(48)).replace(ptx, bytes(40))
    assert thin_cuda.thin_library(library, 100) == library
    assert thin_cuda.thin_library(b"no device code", 90) == b"no device code"


def test_a_false_magic_or_a_cut_container_is_left_alone() -> None:
    false = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 1 << 40) + bytes(64)
    assert thin_cuda.thin_library(false, 90) == false


def test_thinned_wheel_has_a_record_that_matches(tmp_path: Path) -> None:
    library = _fat_binary([(2, 80, b"\xbb" * 4096), (2, 90, b"\xaa" * 64)])
    wheel = tmp_path / "te-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as out:
        out.writestr("te/lib.so.1", library)
        out.writestr("te/__init__.py", "x = 1\n")
        out.writestr(
            "te-1.dist-info/RECORD", "te/lib.so.1,sha256=old,1\nte/__init__.py,sha256=a,6\n"
        )
    thin_cuda.thin_wheel(wheel, 90)
    with zipfile.ZipFile(wheel) as result:
        data = result.read("te/lib.so.1")
        rows = {
            r[0]: r for r in csv.reader(io.StringIO(result.read("te-1.dist-info/RECORD").decode()))
        }
        assert result.read("te/__init__.py") == b"x = 1\n"
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    assert rows["te/lib.so.1"][1:] == [f"sha256={digest}", str(len(library))]
    assert rows["te/__init__.py"] == ["te/__init__.py", "sha256=a", "6"]
    assert list(tmp_path.iterdir()) == [wheel]


def test_freeze_of_a_runner_is_read_and_a_strange_line_named(tmp_path: Path) -> None:
    freeze = tmp_path / "freeze.txt"
    freeze.write_text("# image\nTyping_Extensions==4.1\n-e git\ntorch @ file:///torch.whl\n\n")
    assert wheelhouse.read_freeze(freeze) == {"typing-extensions", "torch"}
    freeze.write_text("torch==2.11.0\n???\n")
    with pytest.raises(ValueError, match=r"freeze\.txt:2"):
        wheelhouse.read_freeze(freeze)


def test_requirements_expand_the_projects_own_extras() -> None:
    gpu = wheelhouse.requirements("gpu")
    assert any(r.startswith("megatron-core") for r in gpu)
    assert not any(r.startswith("vpmoe") for r in gpu)
    with pytest.raises(ValueError, match="no extra 'cpu'"):
        wheelhouse.requirements("cpu")
