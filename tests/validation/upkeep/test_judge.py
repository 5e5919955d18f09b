"""With `--judge REV` the base's gate judges: a change cannot loosen its own judge."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from validation.compare import Tolerances
from validation.goldens import Golden, GoldenStore
from validation.goldens.layout import FILES, HEAD, staged_name
from validation.trace import CurveKey, Trace


def loosen(project: Any, case: str, measured_as: Callable[..., Golden]) -> None:
    """Tolerances a thousand times too wide, as a careless or malicious change would have them."""
    store = GoldenStore(project.root / "goldens")
    golden = store.load("cpu", case)
    wide = {name: dict.fromkeys(steps, 1.0) for name, steps in golden.tolerances.classes.items()}
    measured_as(store, golden, Tolerances(wide))


def test_the_bases_tolerances_hold(golden_project: Any, measured_as: Callable[..., Golden]) -> None:
    project = golden_project
    project.edit("WIDTH**-0.5", "WIDTH**-0.5 * 1.01")
    loosen(project, "plain_loss", measured_as)
    # The planted canary is larger than the loosened tolerances too; the verdict is not FAIL.
    assert project.golden("check", "plain_loss").code != 1
    answer = project.golden("check", "plain_loss", "--judge", "HEAD", "--json")
    assert answer.code == 1, answer.err
    assert json.loads(answer.out)["cases"][0]["first_divergence"]["module"] == "1.out"


def test_a_case_that_the_change_removes_is_missed(golden_project: Any) -> None:
    project = golden_project
    project.edit('name="plain_seed"', 'name="plain_other"', "plain_cases.py")
    project.edit('case="plain_seed"', 'case="plain_loss"', "plain_cases.py")
    answer = project.golden("check", "--judge", "HEAD", "--json")
    assert answer.code == 3
    vanished = {case["case"]: case for case in answer.json()["cases"]}["plain_seed"]
    assert vanished["verdict"] == "INVALID"
    assert "no case of that name" in vanished["message"]


def test_an_unchanged_tree_passes_its_base_and_an_unknown_base_is_refused(
    golden_project: Any,
) -> None:
    assert golden_project.golden("check", "plain_seed", "--judge", "HEAD").code == 0
    answer = golden_project.golden("check", "--judge", "no-such-revision")
    assert answer.code == 2
    assert "no-such-revision" in answer.err


_OLD_GATE = """\
import sys
from importlib.metadata import entry_points
for group in ("cases", "faults"):
    print(group, *(p.value for p in entry_points(group="validation." + group)))
sys.exit(1)
"""


def test_a_base_whose_gate_reads_entry_points_is_told_what_is_declared(plain_project: Any) -> None:
    project = plain_project
    gate = project.root / "validation" / "cli"
    gate.mkdir(parents=True)
    (gate.parent / "__init__.py").write_text("")
    (gate / "__init__.py").write_text("")
    (gate / "__main__.py").write_text(_OLD_GATE)
    base = project.commit("A gate from before there were declarations")
    project.git("rm", "-rq", "validation")
    project.commit("The installed gate")
    answer = project.golden("check", "--judge", base)
    assert (answer.code, answer.err) == (1, "")
    assert answer.out.splitlines() == ["cases plain_cases", "faults plain_cases"]


_OLDER_GATE = """\
import os
import subprocess
from pathlib import Path
print(*sorted(path.name for path in Path("goldens/cpu/tiny").iterdir()))
"""


def test_a_base_whose_gate_looks_for_digests_in_names_finds_them(plain_project: Any) -> None:
    project = plain_project
    gate = project.root / "validation" / "cli"
    gate.mkdir(parents=True)
    (gate.parent / "__init__.py").write_text("")
    (gate.parent / "config.py").write_text("")
    (gate / "__init__.py").write_text("")
    (gate / "__main__.py").write_text(_OLDER_GATE)
    base = project.commit("A gate from before names were fixed")
    project.git("rm", "-rq", "validation")
    store = GoldenStore(project.root / "goldens")
    provenance = {"environment": {"lane": "cpu"}}
    trace = Trace(
        "tiny",
        provenance,
        [],
        {CurveKey("lm_loss"): {1: 1.0}},
        {CurveKey("lm_loss"): "forward"},
        {},
    )
    store.save(Golden(lane="cpu", trace=trace, case_digest="", accepted={}))
    project.commit("The installed gate")
    recorded = store.head("cpu", "tiny")["files"]
    answer = project.golden("check", "--judge", base)
    assert answer.code == 0, answer.err
    names = {HEAD, *FILES, *(staged_name(name, recorded[name]) for name in FILES)}
    assert set(answer.out.split()) == names
    assert {path.name for path in store.path("cpu", "tiny").iterdir()} == {HEAD, *FILES}


def test_the_bases_cases_judge_inside_of_a_package_that_the_head_changes(
    golden_project: Any, tmp_path: Path
) -> None:
    """`trained.cases` is declared: its package has code of the head and cases of the base."""
    from validation.gate.overlay import lay_declared_modules

    project = golden_project
    package = project.root / "trained"
    (package / "cases").mkdir(parents=True)
    (package / "__init__.py").write_text("VERSION = 'base'\n")
    (package / "model.py").write_text("WIDTH = 1\n")
    (package / "cases" / "__init__.py").write_text("CASES = ['base']\n")
    declared = project.root / "pyproject.toml"
    declared.write_text(declared.read_text().replace('["plain_cases"]', '["trained.cases"]', 1))
    base = project.commit("cases in a package")
    (package / "__init__.py").write_text("VERSION = 'head'\n")
    (package / "model.py").write_text("WIDTH = 2\n")
    (package / "cases" / "__init__.py").write_text("CASES = []\n")
    project.commit("the head empties the list of cases")

    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(project.git("show", f"{base}:pyproject.toml"))
    lay_declared_modules(project.root, base, folder)
    script = (
        "import trained, trained.model, trained.cases\n"
        "print(trained.VERSION, trained.model.WIDTH, trained.cases.CASES)"
    )
    path = os.pathsep.join([str(folder), str(project.root)])
    said = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == ["head", "2", "['base']"]
