"""Runs the jobs of a workflow on this machine, as far as a machine without GitHub can.

Checkouts are clones of a bare remote, artifacts are folders, expressions are evaluated, and each
step's script runs with the variables and the working directory that the workflow gives it. Tokens,
environments, runners and what actions do on GitHub are not there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

_EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
_TOKENS = re.compile(
    r"\s*(?:('(?:[^']|'')*')|(&&|\|\||==|!=|!|\(|\)|,)|([A-Za-z_][\w-]*(?:\.[\w-]+)*))"
)
_WORDS = {"&&": " and ", "||": " or ", "!": " not "}


@dataclass
class JobResult:
    """How a job ended.

    Attributes:
        result: success, failure or skipped.
        outputs: of the job.
        log: what its scripts printed.
    """

    result: str
    outputs: dict[str, str] = field(default_factory=dict)
    log: str = ""


@dataclass
class LocalActions:
    """A machine that runs jobs, each in a fresh workspace.

    Attributes:
        folder: of workspaces and artifacts.
        remote: bare repository that is checked out.
        environment: variables of every script, `PATH` among them.
        github: the context `github`.
        contexts: `inputs`, `vars` and `secrets`.
    """

    folder: Path
    remote: Path
    environment: Mapping[str, str]
    github: dict[str, Any]
    contexts: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, JobResult] = field(default_factory=dict)

    def run(self, workflow: Path, *names: str, **matrix: str) -> JobResult:
        """Runs a job after those that it needs have run; without a name, every job in order."""
        jobs = yaml.safe_load(workflow.read_text())["jobs"]
        done = JobResult("skipped")
        for name in names or jobs:
            done = self.jobs[name] = self._job(jobs[name], matrix)
        return done

    def artifact(self, name: str) -> Path:
        """Where an artifact is."""
        return self.folder / "artifacts" / name

    def _job(self, job: Any, matrix: Mapping[str, str]) -> JobResult:
        needs = job.get("needs", [])
        needs = [needs] if isinstance(needs, str) else needs
        before = {name: self.jobs[name] for name in needs}
        context = {
            "github": self.github,
            "needs": {n: {"result": j.result, "outputs": j.outputs} for n, j in before.items()},
            "matrix": matrix,
            "steps": {},
            **self.contexts,
        }
        good = all(job.result == "success" for job in before.values())
        if not _holds(job.get("if"), context, good):
            return JobResult("skipped")
        workspace = self.folder / f"workspace-{len(list(self.folder.glob('workspace-*')))}"
        workspace.mkdir(parents=True)
        self.github["workspace"] = str(workspace)
        result = JobResult("success")
        for step in job["steps"]:
            if not _holds(step.get("if"), context, result.result == "success"):
                continue
            outputs, ok = self._step(step, workspace, context, result)
            if "id" in step:
                context["steps"][step["id"]] = {"outputs": outputs}
            if not ok and not step.get("continue-on-error"):
                result.result = "failure"
        result.outputs = {n: _filled(v, context) for n, v in job.get("outputs", {}).items()}
        return result

    def _step(
        self, step: Any, workspace: Path, context: Any, result: JobResult
    ) -> tuple[dict[str, str], bool]:
        """Outputs of a step, and whether it succeeded."""
        given = {name: _filled(value, context) for name, value in step.get("with", {}).items()}
        if "run" in step:
            return self._script(step, workspace, context, result)
        action = step["uses"].partition("@")[0]
        if action == "actions/checkout":
            place = workspace / given.get("path", ".")
            subprocess.run(["git", "clone", "-q", self.remote, place], check=True)
            git = ["git", "-C", place]
            revision = given.get("ref") or self.github["sha"]
            subprocess.run([*git, "checkout", "-q", revision], check=True)
            commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
            return {"commit": commit}, True
        if action == "actions/upload-artifact":
            return {}, self._upload(given, workspace)
        if action == "actions/download-artifact":
            return {}, self._download(given, workspace)
        assert action in ("actions/setup-python", "actions/attest-build-provenance"), action
        return {}, True

    def _script(
        self, step: Any, workspace: Path, context: Any, result: JobResult
    ) -> tuple[dict[str, str], bool]:
        outputs = workspace.with_name(workspace.name + "-outputs")
        outputs.write_text("")
        variables = {name: _filled(value, context) for name, value in step.get("env", {}).items()}
        done = subprocess.run(
            ["bash", "-e", "-c", step["run"]],
            cwd=workspace / step.get("working-directory", "."),
            env={
                **self.environment,
                "GITHUB_REPOSITORY": self.github["repository"],
                "GITHUB_SERVER_URL": self.github["server_url"],
                "GITHUB_RUN_ID": self.github["run_id"],
                "GITHUB_WORKSPACE": str(workspace),
                "GITHUB_OUTPUT": str(outputs),
                "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        result.log += done.stdout
        pairs = (line.partition("=") for line in outputs.read_text().splitlines())
        return {name: value for name, _, value in pairs}, done.returncode == 0

    def _upload(self, given: Mapping[str, str], workspace: Path) -> bool:
        patterns = given["path"].split()
        fixed = [Path(*takewhile(lambda p: "*" not in p, Path(p).parts)) for p in patterns]
        bases = [p.parent if (workspace / p).is_file() else p for p in fixed]
        root = workspace / (os.path.commonpath(bases) if len(bases) > 1 else bases[0])
        files = [
            path
            for pattern in patterns
            for found in workspace.glob(pattern.rstrip("/"))
            for path in (found.rglob("*") if found.is_dir() else [found])
            if path.is_file()
        ]
        for path in files:
            target = self.artifact(given["name"]) / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        return bool(files) or given.get("if-no-files-found") != "error"

    def _download(self, given: Mapping[str, str], workspace: Path) -> bool:
        pattern = given.get("name") or given["pattern"]
        found = sorted((self.folder / "artifacts").glob(pattern))
        for artifact in found:
            shutil.copytree(artifact, workspace / given["path"], dirs_exist_ok=True)
        return bool(found)


def _holds(condition: Any, context: Mapping[str, Any], good: bool) -> bool:
    """Whether a job or a step runs; without a word on failures, after successes only."""
    if condition is None:
        return good
    text = re.sub(r"^\$\{\{(.*)\}\}$", r"\1", str(condition).strip(), flags=re.DOTALL)
    return (good or "always()" in text or "cancelled()" in text) and bool(_value(text, context))


def _filled(value: Any, context: Mapping[str, Any]) -> str:
    """A text with its expressions evaluated."""
    if isinstance(value, bool):
        return str(value).lower()
    return _EXPRESSION.sub(lambda found: str(_value(found[1], context)), str(value))


def _value(expression: str, context: Mapping[str, Any]) -> Any:
    code, at = "", 0
    text = expression.strip()
    while at < len(text):
        token = _TOKENS.match(text, at)
        assert token is not None, f"no expression that this runner knows: {expression}"
        quoted, mark, name = token.groups()
        at = token.end()
        if quoted:
            code += repr(quoted[1:-1].replace("''", "'"))
        elif mark:
            code += _WORDS.get(mark, mark)
        elif text[at : at + 1] == "(":
            code += f"functions[{name!r}]"
        else:
            code += f"look({name!r})"

    def look(name: str) -> Any:
        found: Any = context
        for part in name.split("."):
            found = found.get(part, "") if isinstance(found, Mapping) else ""
        return found

    functions = {
        "always": lambda: True,
        "cancelled": lambda: False,
        "format": lambda text, *words: text.format(*words),
        "fromJSON": json.loads,
    }
    return eval(code, {"functions": functions, "look": look})
