"""What one process executes of the gated files: coverage.py, started before anything is imported.

As an instrument (`validation.running.instruments`) this file measures the warm parent, whose
imports every run inherits, and each Python program that a case starts. `measuring()` measures a
run, and the processes that it forks. Each leaves data files in the folder of its case:

    imported.*   what the parent had executed when the run was forked from it
    ran.*        what the run executed itself, and the processes that it started

It imports nothing of the harness, see there.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage

FILES = "GOLDEN_COVERAGE_FILES"
"""Variable: a file with a JSON list of the files to measure."""
FOLDER = "GOLDEN_COVERAGE_FOLDER"
"""Variable: where a process that a run started leaves its data; the warm parent has none."""
IMPORTED, RAN = "imported", "ran"


def begin() -> None:
    """Measures this process from its start on."""
    folder = os.environ.get(FOLDER)
    running = _started(folder)
    if folder is not None:
        atexit.register(_saved_at_exit, running, os.getpid())
        _follow_forks(folder)


@contextlib.contextmanager
def measuring(folder: Path) -> Iterator[None]:
    """Measures what is executed inside, and what the parent of this fork had executed before.

    Args:
        folder: receives the data; it exists.
    """
    # Forked from the warm parent, or a fresh process: either way `begin` has run.
    before = coverage.Coverage.current()
    assert before is not None
    before.stop()
    _keep(before.get_data(), folder)
    os.environ[FOLDER] = str(folder)
    running = _started(str(folder))
    _follow_forks(str(folder))
    try:
        yield
    finally:
        _saved(coverage.Coverage.current() or running)


def _started(folder: str | None) -> coverage.Coverage:
    """A measurement that has begun; in memory only where there is no folder for it."""
    running = coverage.Coverage(
        data_file=None if folder is None else str(Path(folder) / RAN),
        data_suffix=None if folder is None else True,  # of host, process and chance
        branch=True,
        include=json.loads(Path(os.environ[FILES]).read_bytes()),
        config_file=False,
        messages=False,
    )
    # Nothing of the gated files executed is no fault of a program that a case starts.
    running.set_option("run:disable_warnings", ["no-data-collected", "module-not-measured"])
    running.start()
    return running


def _saved(running: coverage.Coverage) -> None:
    running.stop()
    running.save()


def _saved_at_exit(running: coverage.Coverage, process: int) -> None:
    """Saves a measurement, but not in a fork that has inherited it."""
    if os.getpid() == process:
        _saved(running)


def _keep(imported: coverage.CoverageData, folder: Path) -> None:
    """Copies what lies in memory alone into a file."""
    kept = coverage.CoverageData(basename=str(folder / IMPORTED), suffix=str(os.getpid()))
    arcs = {name: imported.arcs(name) or [] for name in imported.measured_files()}
    kept.add_arcs(arcs)
    kept.write()


def _follow_forks(folder: str) -> None:
    """Measures each process that this one forks; they end by `os._exit` as a rule."""
    leave = os._exit

    def after_fork() -> None:
        inherited = coverage.Coverage.current()
        if inherited is not None:
            inherited.stop()
        running = _started(folder)

        def save_and_leave(status: int) -> Any:
            with contextlib.suppress(Exception):
                _saved(running)
            leave(status)

        os._exit = save_and_leave
        atexit.register(_saved_at_exit, running, os.getpid())

    os.register_at_fork(after_in_child=after_fork)
