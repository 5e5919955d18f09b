"""Digests of what matters: what a case's source is, in a repository that the harness is not in."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from validation.cases import Case, CaseError, Invariant
from validation.cases.difference import what_differs
from validation.running.reach import case_source_digest, rules_of
from validation.running.source import listed_files, tree_digest

FILES = {
    "README.md": "A trainer.\n",
    "docs/guide.md": "How to train.\n",
    "tests/test_train.py": "def test(): pass\n",
    ".github/workflows/check.yml": "on: push\n",
    "benchmarks/speed.py": "print(1)\n",
    "pyproject.toml": '[tool.golden]\ncases = ["cases"]\n[tool.golden.reach]\n"data/*" = "users"\n',
    "cases.py": 'CASES = ["adapters.loop:run", "trainer.unused:run"]\n',
    "adapters/__init__.py": "",
    "adapters/loop.py": "def run(recorder, settings):\n    from trainer.loop import train\n",
    "src/trainer/__init__.py": "",
    "src/trainer/loop.py": "from . import model\nfrom helpers import clip\n",
    "src/trainer/model.py": "from importlib import import_module\n"
    'layer = import_module("trainer.layer")\n'
    'norm = import_module(".norm", __package__)\n'
    'kernel = import_module(f"trainer.kernels.{1}")\n'
    'words = open("data/words.txt")\n',
    "src/trainer/layer.py": "SIZE = 1\n",
    "src/trainer/norm.py": "EPS = 1\n",
    "src/trainer/kernels/fast.py": "FAST = 1\n",
    "src/trainer/unused.py": "def run(): pass\n",
    "src/trainer/kernel.cpp": "int main() { return 0; }\n",
    "libraries/one/helpers/__init__.py": "from helpers.clipping import clip\n",
    "libraries/one/helpers/clipping.py": "def clip(): pass\n",
    "data/rows.jsonl": "{}\n",
    "data/more/a.jsonl": "{}\n",
    "data/words.txt": "a\n",
    "data/unused.jsonl": "{}\n",
}
CASE = Case(
    name="one",
    description="",
    lanes=["cpu"],
    target="adapters.loop:run",
    settings={"rows": "data/rows.jsonl", "nested": [{"folder": "data/more"}]},
    traced_steps=[1],
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with a package under src/, an adapter and data."""
    root = tmp_path / "project"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    subprocess.run(["git", "-C", str(root), "add", "-A"], check=True)
    return root


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/guide.md",
        "tests/test_train.py",
        ".github/workflows/check.yml",
        "benchmarks/speed.py",
        "cases.py",
        "src/trainer/unused.py",
        "data/unused.jsonl",
        "goldens/cpu/one/golden.json",
        "goldens/audit/a.json",
        "runs/a/trace.json",
        "reports/a.html",
        "mlruns/a",
        "src/trainer/__pycache__/loop.pyc",
        "src/trainer/new.py",
        "LICENSE",
        "constraints.txt",
    ],
)
def test_what_a_case_cannot_reach_is_no_source(project: Path, name: str) -> None:
    before = case_source_digest(CASE, project)
    path = project / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.read_text() + "# edited\n" if path.exists() else "new\n")
    assert case_source_digest(CASE, project) == before
    path.unlink()
    assert case_source_digest(CASE, project) == before


@pytest.mark.parametrize(
    "name",
    [
        "adapters/loop.py",
        "src/trainer/loop.py",
        "src/trainer/model.py",
        "src/trainer/layer.py",
        "src/trainer/norm.py",
        "src/trainer/kernels/fast.py",
        "src/trainer/kernel.cpp",
        "libraries/one/helpers/clipping.py",
        "data/rows.jsonl",
        "data/more/a.jsonl",
        "data/words.txt",
    ],
)
def test_what_a_case_reaches_is(project: Path, name: str) -> None:
    before = case_source_digest(CASE, project)
    path = project / name
    content = path.read_text()
    path.write_text(content + "# edited\n")
    edited = case_source_digest(CASE, project)
    path.unlink()
    assert len({before, edited, case_source_digest(CASE, project)}) == 3
    path.write_text(content)
    assert case_source_digest(CASE, project) == before


@pytest.mark.parametrize("name", ["src/trainer/kernels/new.py", "src/trainer/new.cu", "setup.py"])
def test_a_new_file_that_the_case_reaches_counts_untracked(project: Path, name: str) -> None:
    before = case_source_digest(CASE, project)
    (project / name).write_text("NEW = 1\n")
    assert case_source_digest(CASE, project) != before
    (project / ".git/info/exclude").write_text(f"{name}\n")
    assert case_source_digest(CASE, project) == before


def test_a_moved_adapter_is_the_same_source_and_case(project: Path) -> None:
    before = case_source_digest(CASE, project)
    (project / "golden").mkdir()
    (project / "golden/__init__.py").write_text("\n")
    (project / "adapters/loop.py").rename(project / "golden/watch.py")
    moved = replace(CASE, target="golden.watch:run")
    assert case_source_digest(moved, project) == before
    assert moved.digest == CASE.digest
    assert case_source_digest(replace(moved, target="golden.watch:other"), project) != before


def test_a_target_from_elsewhere_makes_all_code_source(project: Path) -> None:
    case = replace(CASE, target="installed.adapter:run")
    before = case_source_digest(case, project)
    (project / "README.md").write_text("edited\n")
    assert case_source_digest(case, project) == before
    (project / "src/trainer/unused.py").write_text("def run(): return 1\n")
    assert case_source_digest(case, project) != before


def test_a_fixture_under_tests_counts_where_a_case_names_it(project: Path) -> None:
    case = replace(CASE, settings={"rows": "tests/rows.jsonl"})
    (project / "tests/rows.jsonl").write_text("{}\n")
    before = case_source_digest(case, project)
    (project / "tests/rows.jsonl").write_text("{} \n")
    assert case_source_digest(case, project) != before


def test_the_commit_of_a_submodule_counts(project: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(project / "third")]
    (project / "third").mkdir()
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    subprocess.run(["git", "-C", str(project), "add", "third"], check=True, capture_output=True)
    before = case_source_digest(CASE, project), tree_digest(project)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "two"], check=True)
    after = case_source_digest(CASE, project), tree_digest(project)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_what_the_harness_leaves_is_never_listed(project: Path) -> None:
    before = listed_files(project)
    for name in ("runs/a", "mlruns/a", "reports/a", "src/trainer/__pycache__/a.pyc"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("left\n")
    assert listed_files(project) == before


@pytest.mark.parametrize("text", ['"data/*" = "all"', '"data/*" = 1'])
def test_an_unknown_reach_is_refused_by_file_and_key(project: Path, text: str) -> None:
    declared = f'[tool.golden]\ncases = ["cases"]\n[tool.golden.reach]\n{text}\n'
    (project / "pyproject.toml").write_text(declared)
    with pytest.raises(CaseError, match=r"pyproject\.toml: .*'data/\*' is nothing, users") as error:
        rules_of(project)
    assert "everything" in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": {"rows": "b", "more": 1}}, ": its settings differ (more, nested, rows)"),
        ({"processes": 2, "traced_steps": [2]}, ": its processes differ; its traced steps differ"),
        ({"arithmetic": "wide"}, ": its arithmetic differs"),
        (
            {"invariant": Invariant(reference="two", curves={"lm_loss": 0.0})},
            ": its invariant differs",
        ),
        ({"target": "elsewhere:run"}, ""),
    ],
)
def test_another_declaration_is_told_by_its_parts(change: dict[str, object], said: str) -> None:
    other = replace(CASE, **change)  # type: ignore[arg-type]
    assert what_differs(other, CASE.declared) == said
    assert (other.digest == CASE.digest) == (not said)
    before = {"settings": CASE.declared["settings"]}  # as older traces have it
    if "settings" not in change:
        assert "its settings are the same" in what_differs(other, before)
