"""Thins a wheel's CUDA libraries to one GPU architecture, for runners that take few megabytes.

A CUDA library carries machine code for every architecture in "fat binary" containers. The code of
the others is overwritten by zeros, which compress away; sizes, offsets and symbols stay as they
are. Container layout: magic 0xBA55ED50, u16 version, u16 header size, u64 payload size; then
entries of u16 kind (1 PTX, 2 machine code), u16, u32 header size, u64 payload size, with the
architecture as u32 at byte 28.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import struct
import tempfile
import zipfile
from pathlib import Path

_MAGIC = 0xBA55ED50
_MACHINE_CODE = 2


def thin_library(data: bytes, arch: int) -> bytes:
    """Zeroes all device code but `arch`'s machine code.

    Args:
        data: a shared library.
        arch: compute capability without its dot, such as 90.

    Returns:
        A library of the same length; `data` itself when it holds no machine code for `arch`.
    """
    out = bytearray(data)
    kept = 0
    magic = struct.pack("<I", _MAGIC)
    start = data.find(magic)
    while start >= 0:
        _, _, header, payload = struct.unpack_from("<IHHQ", data, start)
        entry, end = start + header, start + header + payload
        if header < 16 or end > len(data):
            start = data.find(magic, start + 4)
            continue
        while entry < end:
            kind, _, entry_header, size = struct.unpack_from("<HHIQ", data, entry)
            if entry_header < 32 or entry + entry_header + size > end:
                break
            (entry_arch,) = struct.unpack_from("<I", data, entry + 28)
            if kind == _MACHINE_CODE and entry_arch == arch:
                kept += 1
            else:
                out[entry + entry_header : entry + entry_header + size] = bytes(size)
            entry += entry_header + size
        start = data.find(magic, end)
    return bytes(out) if kept else data


def thin_wheel(wheel: Path, arch: int) -> None:
    """Rewrites a wheel in place with thinned `.so` files and a RECORD that matches them."""
    with zipfile.ZipFile(wheel) as source:
        names = source.namelist()
        record_name = next(n for n in names if n.endswith(".dist-info/RECORD"))
        changed: dict[str, bytes] = {}
        for name in names:
            if ".so" in Path(name).name:
                data = source.read(name)
                thinned = thin_library(data, arch)
                if thinned is not data:
                    changed[name] = thinned
        rows = list(csv.reader(io.StringIO(source.read(record_name).decode())))
        for row in rows:
            if row and row[0] in changed:
                digest = hashlib.sha256(changed[row[0]]).digest()
                row[1] = "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
                row[2] = str(len(changed[row[0]]))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        changed[record_name] = text.getvalue().encode()
        handle, temporary = tempfile.mkstemp(dir=wheel.parent, suffix=".part")
        os.close(handle)
        try:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
                for info in source.infolist():
                    out.writestr(info, changed.get(info.filename, source.read(info)))
            Path(temporary).replace(wheel)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
