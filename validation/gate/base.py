"""`golden check --judge REV`: the base revision's gate judges this tree.

A change must not loosen its own judge. The judge is a process that sees the base's checkout and the
environment alone (`validation.gate.isolated`): comparator, cases, faults and declaration are the
base's. This tree's code runs in processes that the judge starts, in a sandbox where the machine has
one, under the base's recorder and beside the cases that the base declares inside of packages
(`validation.gate.overlay`). The accepted values are this tree's, which reviewers see; the
tolerances are the base's for every golden that it has.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from validation.compat import module_command
from validation.config import FILES, Declaration, declaration_of, search_path
from validation.config.python_path import python_path
from validation.files import DamagedFileError, write_atomically
from validation.gate.overlay import lay_declared_modules
from validation.gate.verdict import CaseResult, Verdict
from validation.goldens import layout
from validation.goldens.golden import Golden
from validation.goldens.store import GoldenStore, MissingGoldenError
from validation.running.revisions import base_checkout
from validation.running.source import RepositoryError, git

BASE = "GOLDEN_BASE"
"""Variable: the commit whose gate judges; in the environment, since older gates know no option."""

# What gates that read entry points were installed as.
_DISTRIBUTION = "vpmoe"


def with_base_tolerances(golden: Golden, base: GoldenStore | None) -> Golden:
    """Gives a golden the base's tolerances, if the base has any golden of its case.

    A golden of an environment that the base does not have gets those of the base's nearest.

    Args:
        golden: this tree's.
        base: the base's goldens; None leaves the golden as it is.

    Returns:
        The golden to compare with.

    Raises:
        DamagedFileError: the base's golden is damaged.
    """
    judging = golden_of_base(golden, base)
    return golden if judging is None else replace(golden, tolerances=judging.tolerances)


def golden_of_base(golden: Golden, base: GoldenStore | None) -> Golden | None:
    """Loads the golden whose tolerances judge.

    Args:
        golden: this tree's.
        base: the base's goldens; None without a judge.

    Returns:
        The base's golden; None without a judge, or where the base has none of the case.

    Raises:
        DamagedFileError: it is damaged.
    """
    if base is None:
        return None
    try:
        return base.nearest(golden.lane, golden.case, golden.environment)
    except MissingGoldenError:
        return None


def sources_of(root: Path, judge: Path | None) -> Path:
    """Chooses the checkout whose cases, faults and declaration count.

    Args:
        root: this tree.
        judge: `goldens/` in a checkout of the base; None without a judge.

    Returns:
        The base's checkout, or this tree without a judge.
    """
    return root if judge is None else judge.parent


def judged_declaration(root: Path, judge: Path | None) -> Declaration:
    """Reads what says which modules have the cases, and which lanes there are.

    Args:
        root: this tree.
        judge: `goldens/` of the base, beside its `pyproject.toml`; None without a judge.

    Returns:
        The base's declaration, or this tree's where the base has none.

    Raises:
        CaseError: there is no declaration, or a wrong one.
    """
    # A base from before there were declarations is judged by this tree's.
    return declaration_of(*([] if judge is None else [judge.parent]), root)


def vanished_cases(base: GoldenStore, lane: str, declared: Collection[str]) -> list[CaseResult]:
    """An INVALID result for every golden of the base whose case is not declared any more."""
    return [
        CaseResult(
            name,
            Verdict.INVALID,
            message=f"the base has a golden of {lane}/{name}, and no case of that name is left",
        )
        for name in base.names(lane)
        if name not in declared
    ]


def check_with_base(root: Path, revision: str, words: Sequence[str]) -> int:
    """Runs `golden check` as it was at a revision, on this tree.

    Args:
        root: the repository.
        revision: the base.
        words: of `golden check`, without `--judge`.

    Returns:
        Its exit status.

    Raises:
        RepositoryError: there is no such revision.
    """
    with (
        base_checkout(root, revision, "--judge") as (base, commit),
        tempfile.TemporaryDirectory(prefix="golden-overlay-") as name,
    ):
        gate, overlay = Path(name, "gate"), Path(name, "cases")
        gate.mkdir()
        overlay.mkdir()
        # Where the base has no gate of its own, the installed one judges by the base's goldens.
        own = base / GATE if (base / GATE).is_dir() else Path(__file__).parents[1]
        shutil.copytree(own, gate / GATE, ignore=shutil.ignore_patterns("__pycache__"))
        for file in FILES:
            if (base / file).exists():
                shutil.copy(base / file, overlay / file)
        lay_declared_modules(root, commit, overlay)
        starter = own / STARTER
        if not starter.exists():
            return _check_with_old_gate(root, gate, overlay, base, words)
        command = [sys.executable, "-I", "-S", str(starter), str(root), str(base)]
        command += ["validation.cli", "check", *words, "--judged-by", str(base / "goldens")]
        environment = {
            **_above_head(root, overlay, gate),
            OVERLAY: str(overlay),
            BASE: commit,
        }
        done = subprocess.run(command, cwd=root, env=environment, check=False)
    return done.returncode


GATE = "validation"
STARTER = "gate/isolated.py"
"""Of the harness: what starts a judge's programs."""
OVERLAY = "GOLDEN_OVERLAY"
"""Variable that tells a judge the folder of the base's modules that its runs find first."""


def _above_head(root: Path, *folders: Path) -> dict[str, str]:
    """Variables of the judge, whose runs find these folders ahead of the checkout."""
    ahead = os.pathsep.join(filter(None, (*map(str, folders), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": python_path(ahead, search_path(root))}


def _check_with_old_gate(
    root: Path, gate: Path, overlay: Path, base: Path, words: Sequence[str]
) -> int:
    """Judges by a gate from before judges had a world of their own; it imports this tree's code."""
    for folder in (base / "goldens", gate / GATE):
        if folder.is_dir():
            shutil.copytree(folder, overlay / folder.name, dirs_exist_ok=True)
    _declare_to_old_gate(root, overlay)
    command = [*module_command("validation.cli"), "check", *words]
    command += ["--judged-by", str(overlay / "goldens")]
    environment = _above_head(root, overlay)
    with _names_for_old_gate(root, overlay):
        return subprocess.run(command, cwd=root, env=environment, check=False).returncode


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
    """Exports parts of a revision into a temporary folder.

    Args:
        root: the repository.
        revision: what to export.
        names: files and folders of the root; those that the revision does not have are left out.

    Yields:
        The folder.

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
