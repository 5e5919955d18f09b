"""A disk that is full or cannot be written is UNFIT: a message names it, and nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from validation.files import write_atomically
from validation.goldens import GoldenStore
from validation.shortage import shortage

Disk = Callable[..., Path]


@pytest.fixture
def disk() -> Iterator[Disk]:
    """Mounts a small file system on a folder, and takes it away again."""
    mounted = []

    def mount(folder: Path, options: str = "size=64k") -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", options, "none", folder]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount a file system here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> None:
    """Leaves no room."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def fill_inodes(folder: Path) -> None:
    """Leaves room, and no inode."""
    with contextlib.suppress(OSError):
        for number in range(1000):
            (folder / f"filler{number}").touch()


def unfit(answer: Any, place: Path | str, said: str = "No space left on device") -> Any:
    """Holds a check's answer against the contract; returns its object."""
    assert answer.code == 4, answer.out + answer.err
    verdict = answer.json()
    assert verdict["verdict"] == "UNFIT"
    assert verdict["lane"] == "cpu"
    assert str(place) in verdict["message"]
    assert said in verdict["message"]
    assert "Traceback" not in answer.err
    return verdict


def test_no_room_for_runs(golden_project: Any, disk: Disk) -> None:
    runs = disk(golden_project.root / "runs")
    (runs / ".gitignore").write_text("*\n")
    fill(runs)
    answer = golden_project.golden("check", "plain_seed", "--json")
    unfit(answer, runs)
    assert "golden prune" in answer.err


def test_no_inode_for_runs(golden_project: Any, disk: Disk) -> None:
    runs = disk(golden_project.root / "runs", "size=1m,nr_inodes=8")
    (runs / ".gitignore").write_text("*\n")
    fill_inodes(runs)
    unfit(golden_project.golden("check", "plain_seed", "--json"), runs)


def test_room_ends_while_a_trace_is_saved(golden_project: Any, disk: Disk) -> None:
    runs = disk(golden_project.root / "runs", "size=24k")
    unfit(golden_project.golden("check", "plain_seed", "--json"), runs)


def test_room_ends_in_a_run(golden_project: Any, disk: Disk, tmp_path: Path) -> None:
    folder = disk(tmp_path / "temporary", "size=12k")
    answer = golden_project.golden("check", "plain_seed", "--json", TMPDIR=str(folder))
    verdict = unfit(answer, folder)
    assert [case["verdict"] for case in verdict["cases"]] == ["UNFIT"]


def test_no_room_for_the_report(golden_project: Any, disk: Disk, tmp_path: Path) -> None:
    folder = disk(tmp_path / "reports")
    fill(folder)
    words = ["check", "plain_seed", "--json", "--report", str(folder / "out")]
    unfit(golden_project.golden(*words), folder)
    words[-1] = str(folder)
    unfit(golden_project.golden(*words), folder)


def test_a_checkout_that_cannot_be_written(golden_project: Any, disk: Disk) -> None:
    runs = disk(golden_project.root / "runs", "size=64k,ro")
    answer = golden_project.golden("check", "plain_seed", "--json")
    unfit(answer, runs, "Read-only file system")


def test_the_object_itself_has_no_room(golden_project: Any) -> None:
    command = f"{sys.executable} -m validation.cli check plain_seed --json >/dev/full"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=golden_project.root,
        env=golden_project.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_update_without_room_leaves_the_golden(golden_project: Any, disk: Disk) -> None:
    project = golden_project
    store = GoldenStore(project.root / "goldens")
    before = store.load("cpu", "plain_seed")
    project.edit("lr=3e-3", "lr=4e-3")
    project.commit("a higher rate")
    kept = {p.relative_to(store.folder): p.read_bytes() for p in store.folder.rglob("*.*")}
    disk(store.folder, "size=256k")
    for name, content in kept.items():
        (store.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (store.folder / name).write_bytes(content)
    fill(store.folder)
    words = ["--reason", "a higher rate", "--expect", "plain_seed:*:any"]
    answer = project.golden("update", "plain_seed", *words)
    assert answer.code == 4, answer.out + answer.err
    assert str(store.folder) in answer.err
    assert "No space left on device" in answer.err
    assert "Traceback" not in answer.err
    assert store.load("cpu", "plain_seed") == before
    assert {p.name for p in (store.folder / "audit").iterdir()} == {
        name.name for name in kept if "audit" in name.parts
    }


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_what_lacks_is_found_behind_other_errors(number: int) -> None:
    try:
        try:
            raise OSError(number, os.strerror(number), "/data/run")
        except OSError as error:
            raise RuntimeError("the report is gone") from error
    except RuntimeError as error:
        said = shortage(error)
    assert said is not None
    assert said.startswith(f"/data/run: {os.strerror(number)}")
    assert shortage(OSError(errno.ENOENT, "No such file", "/x")) is None
    assert shortage(ValueError("1 of 2 records differ")) is None


def test_git_without_room_is_understood() -> None:
    said = b"fatal: unable to write new index file: No space left on device"
    error = subprocess.CalledProcessError(128, ["git"], stderr=said)
    assert "unable to write new index file" in str(shortage(error))


def test_an_error_of_writing_names_the_file(disk: Disk, tmp_path: Path) -> None:
    folder = disk(tmp_path / "disk", "size=16k")
    path = folder / "kept.json"
    write_atomically(path, b"{}")
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(path, json.dumps(["x" * 99] * 999).encode())
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"{}"
    assert list(folder.iterdir()) == [path]
