"""`golden check --judge REV`: the base revision's gate judges this tree.

A change must not loosen its own judge. The comparator, the cases and the faults are the ones of the
`validation` package at the base revision, run from outside the checkout, and the modules that the
base's `[tool.golden]` names inside of packages are the base's too (`validation.gate.overlay`). The
accepted values are this tree's, which reviewers see; the tolerances are the base's for every golden
that it has.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from validation.config import FILES, Declaration, declaration_of, search_path
from validation.files import DamagedFileError, write_atomically
from validation.gate.overlay import lay_declared_modules
from validation.gate.verdict import CaseResult, Verdict
from validation.goldens import layout
from validation.goldens.store import Golden, GoldenStore, MissingGoldenError
from validation.running.source import RepositoryError, git

BASE = "GOLDEN_BASE"
"""Variable: the commit whose gate judges; in the environment, since older gates know no option."""

# What gates that read entry points were installed as.
_DISTRIBUTION = "vpmoe"


def hold_to_base(golden: Golden, judge: Path | None) -> Golden:
    """The golden with the base's tolerances, if the base has any golden of its case.

    A golden of an environment that the base does not have gets those of the base's nearest.

    Args:
        golden: this tree's.
        judge: `goldens/` of the base; None leaves the golden as it is.

    Raises:
        DamagedFileError: the base's golden is damaged.
    """
    if judge is None:
        return golden
    try:
        base = GoldenStore(judge).nearest(golden.lane, golden.case, golden.environment)
    except MissingGoldenError:
        return golden
    return replace(golden, tolerances=base.tolerances)


def judged_declaration(root: Path, judge: Path | None) -> Declaration:
    """What says which modules have the cases, and which lanes there are.

    Args:
        root: this tree.
        judge: `goldens/` of the base, beside its `pyproject.toml`; None without a judge.

    Raises:
        CaseError: there is no declaration, or a wrong one.
    """
    # A base from before there were declarations is judged by this tree's.
    return declaration_of(*([] if judge is None else [judge.parent]), root)


def vanished_cases(judge: Path, lane: str, declared: Collection[str]) -> list[CaseResult]:
    """An INVALID result for every golden of the base whose case is not declared any more."""
    return [
        CaseResult(
            name,
            Verdict.INVALID,
            message=f"the base has a golden of {lane}/{name}, and no case of that name is left",
        )
        for name in GoldenStore(judge).names(lane)
        if name not in declared
    ]


def check_with_base(root: Path, revision: str, words: Sequence[str]) -> int:
    """Runs `golden check` as it was at a revision, on this tree; returns its exit code.

    Args:
        root: the repository.
        revision: the base.
        words: of `golden check`, without `--judge`.

    Raises:
        RepositoryError: there is no such revision.
    """
    with checked_out(root, revision, ("validation", "goldens", *FILES)) as base:
        lay_declared_modules(root, revision, base)
        _declare_to_old_gate(root, base)
        command = [sys.executable, "-P", "-m", "validation.cli", "check", *words]
        command += ["--judged-by", str(base / "goldens")]
        # Where the base has no gate of its own, the installed one judges by the base's goldens.
        inherited = os.environ.get("PYTHONPATH")
        path = os.pathsep.join(part for part in (str(base), inherited, *search_path(root)) if part)
        commit = git(root, "rev-parse", f"{revision}^{{commit}}").strip()
        environment = {**os.environ, "PYTHONPATH": path, BASE: commit}
        with _names_for_old_gate(root, base):
            done = subprocess.run(command, cwd=root, env=environment, check=False)
    return done.returncode


def _declare_to_old_gate(root: Path, base: Path) -> None:
    """Gates from before there were declarations read the entry points of what is installed.

    This tree's declaration is put in front of them, in the name of that distribution.
    """
    gate = base / "validation"
    if not gate.is_dir() or (gate / "config.py").exists() or (gate / "config").is_dir():
        return
    declared = declaration_of(root)
    lines = []
    for group, modules in (("cases", declared.cases), ("faults", declared.faults)):
        lines += [f"[validation.{group}]", *(f"{name} = {name}" for name in modules)]
    info = base / f"{_DISTRIBUTION}-0.dist-info"
    write_atomically(info / "METADATA", f"Name: {_DISTRIBUTION}\nVersion: 0\n".encode())
    write_atomically(info / "entry_points.txt", "\n".join([*lines, ""]).encode())


@contextlib.contextmanager
def _names_for_old_gate(root: Path, base: Path) -> Iterator[None]:
    """Gates from before names were fixed look for goldens' files under names with digests.

    While one judges, this tree's files have both; digests of the source see neither.
    """
    made: list[Path] = []
    gate = base / "validation"
    old = gate.is_dir() and not (gate / "goldens" / "layout.py").exists()
    store = GoldenStore(root / "goldens")
    try:
        for lane in store.lanes() if old else ():
            for case, place in ((c, p) for c in store.names(lane) for p in store.places(lane, c)):
                folder = store.path(lane, case, place)
                with contextlib.suppress(DamagedFileError):  # the gate itself says so
                    recorded = store.head(lane, case, place)["files"]
                    for name in layout.FILES:
                        path = folder / layout.staged_name(name, recorded.get(name))
                        if not path.exists() and (folder / name).exists():
                            path.hardlink_to(folder / name)
                            made.append(path)
        yield
    finally:
        for path in made:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def checked_out(root: Path, revision: str, names: Sequence[str]) -> Iterator[Path]:
    """A temporary folder with what a revision has at its root of these; absent ones are left out.

    Raises:
        RepositoryError: there is no such revision.
    """
    try:
        commit = git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip()
    except RepositoryError as error:
        raise RepositoryError(f"{revision}: not a revision of {root}") from error
    present = git(root, "ls-tree", "--name-only", commit).splitlines()
    wanted = [name for name in names if name in present]
    with tempfile.TemporaryDirectory(prefix="golden-base-") as folder:
        if wanted:
            packed = subprocess.run(
                ["git", "-C", str(root), "archive", commit, *wanted],
                capture_output=True,
                check=True,
            )
            with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
                archive.extractall(folder, filter="data")
        yield Path(folder)
