"""`[tool.golden]`: what a repository declares, what is refused and how it is named."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from validation.cases import CaseError
from validation.config import Lane, declaration_of, read_declaration
from validation.running.environment import default_lane

WHOLE = """\
[tool.golden]
cases = ["one", "a.two"]
faults = ["three"]
packages = ["shared"]
[tool.golden.lanes.a100]
gpus = 1
capability = ["8.0", "8.6"]
modules = ["triton"]
[tool.golden.lanes.arm]
gpus = 0
"""


def declare(folder: Path, text: str, name: str = "pyproject.toml") -> Path:
    (folder / name).write_text(text)
    return folder


def test_both_files_say_the_same(tmp_path: Path) -> None:
    for name, text in (
        ("pyproject.toml", WHOLE),
        ("golden.toml", WHOLE.replace("[tool.golden]\n", "").replace("tool.golden.", "")),
    ):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        found = declaration_of(declare(folder, text, name))
        assert found.file == folder / name
        assert (found.cases, found.faults) == (("one", "a.two"), ("three",))
        assert found.packages == ("shared",)
        assert found.lanes == {
            "cpu": Lane(name="cpu"),
            "a100": Lane(name="a100", gpus=1, capabilities=("8.0", "8.6"), modules=("triton",)),
            "arm": Lane(name="arm"),
        }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tool.golden]\ncase = ['a']", "tool.golden: there is no key 'case'; keys are cases,"),
        ("[tool.golden]\ncases = 'a'", "tool.golden.cases: a list of text, not 'a'"),
        ("[tool.golden]\ncases = [1]", r"tool.golden.cases: a list of text, not \[1\]"),
        ("[tool.golden]\ncases = ['a.py']\nfaults = ['a/b']", "faults: 'a/b' is no module"),
        ("[tool.golden]\ncases = ['a', 'a']", "tool.golden.cases: has 'a' twice"),
        ("[tool.golden]\nfaults = ['a']", r"tool.golden names no case: write\n.*cases = \["),
        ("[tool]\ngolden = 3", "tool.golden: a table, not 3"),
        ("[tool.golden", "cannot be read: "),
        ("[tool.golden]\ncases = ['a']\nlanes = ['x']", "tool.golden.lanes: a table of lanes"),
        ("[tool.golden]\ncases = ['a']\n[tool.golden.lanes.x]", "lanes.x.gpus is missing: the"),
        ("[tool.golden]\ncases = ['a']\nlanes.x.gpus = true", "lanes.x.gpus is True"),
        ("[tool.golden]\ncases = ['a']\nlanes.x.gpus = -1", "lanes.x.gpus is -1"),
        ("[tool.golden]\ncases = ['a']\nlanes.x.gpus = 1.0", "lanes.x.gpus is 1.0"),
        ("[tool.golden]\ncases = ['a']\nlanes.x.gpu = 1", "lanes.x: there is no key 'gpu'"),
        ("[tool.golden]\ncases = ['a']\nlanes.cpu.gpus = 1", "the lane cpu uses no GPU"),
        ("[tool.golden]\ncases = ['a']\nlanes.audit.gpus = 1", "lanes.audit: a lane's name"),
        ("[tool.golden]\ncases = ['a']\nlanes.'a/b'.gpus = 1", "lanes.a/b: a lane's name"),
        (
            "[tool.golden]\ncases = ['a']\nlanes.x = {gpus = 1, capability = ['9']}",
            "lanes.x.capability: '9' is no capability",
        ),
        (
            "[tool.golden]\ncases = ['a']\nlanes.x = {gpus = 0, capability = ['9.0']}",
            "lanes.x.capability: is a GPU's",
        ),
        (
            "[tool.golden]\ncases = ['a']\nlanes.x = {gpus = 1, modules = 'triton'}",
            "lanes.x.modules: a list of text",
        ),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(CaseError, match=f"(?s)^{tmp_path}/pyproject.toml: .*{says}"):
        read_declaration(declare(tmp_path, text))


def test_two_declarations_are_refused_and_an_empty_one_is_none(tmp_path: Path) -> None:
    declare(tmp_path, WHOLE)
    declare(tmp_path, "# nothing yet\n", "golden.toml")
    assert declaration_of(tmp_path).file.name == "pyproject.toml"
    declare(tmp_path, "cases = ['one']\n", "golden.toml")
    with pytest.raises(CaseError, match=r"pyproject\.toml .* and .*golden\.toml both declare"):
        declaration_of(tmp_path)


def test_the_first_folder_that_declares_decides(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    declare(old, "[project]\nname = 'x'\n")
    declare(new, WHOLE)
    assert declaration_of(old, new).file.parent == new
    declare(old, "[tool.golden]\ncases = ['then']\n")
    assert declaration_of(old, new).cases == ("then",)
    with pytest.raises(CaseError, match=r"declares no cases; write into pyproject\.toml"):
        declaration_of(tmp_path)


@given(st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.integers(0, 8)), st.integers(0, 8))
def test_a_machine_is_the_largest_lane_that_it_can_serve(lanes: dict[str, int], gpus: int) -> None:
    needs = {name: Lane(name=name, gpus=n) for name, n in lanes.items()}
    chosen = default_lane(needs, gpus)
    served = [n for n in lanes.values() if n <= gpus]
    assert lanes.get(chosen, None if not served else -1) == max(served, default=None)
    assert chosen in lanes or chosen == "cpu"


# --- by the commands, in a repository of its own ---------------------------------------------


def redeclare(project: Any, old: str, new: str) -> None:
    project.edit(old, new, "pyproject.toml")


def refusal(project: Any, *words: str) -> str:
    """What a command says when it refuses."""
    answer = project.golden(*words)
    assert answer.code == 2, answer.err
    assert "Traceback" not in answer.err
    return str(answer.err)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('cases = ["plain', 'cases = ["plane', "cases: 'plane_cases' cannot be imported: there"),
        (
            'cases = ["plain_cases',
            'cases = ["broken',
            "'broken' cannot be imported: ValueError: no",
        ),
        ('cases = ["plain_cases', 'cases = ["plain_loop', "plain_loop: has no CASES"),
        ("lanes.h200", "lanes.a100", "case plain_seed: lane 'h200' is not declared; lanes are cpu"),
        (
            "\n\n[",
            '\npackages = ["mine"]\n\n[',
            "packages: no installed package has an entry point",
        ),
        ("tool.golden", "tool.other", "declares no cases; write into pyproject.toml"),
    ],
)
def test_every_command_refuses_what_is_declared_wrongly(
    plain_project: Any, old: str, new: str, says: str
) -> None:
    (plain_project.root / "broken.py").write_text("raise ValueError('no')\n")
    plain_project.edit(
        'settings={"steps": 4', 'lanes=["h200"], settings={"steps": 4', "plain_cases.py"
    )
    text = (plain_project.root / "plain_cases.py").read_text()
    head, tail = text.split('name="plain_seed"')
    tail = tail.replace('lanes=["cpu"],\n', "", 1)
    (plain_project.root / "plain_cases.py").write_text(f'{head}name="plain_seed"{tail}')
    redeclare(plain_project, old, new)
    for words in (("list",), ("check",), ("health",)):
        assert says in refusal(plain_project, *words)


def test_faults_are_refused_like_cases(plain_project: Any) -> None:
    redeclare(plain_project, 'faults = ["plain_cases"]', 'faults = ["plain_loop"]')
    assert "faults: plain_loop: has no FAULTS" in refusal(plain_project, "health")


def test_a_lane_that_is_not_declared_is_refused(golden_project: Any) -> None:
    for words in (
        ("check", "--lane", "tpu"),
        ("calibrate", "--lane", "tpu"),
        ("update", "--reason", "x", "--lane", "tpu"),
        ("faults", "--lane", "tpu"),
        ("rebase", "--lane", "tpu"),
        ("diff", "plain_seed", "--lane", "tpu"),
        ("bench", "--trend", "--lane", "tpu"),
    ):
        assert "--lane tpu: lanes are cpu, h200; " in refusal(golden_project, *words)


def test_help_needs_no_repository(plain_project: Any, tmp_path: Path) -> None:
    for words in (("--help",), ("check", "--help"), ("bench", "--help")):
        assert plain_project.golden(*words, cwd=tmp_path).code == 0


def test_nothing_of_another_package_shows_unless_it_is_named(golden_project: Any) -> None:
    """The environment has vpMoE installed; `site` is another package that shares cases."""
    site = golden_project.root.parent / "site"
    info = site / "sharing-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sharing\nVersion: 1\n")
    groups = (
        "[validation.cases]\nshared = shared_cases\n[validation.faults]\nshared = shared_cases\n"
    )
    (info / "entry_points.txt").write_text(groups)
    text = (golden_project.root / "plain_cases.py").read_text()
    for name in ("plain_loss", "plain_seed", "wide_window", "halved_gradient", "einsum_attention"):
        text = text.replace(f'"{name}"', f'"shared_{name}"')
    (site / "shared_cases.py").write_text(text)
    path = f"{site}:{golden_project.environment()['PYTHONPATH']}"

    def cases() -> list[str]:
        listed = golden_project.golden("list", "--json", PYTHONPATH=path).json()["cases"]
        return sorted(row["case"] for row in listed)

    def faults() -> str:
        done = golden_project.golden("faults", "--only", "none", PYTHONPATH=path)
        return str(done.err.rpartition("faults: ")[2].strip())

    assert cases() == ["plain_loss", "plain_seed"]
    assert faults() == "wide_window, halved_gradient"
    assert golden_project.golden("health", PYTHONPATH=path).out.strip() == "healthy"
    redeclare(golden_project, "\n\n[", '\npackages = ["shared"]\n\n[')
    assert cases() == ["plain_loss", "plain_seed", "shared_plain_loss", "shared_plain_seed"]
    assert faults().endswith("shared_wide_window, shared_halved_gradient")


def test_modules_may_lie_in_src_and_are_the_checkouts_own(golden_project: Any) -> None:
    """Ahead of an installed module of the same name, in the command and in its runs."""
    source = golden_project.root / "src"
    source.mkdir()
    for name in ("plain_cases.py", "plain_loop.py"):
        golden_project.git("mv", name, f"src/{name}")
    golden_project.commit("A src layout")
    answer = golden_project.golden("check", "plain_seed", "--json")
    assert answer.code == 0, answer.err
    assert answer.json()["cases"][0]["compared"] > 0


def test_the_base_declares_what_is_judged(golden_project: Any) -> None:
    """A change that drops a module is judged by the base's cases, and what it drops is INVALID."""
    other = golden_project.root / "few_cases.py"
    other.write_text("from plain_cases import CASES as ALL\n\nCASES = ALL[:1]\n")
    redeclare(golden_project, 'cases = ["plain_cases"]', 'cases = ["few_cases"]')
    assert [case["case"] for case in golden_project.golden("list", "--json").json()["cases"]] == [
        "plain_loss"
    ]
    judged = golden_project.golden("check", "--judge", "HEAD", "--json")
    assert {case["case"] for case in judged.json()["cases"]} == {"plain_loss", "plain_seed"}
    assert judged.code == 3, judged.err
    dropped = [case for case in judged.json()["cases"] if case["verdict"] == "INVALID"]
    assert [case["case"] for case in dropped] == ["plain_seed"]
    assert "no case of that name is left" in dropped[0]["message"]


def test_a_base_from_before_declarations_is_judged_by_the_heads(golden_project: Any) -> None:
    declared = (golden_project.root / "pyproject.toml").read_text()
    golden_project.git("rm", "-q", "pyproject.toml")
    before = golden_project.commit("Before there were declarations")
    (golden_project.root / "pyproject.toml").write_text(declared)
    golden_project.commit("Cases are declared")
    answer = golden_project.golden("check", "plain_seed", "--judge", before)
    assert answer.code == 0, answer.err
    golden_project.edit("WIDTH**-0.5", "WIDTH**-0.5 * 1.01")
    bad = golden_project.commit("A wrong scale")
    found = golden_project.golden("bisect", before, bad, "plain_loss")
    assert found.code == 0, found.err
    assert "A wrong scale" in found.out


def test_what_runs_leave_is_no_change_of_the_repository(golden_project: Any) -> None:
    """Not even where git ignores nothing: the tree stays clean and its digest the same."""
    golden_project.git("rm", "-q", ".gitignore")
    golden_project.commit("Nothing is ignored")
    from validation.running.source import dirty_files, tree_digest

    before = tree_digest(golden_project.root)
    answer = golden_project.golden("check", "plain_seed", PYTHONDONTWRITEBYTECODE="")
    assert answer.code == 0, answer.err
    assert list(golden_project.root.rglob("__pycache__"))
    assert "runs/" not in golden_project.git("status", "--porcelain")
    for folder in ("mlruns", "reports"):
        (golden_project.root / folder).mkdir()
        (golden_project.root / folder / "left").write_text("")
    assert dirty_files(golden_project.root) == []
    assert tree_digest(golden_project.root) == before
