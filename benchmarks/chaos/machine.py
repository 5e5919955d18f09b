"""Machines that fail: full disks, full inodes, read-only checkouts, another user, a wrong clock."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.chaos.attempt import LOST, Attempt, Skipped
from benchmarks.chaos.oracle import (
    INVALID,
    PASS,
    REFUSED,
    REPAIRED,
    UNFIT,
    Before,
    contents,
    judge_audits,
    judge_check,
    judge_health,
    judge_order,
    judge_processes,
    judge_store,
    passes,
)
from benchmarks.chaos.processes import Running, golden
from benchmarks.chaos.repository import State
from benchmarks.chaos.stopped import SCENARIOS, again

_HERE = Path(__file__).parent
_PAGE = 4096
_YEAR = 365 * 24 * 3600


# --- disks -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system in memory.

    Raises:
        Skipped: this user may not mount.
    """
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", options, "chaos", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skipped(f"no file system can be mounted: {done.stderr.strip() or done.returncode}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def full_disk(attempt: Attempt) -> None:
    """A disk runs out of bytes while a command writes."""
    with _mounted(attempt.folder / "disk", "size=64m") as disk:
        filler = disk / "filler"

        def fill(room: int) -> None:
            free = shutil.disk_usage(disk).free
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(_PAGE, free - room * _PAGE))

        _on_a_full_disk(attempt, disk, fill, filler, "pages")


def full_inodes(attempt: Attempt) -> None:
    """A disk runs out of inodes while a command writes."""
    with _mounted(attempt.folder / "disk", "size=64m,nr_inodes=4000") as disk:
        filler = disk / "filler"

        def fill(room: int) -> None:
            filler.mkdir()
            for number in range(os.statvfs(disk).f_favail - room):
                (filler / str(number)).touch()

        _on_a_full_disk(attempt, disk, fill, filler, "inodes")


def _on_a_full_disk(attempt: Attempt, disk: Path, fill, filler: Path, unit: str) -> None:
    random = attempt.random
    command = random.choice(sorted(SCENARIOS))
    state = SCENARIOS[command].state(attempt.states)
    inside = random.random() < 0.5
    root = state.copy(disk)
    before = Before(root)
    more = {} if inside else {"TMPDIR": str(attempt.folder)}
    logs = root.parent / "logs"  # what a command says must be read
    logs.symlink_to(attempt.folder / "logs")
    (attempt.folder / "logs").mkdir()
    (root.parent / "tmp").mkdir()
    room = random.choice((0, 1, 2, random.randrange(3, 60)))
    attempt.did = f"{command}: {room} {unit} left" + (", also for temporary files" * inside)
    fill(room)
    words = SCENARIOS[command].words(state)
    if command == "check":
        ended = golden(root, *words, **more)
        judge_check(attempt, ended, PASS, REFUSED, INVALID, UNFIT)
    else:
        attempt.expect(golden(root, *words, **more), PASS, REFUSED, UNFIT)
    judge_processes(attempt)
    shutil.rmtree(filler) if filler.is_dir() else filler.unlink()
    judge_store(attempt, state, root, before)
    judge_audits(attempt, root, before)
    merging = state is attempt.states.merging
    judge_health(attempt, root, {*REPAIRED, *(("damaged", "stale") if merging else ())})
    if not attempt.wrong:
        (root / ".git" / "index.lock").unlink(missing_ok=True)
        again(attempt, command, state, root)


def full_output(attempt: Attempt) -> None:
    """Standard output is on a full disk."""
    state = attempt.states.calm
    root = state.copy(attempt.folder)
    words = ["check", *(["--json"] if attempt.random.random() < 0.5 else [])]
    attempt.did = f"{' '.join(words)} > /dev/full"
    before = Before(root)
    attempt.expect(Running(root, words, output=Path("/dev/full")).wait(), REFUSED, INVALID, UNFIT)
    judge_processes(attempt)
    judge_store(attempt, state, root, before)
    judge_order(attempt, root)


# --- who may write ---------------------------------------------------------------------------


def read_only(attempt: Attempt) -> None:
    """The checkout, or its goldens, cannot be written."""
    random = attempt.random
    command = random.choice(sorted(SCENARIOS))
    state = SCENARIOS[command].state(attempt.states)
    root = state.copy(attempt.folder)
    before, goldens_alone = Before(root), random.random() < 0.5
    place = root / "goldens" if goldens_alone else root
    attempt.did = f"{command}: read-only {'goldens' if goldens_alone else 'checkout'}"
    held = contents(root, "goldens")
    golden_words = SCENARIOS[command].words(state)
    for words in (["--bind", str(place), str(place)], ["-o", "remount,bind,ro", str(place)]):
        done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Skipped(f"nothing can be mounted: {done.stderr.strip()}")
    try:
        ended = golden(root, *golden_words)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)
    if command == "check":
        judge_check(attempt, ended, *((PASS,) if goldens_alone else (REFUSED, INVALID, UNFIT)))
    else:
        attempt.expect(ended, REFUSED, UNFIT)
    judge_processes(attempt)
    judge_store(attempt, state, root, before)
    if contents(root, "goldens") != held:
        attempt.blame(LOST, "goldens that cannot be written have changed")


def another_user(attempt: Attempt) -> None:
    """Somebody without privileges, who owns the checkout or does not."""
    random = attempt.random
    state = attempt.states.calm
    root = state.copy(attempt.folder)
    before = Before(root)
    owner = random.choice(("own", "foreign", "unwritable goldens", "unwritable runs", "no home"))
    attempt.did = f"check: without privileges: {owner}"
    # A user of its own name space has no capability, and what is ours is its own.
    user = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    done = subprocess.run([*user, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skipped(f"no user name space: {done.stderr.strip()}")
    codes: tuple[int, ...] = (PASS,)
    more = {}
    if owner == "foreign":
        if os.getuid():
            raise Skipped("only root can give a checkout away")
        for path in (root, *root.rglob("*")):
            os.chown(path, 65534, 65534, follow_symlinks=False)
        codes = (REFUSED, INVALID, UNFIT)
    elif owner == "no home":
        more = {"HOME": "/nonexistent"}
    elif owner != "own":
        name = owner.split()[1]
        for path in (root / name, *(root / name).rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        codes = (PASS,) if name == "goldens" else (REFUSED, INVALID, UNFIT)
    ended = Running(root, ["check"], more=more, before=user).wait()
    judge_check(attempt, ended, *codes)
    judge_processes(attempt)
    judge_store(attempt, state, root, before)


# --- clocks ----------------------------------------------------------------------------------


@functools.cache
def _clock() -> Path:
    """The library that moves a clock.

    Raises:
        Skipped: there is no compiler.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise Skipped("no C compiler, to build what moves a clock")
    folder = tempfile.mkdtemp(prefix="chaos-clock-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = Path(folder) / "clock.so"
    source = str(_HERE / "clock.c")
    words = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), source, "-ldl"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skipped(f"cc: {done.stderr.strip()[:300]}")
    return library


def clock_back(attempt: Attempt) -> None:
    """The clock is set back, before a command or while it runs."""
    random = attempt.random
    library = _clock()
    command = random.choice(sorted(SCENARIOS))
    state: State = SCENARIOS[command].state(attempt.states)
    root = state.copy(attempt.folder)
    before = Before(root)
    by = random.choice((60, 3600, 86400, 10 * _YEAR, 50 * _YEAR))
    after = random.choice((0.0, random.random()))
    attempt.did = f"{command}: the clock goes back by {by} s after {after:.1f} s"
    more = {
        "LD_PRELOAD": str(library),
        "CHAOS_CLOCK": str(-by),
        "CHAOS_CLOCK_AFTER": f"{after:.2f}",
    }
    attempt.expect(golden(root, *SCENARIOS[command].words(state), **more), PASS)
    judge_processes(attempt)
    judge_store(attempt, state, root, before)
    judge_order(attempt, root)
    passes(attempt, state, root)


KINDS = {
    "full-disk": full_disk,
    "full-inodes": full_inodes,
    "full-output": full_output,
    "read-only": read_only,
    "another-user": another_user,
    "clock-back": clock_back,
}
