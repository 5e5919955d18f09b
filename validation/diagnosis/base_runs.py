"""Runs of a revision's code in its worktree, by a process of their own.

python -P -m validation.diagnosis.base_runs JOB.json      in the worktree
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from validation.cases import Case, discover_cases
from validation.compat import module_command
from validation.config import declaration_of, lane_of
from validation.files import decode_json, encode_json, read_file, write_atomically
from validation.progress import Progress
from validation.running.environment import gpu_count
from validation.running.execution import RunError, RunOptions, run_case
from validation.running.revisions import code_of, copied_gate, revision_path
from validation.running.warm import die_with_parent
from validation.trace import save_trace

_HEAD = "GOLDEN_AGAINST_HEAD"
_GUARD = "validation.diagnosis.base_runs:importing_this_tree"
_FROM_HEAD = ("settings", "processes", "traced_steps", "arithmetic", "timeout")
_TAIL = 12


@dataclass
class BaseRuns:
    """Runs of the base, each batch in a process of its own.

    Attributes:
        root: the head's repository.
        lane: of the runs.
        tree: the base's worktree.
        temporary: a folder for the copied gate and the jobs.
        log: appended with what the runs print.
        name: of the base, for messages.
        progress: told what happens.
        plant: put into every run besides the proof that the base's own code ran.
        environment: variables of the runs, put over the user's.
        settings: of the runs, put over each case's own.
        nonce: of the runs, see `validation.running.execution.RunOptions`.
        problems: of the last batch, by case: why it left no trace, or nothing.
        seconds: of the last batch, by case.
    """

    root: Path
    lane: str
    tree: Path
    temporary: Path
    log: Path
    name: str
    progress: Progress
    plant: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    nonce: int | None = None
    problems: dict[str, str] = field(init=False, default_factory=dict)
    seconds: dict[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.gate = copied_gate(self.temporary / "gate")

    def run(self, cases: Sequence[Case], output: Path) -> list[str]:
        """Runs cases as the base's code has them.

        Args:
            cases: the head's declarations; those that the base does not have are left out.
            output: receives a trace for each.

        Returns:
            Names of the cases that the base declares.

        Raises:
            RunError: the base's cases cannot be imported, or its process died.
        """
        job, answer = self.temporary / "job.json", self.temporary / "answer.json"
        answer.unlink(missing_ok=True)
        wanted = {case.name: {name: getattr(case, name) for name in _FROM_HEAD} for case in cases}
        document = {
            "lane": self.lane,
            "root": str(self.root),
            "cases": {name: _plain(given) for name, given in wanted.items()},
            "log": str(self.log),
            "output": str(output),
            "plant": self.plant,
            "environment": dict(self.environment),
            "settings": dict(self.settings),
            "nonce": self.nonce,
            "answer": str(answer),
        }
        write_atomically(job, encode_json(document))
        words = module_command("validation.diagnosis.base_runs", str(job))
        environment = {
            **os.environ,
            "PYTHONPATH": revision_path(self.root, self.tree, self.gate),
            "PYTHONDONTWRITEBYTECODE": "1",
            _HEAD: str(self.root),
        }
        self.log.touch()
        start = self.log.stat().st_size
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                words, cwd=self.tree, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                self.progress.message(f"{self.name}: {line.rstrip()}")
            process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode or not answer.exists():
            with self.log.open("rb") as log:
                log.seek(start)
                lines = log.read().decode(errors="replace").splitlines()[-_TAIL:]
            ended = f"its process ended with exit code {process.returncode}"
            raise RunError("\n".join([ended, *lines]))
        found = decode_json(read_file(answer), answer)
        self.problems = {name: str(why) for name, why in found["problems"].items()}
        self.seconds = {name: float(seconds) for name, seconds in found["seconds"].items()}
        return [str(name) for name in found["known"]]


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """A declaration's fields as JSON has them."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in given.items()}


# --- the base, in its worktree ---------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cases of a job in the working directory; returns 0."""
    (job_file,) = sys.argv[1:] if argv is None else argv
    die_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    job = decode_json(read_file(Path(job_file)), Path(job_file))
    tree, output = Path.cwd(), Path(job["output"])
    # A base from before repositories declared their cases gets today's declaration.
    every = discover_cases(tree, declaration_of(tree, Path(job["root"])))
    known = {name: case for name, case in every.items() if job["lane"] in case.lanes}
    problems, seconds = {}, {}
    gpus = gpu_count()
    for name in [name for name in job["cases"] if name in known]:
        # The base decides which function runs the case, the head decides what it runs.
        case = replace(known[name], **job["cases"][name])
        began = time.monotonic()
        print(name, flush=True)
        lacks = case.needs.missing(tree, gpus, lane_of(tree, job["lane"]))
        problems[name] = "" if lacks is None else f"it {lacks}"
        if lacks is None:
            options = RunOptions(
                lane=job["lane"],
                fault=[name for name in (_GUARD, job["plant"]) if name],
                environment=job["environment"],
                settings=job["settings"],
                nonce=job["nonce"],
            )
            try:
                save_trace(run_case(case, options, tree, Path(job["log"])), output / name)
            except RunError as error:
                problems[name] = str(error)
        seconds[name] = time.monotonic() - began
    answer = {"known": list(known), "problems": problems, "seconds": seconds}
    write_atomically(Path(job["answer"]), encode_json(answer))
    return 0


@contextlib.contextmanager
def importing_this_tree() -> Iterator[None]:
    """Refuses a run of the base that imported code of the head, or none of its own.

    An installed or editable package may come before the worktree; the comparison would then be of
    the head with itself.
    """
    head, tree = Path(os.environ[_HEAD]), Path.cwd()
    own = (tree.resolve(), Path(__file__).resolve().parents[1])
    yield
    strange = [p for p in code_of(head) if not any(p.is_relative_to(folder) for folder in own)]
    if strange:
        raise RuntimeError(
            f"this run of the base imported the working tree's code: {strange[0]}; make the "
            "package importable from the checkout, by PYTHONPATH or from its root"
        )
    if not code_of(tree):
        raise RuntimeError(
            "this run of the base imported no code of its checkout: an installed copy comes "
            "first; uninstall it, or put the checkout's folder on PYTHONPATH"
        )


if __name__ == "__main__":
    sys.exit(main())
