"""A lane without GPUs: its processes see no accelerator and no library made for one."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from validation.cases import Case, Needs
from validation.config import Lane, lane_of
from validation.isolation import HIDDEN, HIDDEN_DISTRIBUTIONS, VARIABLES, isolated
from validation.running.execution import RunError, RunOptions, run_case

# What a process can see, as data; a run writes it where its settings say.
PROBE = """
import importlib.metadata
import importlib.util
import json
import os
import sys

VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
             "ONEAPI_DEVICE_SELECTOR")

def imports(name):
    try:
        __import__(name)
    except ModuleNotFoundError:
        return False
    return True

def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

def sight():
    import torch
    names = ("transformer_engine", "transformer_engine.pytorch", "apex", "harmless")
    return {
        "variables": {name: os.environ.get(name) for name in VARIABLES},
        "cuda": torch.cuda.is_available(),
        "mps": [torch.backends.mps.is_available(), torch.backends.mps.is_built()],
        "found": [n for n in names if "." not in n and importlib.util.find_spec(n)],
        "imported": [name for name in names if imports(name)],
        "versions": [version(n) for n in ("transformer-engine", "Transformer_Engine", "harmless")],
        "sitecustomize": os.environ.get("SITECUSTOMIZE_OF_THE_USER"),
        "forked": sys.argv[0].endswith("warm.py"),
    }

def run(recorder, settings):
    import subprocess
    child = [sys.executable, "-c", "import json, probe; print(json.dumps(probe.sight()))"]
    seen = {"rank": sight(), "child": json.loads(subprocess.check_output(child))}
    path = settings["seen"] + str(recorder.rank)
    with open(path, "w") as stream:
        json.dump(seen, stream)
    recorder.curve(1, "lm_loss", 1.0)

def import_hidden(recorder, settings):
    import transformer_engine.pytorch
"""

# Of torch, what a run touches; it has a CUDA card, unless hidden, and Apple's MPS.
TORCH = {
    "__init__.py": """
import os
from torch import __config__, backends, cuda
__version__ = "2.0"
version = type("version", (), {"cuda": "1"})
def get_num_threads(): return 1
def are_deterministic_algorithms_enabled(): return False
class Tensor: pass
""",
    "__config__.py": "def show(): return 'BLAS_INFO=stand_in'",
    "cuda.py": """
import os
def is_available(): return os.environ.get("CUDA_VISIBLE_DEVICES") != ""
def get_device_capability(): return 9, 0
def get_device_name(): return "Stand-in"
def _is_in_bad_fork(): return os.environ.get("STAND_IN_CUDA_IS_LOST") == "1"
""",
    "backends/__init__.py": "from torch.backends import cpu, mkl, mps",
    "backends/cpu.py": "def get_cpu_capability(): return 'AVX2'",
    "backends/mkl.py": "def is_available(): return False",
    "backends/mps.py": "def is_available(): return True\ndef is_built(): return True",
}


def install(site: Path, name: str, files: Mapping[str, str], version: str = "9.9") -> None:
    """Puts a stand-in of a package on a path, with the metadata of an installed one."""
    for file, text in files.items():
        path = site / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
    )


def marking(marker: Path) -> str:
    """A module that leaves a mark when it is imported, and has a version."""
    return f"open({str(marker)!r}, 'a').write(__name__)\n__version__ = '9.9'\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's machine: a card chosen, GPU libraries installed, a sitecustomize of his own."""
    site = tmp_path / "site"
    for name in ("transformer_engine", "apex"):
        mark = marking(tmp_path / "imported")
        install(site, name, {"__init__.py": mark, "pytorch.py": mark})
    install(site, "harmless", {"__init__.py": ""})
    install(site, "torch", TORCH)
    (site / "probe.py").write_text(PROBE)
    (site / "sitecustomize.py").write_text(
        "import os\nos.environ['SITECUSTOMIZE_OF_THE_USER'] = 'ran'\n"
    )
    repository = Path(__file__).resolve().parents[3]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(repository)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0,1")
    return site


def probe(tmp_path: Path, lane: str, target: str = "run", processes: int = 1) -> list[Any]:
    """What the processes of a run see: of each rank, itself and a child that it starts."""
    case = Case(
        name="probe",
        description="looks around",
        lanes=["cpu", "h200"],
        target=f"probe:{target}",
        settings={"seen": str(tmp_path / "seen")},
        processes=processes,
        timeout=60.0,
    )
    run_case(case, RunOptions(lane=lane), tmp_path, tmp_path / "log.txt")
    return [json.loads((tmp_path / f"seen{rank}").read_text()) for rank in range(processes)]


NOTHING = {
    "variables": dict(VARIABLES),
    "cuda": False,
    "mps": [False, False],
    "found": ["harmless"],
    "imported": ["harmless"],
    "versions": [None, None, "9.9"],
    "sitecustomize": "ran",
}


def assert_sees_nothing(seen: Mapping[str, Any]) -> None:
    for process in ("rank", "child"):
        assert {name: seen[process][name] for name in NOTHING} == NOTHING


def test_every_rank_and_what_it_starts_sees_no_accelerator(site: Path, tmp_path: Path) -> None:
    for seen in probe(tmp_path, "cpu", processes=2):
        assert_sees_nothing(seen)
        assert seen["rank"]["forked"]
    assert not (tmp_path / "imported").exists(), "no stand-in was ever executed"


def test_a_look_for_cards_costs_a_lane_without_gpus_no_fork(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import that asks CUDA for cards spoils it for forks, and there is none to spoil."""
    monkeypatch.setenv("STAND_IN_CUDA_IS_LOST", "1")
    (seen,) = probe(tmp_path, "cpu")
    assert seen["rank"]["forked"]
    assert_sees_nothing(seen)
    (seen,) = probe(tmp_path, "h200")
    assert not seen["rank"]["forked"], "a fork cannot use the cards"


def test_a_lane_with_gpus_sees_what_the_user_lets_it_see(site: Path, tmp_path: Path) -> None:
    """After runs of the cpu lane in the same environment, whose parent must not serve it."""
    assert_sees_nothing(probe(tmp_path, "cpu")[0])
    (seen,) = probe(tmp_path, "h200")
    for process in (seen["rank"], seen["child"]):
        assert process["cuda"]
        assert process["mps"] == [True, True]
        assert process["variables"]["CUDA_VISIBLE_DEVICES"] == "0"
        assert process["found"] == ["transformer_engine", "apex", "harmless"]
        assert process["versions"] == ["9.9", "9.9", "9.9"]
    assert (tmp_path / "imported").exists()


def test_provenance_has_no_transformer_engine(site: Path, tmp_path: Path) -> None:
    case = Case(
        name="probe",
        description="looks around",
        lanes=["cpu"],
        target="probe:run",
        settings={"seen": str(tmp_path / "seen")},
    )
    declared = 'cases = ["probe"]\nrecorded = ["transformer-engine"]\n'
    (tmp_path / "golden.toml").write_text(declared)
    trace = run_case(case, RunOptions(lane="cpu"), tmp_path, tmp_path / "log.txt")
    assert trace.provenance["environment"]["transformer-engine"] is None


def test_a_case_that_imports_what_is_hidden_learns_why(site: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="transformer_engine needs a GPU: a lane without GPUs hides"):
        probe(tmp_path, "cpu", target="import_hidden")


def test_a_case_that_needs_what_is_hidden_is_skipped(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(site)
    needs = Needs(modules=["transformer_engine"])
    assert needs.missing(tmp_path, 1, Lane(name="h200", gpus=1)) is None
    reason = needs.missing(tmp_path, 1, Lane(name="cpu"))
    assert reason == "needs the Python module transformer_engine, which lane cpu hides"


def test_both_sides_of_a_bench_see_none(site: Path, tmp_path: Path) -> None:
    from validation.throughput.session import SessionPlan, Watch, open_session

    (site / "pace.py").write_text(
        "import json, pathlib, probe, time\n"
        "def run(pacer, settings):\n"
        "    folder = pathlib.Path(settings['seen'])\n"
        "    own = folder / pathlib.Path.cwd().name\n"
        "    own.with_suffix('.part').write_text(json.dumps({'rank': probe.sight()}))\n"
        "    own.with_suffix('.part').rename(own.with_suffix('.json'))\n"
        "    while len(list(folder.glob('*.json'))) < 2:  # the first to end ends the session\n"
        "        time.sleep(0.02)\n"
    )
    case = Case(
        name="probe",
        description="looks around",
        lanes=["cpu"],
        target="probe:run",
        throughput="pace:run",
        settings={"seen": str(tmp_path / "seen")},
        timeout=60.0,
    )
    trees = {side: tmp_path / side for side in ("base", "head")}
    for folder in (*trees.values(), tmp_path / "seen"):
        folder.mkdir()
    plan = SessionPlan(case=case, lane="cpu", trees=trees, logs=tmp_path / "logs")
    with open_session(plan, Watch()) as session, pytest.raises(RunError, match="exit code 1"):
        session.warm_up()
    for side in trees:
        seen = json.loads((tmp_path / "seen" / f"{side}.json").read_text())["rank"]
        assert {name: seen[name] for name in NOTHING} == NOTHING


def test_a_check_passes_on_a_machine_with_gpu_libraries(plain_project: Any, tmp_path: Path) -> None:
    """A loop that computes other numbers with Transformer Engine than without, as Megatron does."""
    project = plain_project
    project.edit(
        "import torch\n",
        "import torch\ntry:\n    import transformer_engine\n    import importlib.metadata\n"
        "    importlib.metadata.version('transformer-engine')\n    SEED = 99\n"
        "except ImportError:\n    SEED = 0\n",
    )
    project.edit("manual_seed(seed", "manual_seed(SEED + seed")
    project.commit("Prefers Transformer Engine")
    assert project.golden("update", "--reason", "first").code == 0
    project.commit("goldens")
    site = tmp_path / "site"
    mark = marking(tmp_path / "imported")
    install(site, "transformer_engine", {"__init__.py": mark})
    install(site, "apex", {"__init__.py": mark})
    path = os.pathsep.join([str(site), project.environment()["PYTHONPATH"]])
    prefers = subprocess.run(
        [sys.executable, "-c", "import plain_loop; print(plain_loop.SEED)"],
        cwd=project.root,
        env=project.environment(PYTHONPATH=path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert prefers.stdout == "99\n", "outside of the lane the loop takes what is there"
    (tmp_path / "imported").unlink()
    given = {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "0"}
    answer = project.golden("check", "--lane", "cpu", "--json", **given)
    assert answer.code == 0, answer.out + answer.err
    assert answer.json()["environment"]["transformer-engine"] is None
    assert not (tmp_path / "imported").exists()


@given(
    st.dictionaries(
        st.sampled_from([*VARIABLES, "PATH", "HOME", "PYTHONPATH"]), st.text("a01,-", max_size=5)
    )
)
def test_the_lane_wins_over_any_environment(given: dict[str, str]) -> None:
    environment = isolated(given)
    assert {name: environment[name] for name in VARIABLES} == VARIABLES
    first, *rest = environment["PYTHONPATH"].split(os.pathsep)
    assert (Path(first) / "sitecustomize.py").is_file()
    assert os.pathsep.join(rest) == given.get("PYTHONPATH", "")
    kept = set(given) - {*VARIABLES, "PYTHONPATH"}
    assert {name: environment[name] for name in kept} == {name: given[name] for name in kept}


def test_what_runs_need_is_not_hidden() -> None:
    assert not {"torch", "triton", "numpy", "megatron", "validation", "vpmoe"} & set(HIDDEN)
    assert not {"torch", "triton", "numpy", "megatron-core"} & HIDDEN_DISTRIBUTIONS
    assert not lane_of(Path.cwd(), "cpu").on_gpus
