"""Choosing cases by changed paths, against this repository's real layout."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from select_cases import select

from validation.cases import Case, discover_cases
from validation.running.reach import DEFAULT_RULES, Reach, files_used, reach_of, rules_of, source_of
from validation.running.source import find_root, git
from validation.running.tree import Tree

CASES = list(discover_cases(find_root(Path(__file__).parent)).values())


def chosen(repository: Path, *changed: str, lane: str = "cpu") -> Collection[str]:
    """What a change of these files selects."""
    return select(changed, CASES, lane, [repository])


def names(lane: str) -> list[str]:
    """The lane's cases' names."""
    return [case.name for case in CASES if lane in case.lanes]


@pytest.mark.parametrize(
    "path",
    [
        "constraints.txt",
        "pyproject.toml",
        "validation/gate/check.py",
        "validation/compare/compare.py",
        "vpmoe/cases/__init__.py",
        "vpmoe/cases/faults/attention.py",
        "vpmoe/model/window.py",
        "vpmoe/model/config.py",
        "goldens/quarantine.json",
        "ci/select_cases.py",
        ".github/workflows/pre-merge.yml",
        "something/new.py",
        "vpmoe/new_file.py",
        "vpmoe/native.cu",
    ],
)
def test_what_reaches_everything_and_what_is_unknown_selects_all(
    repository: Path, path: str
) -> None:
    for lane in ("cpu", "h200"):
        assert chosen(repository, path, lane=lane) == names(lane)
        assert chosen(repository, "docs/golden.md", path, lane=lane) == names(lane)


def test_code_selects_the_cases_that_import_it(repository: Path) -> None:
    data = chosen(repository, "vpmoe/data/loss.py")
    assert "tiny_moe" in data
    assert "schedules" not in data
    report = chosen(repository, "vpmoe/optimizer/report.py")
    assert "schedules" in report
    assert not {"tiny_moe", "laws", "resume", "layout_dp"} & set(report)
    assert chosen(repository, "vpmoe/data/loss.py", lane="h200") == [
        "dev_moe",
        "wide_pair",
        "wide_fast",
    ]
    assert "kernels" in chosen(repository, "vpmoe/model/attention/triton_kernel.py", lane="h200")
    assert chosen(repository, "vpmoe/cases/kernels.py", lane="h200") == ["kernels"]


def test_a_preset_selects_the_cases_that_read_it(repository: Path) -> None:
    assert chosen(repository, "configs/vpmoe-6b.toml") == ["schedules", "formulas"]
    assert chosen(repository, "configs/vpmoe-6b.toml", lane="h200") == ["wide_pair", "wide_fast"]


def test_a_golden_selects_its_case_and_the_one_that_its_law_names(repository: Path) -> None:
    assert chosen(repository, "goldens/cpu/tiny_adam/golden.json") == ["tiny_adam"]
    assert set(chosen(repository, "goldens/cpu/resume/golden.json")) == {"tiny_moe", "resume"}


@pytest.mark.parametrize(
    "changed",
    [
        (),
        ("docs/golden.md", "README.md", "tests/test_config.py", "benchmarks/attention.py"),
        ("goldens/audit/20260101T000000-00000000.json",),
        ("goldens/h200/dev_moe/golden.json",),
        ("goldens/cpu/gone/golden.json",),
    ],
)
def test_something_is_always_selected(repository: Path, changed: tuple[str, ...]) -> None:
    assert len(chosen(repository, *changed)) == 1


def test_a_file_that_only_the_base_has_still_counts(repository: Path, tmp_path: Path) -> None:
    module = tmp_path / "vpmoe/optimizer/report.py"
    module.parent.mkdir(parents=True)
    module.write_text("import vpmoe.removed\n")
    (tmp_path / "vpmoe/removed.py").write_text("")
    (tmp_path / "vpmoe/cases").mkdir(parents=True)
    target = tmp_path / "vpmoe/cases/schedules.py"
    target.write_text("from vpmoe.optimizer.report import routing_report\n")
    found = select(["vpmoe/removed.py"], CASES, "cpu", [repository, tmp_path])
    assert found == ["schedules"]


def test_relative_imports_are_followed(tmp_path: Path) -> None:
    package = tmp_path / "vpmoe" / "sub"
    package.mkdir(parents=True)
    (tmp_path / "vpmoe/__init__.py").write_text("")
    (package / "__init__.py").write_text("from .deep import thing\n")
    (package / "deep.py").write_text("from ..other import x\nfrom . import same\n")
    (package / "same.py").write_text("")
    (tmp_path / "vpmoe/other.py").write_text("")
    case = Case(name="one", description="", lanes=["cpu"], target="vpmoe.sub:run")
    assert files_used(case, Tree(tmp_path), DEFAULT_RULES) == {
        "vpmoe/__init__.py",
        "vpmoe/sub/__init__.py",
        "vpmoe/sub/deep.py",
        "vpmoe/sub/same.py",
        "vpmoe/other.py",
    }


def test_each_rule_is_of_a_file_that_there_is(repository: Path) -> None:
    files = [
        *git(repository, "ls-files").split("\n"),
        "goldens/audit/x",
        "goldens/cpu/a/golden.json",
    ]
    rules, tree = rules_of(repository), Tree(repository)
    for pattern, _ in rules[: len(rules) - len(DEFAULT_RULES)]:
        assert any(fnmatchcase(path, pattern) for path in files), pattern
    code = [path for path in files if path.startswith("vpmoe/") and path.endswith(".py")]
    code = [path for path in code if not path.startswith("vpmoe/cases/")]
    assert {reach_of(path, rules) for path in code} == {Reach.USERS}
    used = set().union(*(files_used(case, tree, rules) for case in CASES))
    tools = {path for path in code if path not in used}
    assert all(
        "cli" in path
        or path.endswith(("display.py", "progress.py", "params.py"))
        or path in ("vpmoe/megatron/__main__.py", "vpmoe/megatron/document.py")
        for path in tools
    ), tools


def test_the_gate_is_no_part_of_a_run(repository: Path) -> None:
    tree, rules = Tree(repository), rules_of(repository)
    for case in CASES:
        source = source_of(case, tree, rules)
        assert "validation/running/worker.py" in source
        assert "validation/running/recorder.py" in source
        left_out = ("docs/", "tests/", "goldens/", "benchmarks/", "ci/", ".github/", "README.md")
        judges = ("validation/report/", "validation/cli/", "vpmoe/cases/faults/")
        others = ("pyproject.toml", "tox.ini", "constraints.txt", "vpmoe/cases/__init__")
        assert not [n for n in source if n.startswith((*left_out, *judges, *others))]


def test_the_bases_rules_hold(repository: Path, tmp_path: Path) -> None:
    head = tmp_path / "head"
    head.mkdir()
    (head / "pyproject.toml").write_text('[tool.golden.reach]\n"*" = "nothing"\n')
    trees = [head, repository]
    assert select(["vpmoe/native.cu"], CASES, "cpu", trees) == names("cpu")
