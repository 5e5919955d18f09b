"""The scratch repository, in the states that commands are disturbed in: each is made once."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos.processes import environment, golden
from validation.cases import Case, Fault, discover_cases, discover_faults
from validation.files import digest
from validation.goldens import GoldenStore
from validation.trace import Trace, load_trace
from validation.trace.storage import encode_trace

SOURCES = Path(__file__).parent / "scratch"
LANE = "cpu"
CASES = ("one", "pair")
RECORDS = 57
"""What a whole check of the scratch repository compares."""

MOVED = tuple(word for case in CASES for word in ("--expect", f"{case}:*:any"))
RUNS = 4  # of a calibration


class UnfitError(RuntimeError):
    """The scratch repository does not work even undisturbed."""


@dataclass(frozen=True)
class State:
    """A state of the scratch repository, to be copied.

    Attributes:
        root: the repository.
        accepted: case -> digest of each trace that its golden may hold, whatever happens.
        expected: case -> the run that its code makes.
        run: a run folder of that code, relative to the root.
    """

    root: Path
    accepted: Mapping[str, frozenset[str]]
    expected: Mapping[str, Trace]
    run: Path

    def copy(self, folder: Path) -> Path:
        """A repository of an attempt's own, in `folder`; returns its root."""
        root = folder / "repository"
        shutil.copytree(self.root, root, symlinks=True)
        return root


class States:
    """Every state; each is made when it is first asked for.

    Args:
        folder: receives them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @functools.cached_property
    def calm(self) -> State:
        """Code and goldens agree."""
        root = self._folder / "calm" / "repository"
        shutil.copytree(SOURCES, root, ignore=shutil.ignore_patterns("__pycache__"))
        git(root, "init", "-q", "--template=", "-b", "main")
        settings = {"user.name": "Ada", "user.email": "ada@example.org", "gc.auto": "0"}
        for name, value in settings.items():
            git(root, "config", name, value)
        _golden(root, "setup")
        _commit(root, "A loop")
        _golden(root, "update", "--reason", "the first goldens")
        _golden(root, "calibrate", "--runs", str(RUNS))
        _commit(root, "Its goldens")
        run = _check(root, 0)
        return State(root, _digests(run), run, _latest(root))

    @functools.cached_property
    def changed(self) -> State:
        """The code has changed, its goldens have not; a run of the new code is there."""
        root = _copy(self.calm.root, self._folder / "changed")
        _turn(root, "0.5", "0.4")
        run = _check(root, 1)
        accepted = _digests(run)
        both = {case: self.calm.accepted[case] | accepted[case] for case in CASES}
        return State(root, both, run, _latest(root))

    @functools.cached_property
    def merging(self) -> State:
        """Amid a merge of two branches that both accepted."""
        root = _copy(self.calm.root, self._folder / "merging")
        for branch, rate in (("ours", "0.4"), ("theirs", "0.3")):
            git(root, "checkout", "-q", "-b", branch, "main")
            _turn(root, "0.5", rate)
            _golden(root, "update", "--reason", branch, *MOVED)
            _commit(root, f"Goldens of {branch}")
        git(root, "checkout", "-q", "ours")
        git(root, "merge", "theirs", code=1)
        solution = (SOURCES / "loop.py").read_text().replace("16, 0.5", "16, 0.35")
        (root / "loop.py").write_text(solution)
        git(root, "add", "loop.py")
        solved = _copy(root, self._folder / "solved")
        _golden(solved, "rebase")
        merged = {case: GoldenStore(solved / "goldens").load(LANE, case).trace for case in CASES}
        return State(root, _digests(merged), merged, self.calm.run)

    @functools.cached_property
    def cases(self) -> Mapping[str, Case]:
        """Declared ones."""
        return discover_cases(self.calm.root)

    @functools.cached_property
    def faults(self) -> Mapping[str, Fault]:
        """Declared ones."""
        return discover_faults(self.calm.root)


def trace_digest(trace: Trace) -> str:
    """What tells two traces' records apart."""
    return digest(b"\0".join(encode_trace(trace).values()))


def git(root: Path, *words: str, code: int = 0) -> str:
    """Runs git.

    Raises:
        UnfitError: another exit code.
    """
    done = subprocess.run(
        ["git", *words],
        cwd=root,
        env=environment(root),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != code:
        raise UnfitError(f"git {' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


def _golden(root: Path, *words: str, code: int = 0) -> None:
    ended = golden(root, *words)
    if ended.code != code:
        raise UnfitError(f"{ended.tail()}\n{ended.err}")


def _commit(root: Path, message: str) -> None:
    git(root, "add", "--all")
    git(root, "commit", "-q", "-m", message)


def _copy(root: Path, folder: Path) -> Path:
    copied = folder / "repository"
    shutil.copytree(root, copied)
    return copied


def _turn(root: Path, old: str, new: str) -> None:
    """Commits another learning rate, which moves every curve."""
    path = root / "loop.py"
    path.write_text(path.read_text().replace(f"16, {old}", f"16, {new}"))
    _commit(root, f"A rate of {new}")


def _check(root: Path, code: int) -> dict[str, Trace]:
    _golden(root, "check", code=code)
    return {case: load_trace(root / _latest(root) / "traces" / case) for case in CASES}


def _latest(root: Path) -> Path:
    found = (root / "runs").glob("*/verdict.json")
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent.relative_to(root)


def _digests(traces: Mapping[str, Trace]) -> dict[str, frozenset[str]]:
    return {case: frozenset({trace_digest(trace)}) for case, trace in traces.items()}
