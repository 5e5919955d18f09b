"""A second opinion on survivors: the unit tests that are nearest to the mutated file.

Nearest by imports: the test files that import or name it; where none does, those that import what
imports it, and so on. They must pass without the mutant.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from validation.config import search_path
from validation.mutation.mutants import Mutant
from validation.mutation.trial import planted_in
from validation.running.tree import Tree

_NO_TESTS = 5
_SECONDS = 900.0


@dataclass(frozen=True)
class UnitTests:
    """The unit tests of a checkout.

    Attributes:
        root: the checkout.
        log: receives what pytest prints.
    """

    root: Path
    log: Path
    _clean: dict[Sequence[str], int | None] = field(default_factory=dict)
    _running: threading.Lock = field(default_factory=threading.Lock)

    def kill(self, mutant: Mutant) -> tuple[bool | None, str]:
        """Whether the tests fail with a mutant; None, and why, where they cannot say."""
        with self._running:  # tests of one checkout may share files
            files = nearest_tests(self.root, mutant.name)
            if not files:
                return None, "no test reaches the file"
            if files not in self._clean:
                self._clean[files] = self._code(files, {})
            clean = self._clean[files]
            if clean != 0:
                why = "take too long" if clean is None else f"end with {clean}"
                return None, f"{len(files)} test file(s) {why} without a mutant: {files[0]}"
            with tempfile.TemporaryDirectory(prefix="golden-mutant-") as folder:
                code = self._code(files, planted_in(self.root, mutant, Path(folder)))
            return code not in (0, _NO_TESTS), ""

    def _code(self, files: Sequence[str], variables: dict[str, str]) -> int | None:
        """pytest's exit code; None where it had to be stopped."""
        environment = {**os.environ, **variables}
        given = environment.get("PYTHONPATH")
        path = [*filter(None, [given]), *search_path(self.root)]
        environment["PYTHONPATH"] = os.pathsep.join(path)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
        with self.log.open("ab") as log:
            try:
                return subprocess.run(
                    command,
                    cwd=self.root,
                    env=environment,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    timeout=_SECONDS,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                return None


def nearest_tests(root: Path, name: str) -> tuple[str, ...]:
    """The test files with the fewest imports between them and a file."""
    tree = Tree(root)
    users = defaultdict(set)
    for file in tree.names:
        if file.endswith(".py"):
            for mentioned in tree.mentioned(file):
                users[mentioned].add(file)
    seen, level = {name}, {name}
    while level:
        level = {user for file in level for user in users[file]} - seen
        seen |= level
        tests = sorted(file for file in level if _is_test(file))
        if tests:
            return tuple(tests)
    return ()


def _is_test(name: str) -> bool:
    file = PurePosixPath(name).name
    return file.startswith("test_") or file.endswith("_test.py")
