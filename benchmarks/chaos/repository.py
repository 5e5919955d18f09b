"""The scratch repository, in the states that commands are disturbed in: each is made once."""

from __future__ import annotations

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


@dataclass(frozen=True)
class States:
    """Every state.

    Attributes:
        calm: code and goldens agree.
        changed: the code has changed, its goldens have not; a run of the new code is there.
        merging: amid a merge of two branches that both accepted.
        cases: declared.
        faults: declared.
    """

    calm: State
    changed: State
    merging: State
    cases: Mapping[str, Case]
    faults: Mapping[str, Fault]


def make_states(folder: Path) -> States:
    """Makes the states.

    Raises:
        UnfitError: a command failed although nothing disturbed it.
    """
    calm = folder / "calm" / "repository"
    shutil.copytree(SOURCES, calm, ignore=shutil.ignore_patterns("__pycache__"))
    git(calm, "init", "-q", "--template=", "-b", "main")
    for name, value in (("user.name", "Ada"), ("user.email", "ada@example.org"), ("gc.auto", "0")):
        git(calm, "config", name, value)
    _golden(calm, "setup")
    _commit(calm, "A loop")
    _golden(calm, "update", "--reason", "the first goldens")
    _golden(calm, "calibrate", "--runs", str(RUNS))
    _commit(calm, "Its goldens")
    old = _check(calm, 0)

    changed = _copy(calm, folder / "changed")
    _turn(changed, "0.5", "0.4")
    new = _check(changed, 1)

    merging = _copy(calm, folder / "merging")
    for branch, rate in (("ours", "0.4"), ("theirs", "0.3")):
        git(merging, "checkout", "-q", "-b", branch, "main")
        _turn(merging, "0.5", rate)
        _golden(merging, "update", "--reason", branch, *MOVED)
        _commit(merging, f"Goldens of {branch}")
    git(merging, "checkout", "-q", "ours")
    git(merging, "merge", "theirs", code=1)
    solution = (SOURCES / "loop.py").read_text().replace("16, 0.5", "16, 0.35")
    (merging / "loop.py").write_text(solution)
    git(merging, "add", "loop.py")
    solved = _copy(merging, folder / "solved")
    _golden(solved, "rebase")
    merged = {case: GoldenStore(solved / "goldens").load(LANE, case).trace for case in CASES}

    one = _digests(old)
    other = {case: one[case] | _digests(new)[case] for case in CASES}
    run = _latest(calm)
    return States(
        calm=State(calm, one, old, run),
        changed=State(changed, other, new, _latest(changed)),
        merging=State(merging, _digests(merged), merged, run),
        cases=discover_cases(calm),
        faults=discover_faults(calm),
    )


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
