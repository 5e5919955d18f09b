"""A machine that runs the job scripts, with stubs of the commands that they call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CI = Path(__file__).resolve().parents[2] / "ci"


@dataclass(frozen=True)
class Done:
    """What a script left."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Runner:
    """A machine with `golden` on its PATH, and a clone of a project."""

    project: Any
    tools: Path

    def install(self, name: str, text: str) -> None:
        """Puts a command on the PATH."""
        path = self.tools / name
        path.write_text(text)
        path.chmod(0o755)

    def run(self, script: str, *words: str, **variables: str) -> Done:
        """Runs a job script in the clone."""
        environment = self.project.environment(**variables)
        environment["PATH"] = os.pathsep.join([str(self.tools), "/usr/bin", "/bin"])
        done = subprocess.run(
            ["bash", str(CI / "jobs" / script), *words],
            cwd=self.project.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def verdict(self, folder: str) -> Any:
        """The JSON in a folder of the clone."""
        return json.loads((self.project.root / folder / "verdict.json").read_text())


def recorded(runner: Runner) -> Sequence[Sequence[str]]:
    """The words of each call of the stub."""
    log = runner.tools / "calls"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


STUB = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
with (here / "calls").open("a") as log:
    log.write(json.dumps([*sys.argv[1:], "GATE=" + os.environ["PYTHONPATH"].split(":")[0]]) + "\\n")
answer = here / ("answer-" + sys.argv[1])
if answer.exists():
    code, _, text = answer.read_text().partition(" ")
    print(text, end="")
    sys.exit(int(code))
"""
# Python itself, whose judges are the stub.
JUDGE_STUB = f"""#!{sys.executable}
import os, sys
from pathlib import Path
stub = Path(__file__).with_name("golden")
words = sys.argv[1:]
if words[:2] == ["-I", "-S"] and words[5:6] == ["validation.cli"]:
    os.execv(stub, [str(stub), *words[6:]])
os.execv(sys.executable, [sys.executable, *words])
"""
VERDICT: dict[str, Any] = {
    "verdict": "FAIL",
    "lane": "cpu",
    "seconds": 3.0,
    "environment": {},
    "canary": {"fault": "wide_window", "caught": True},
    "cases": [
        {
            "case": "plain_seed",
            "verdict": "FAIL",
            "compared": 10,
            "identical": 5,
            "skipped_because": None,
            "seconds": 2.0,
            "first_divergence": None,
            "message": "1 of 10 records differ",
        }
    ],
}


def answer(runner: Runner, command: str, code: int, data: Any) -> None:
    """What the stub prints and exits with."""
    (runner.tools / f"answer-{command}").write_text(f"{code} {json.dumps(data)}")


def make_runner(project: Any, tools: Path) -> Runner:
    """A runner whose `golden` is the real one."""
    tools.mkdir()
    made = Runner(project, tools)
    made.install("golden", f'#!/bin/sh\nexec "{sys.executable}" -P -m validation.cli "$@"\n')
    made.install("python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    return made


_GH = f"""#!{sys.executable}
import json, sys
from pathlib import Path
here = Path(__file__).parent
words = sys.argv[1:]
with (here / "gh-calls").open("a") as log:
    log.write(json.dumps(words) + "\\n")
for answer in json.loads((here / "gh-answers").read_text()):
    if all(any(word in given for given in words) for word in answer["to"]):
        print(answer["out"], end="")
        print(answer["err"], end="", file=sys.stderr)
        sys.exit(answer["code"])
"""


def install_gh(runner: Runner, *answers: tuple[str, str | int]) -> None:
    """Puts a `gh` on the PATH that writes down its calls.

    Args:
        runner: where.
        answers: words that a call must have, with spaces between them, and what it then prints, or
            the code with which it fails. The first that fits; other calls print nothing.
    """
    said = [
        {
            "to": words.split(),
            "out": out if isinstance(out, str) else "",
            "err": "" if isinstance(out, str) else "gh: refused\n",
            "code": out if isinstance(out, int) else 0,
        }
        for words, out in answers
    ]
    (runner.tools / "gh-answers").write_text(json.dumps(said))
    runner.install("gh", _GH)


def gh_calls(runner: Runner) -> list[list[str]]:
    """The words of each call of `gh`."""
    log = runner.tools / "gh-calls"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
