"""The CPU lane's Megatron takes no library made for a GPU, whatever is installed."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

from validation.isolation import HIDDEN
from vpmoe.runtime.gpu_libraries import GPU_LIBRARIES, hidden_libraries

# Megatron imports these too: needed, or used when asked for, or without part in the numbers.
_OTHERS = {
    "absl",
    "boto3",
    "botocore",
    "cuda",
    "datasets",
    "einops",
    "emerging_optimizers",
    "flask",
    "flask_restful",
    "hypercorn",
    "modelopt",
    "msgpack",
    "multistorageclient",
    "nemo",
    "numpy",
    "nvidia_resiliency_ext",
    "omegaconf",
    "one_logger",
    "orjson",
    "packaging",
    "psutil",
    "pynvml",
    "quart",
    "sentencepiece",
    "tiktoken",
    "torch",
    "tqdm",
    "transformers",
    "triton",
    "typing_extensions",
    "userlib",
    "wandb",
    "wget",
    "workload_inspector",
    "yaml",
    "zmq",
    "zstandard",
}


def _imported_by_megatron() -> set[str]:
    """Every module of others that a file of the installed Megatron-core names in an import."""
    spec = importlib.util.find_spec("megatron.core")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = Path(next(iter(spec.submodule_search_locations))).parent
    found = set()
    for path in root.rglob("*.py"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarning of Megatron's own strings
            tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.partition(".")[0])
    return found - {"megatron"} - sys.stdlib_module_names


def test_every_library_that_megatron_imports_is_known() -> None:
    """An upgrade that takes another one fails here, by its name."""
    assert _imported_by_megatron() == {*GPU_LIBRARIES, *_OTHERS}


def test_the_harness_hides_them_too() -> None:
    assert set(GPU_LIBRARIES) <= set(HIDDEN)


def test_hidden_while_active_and_back_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("apex", "apex.optimizers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    before = dict(sys.modules)
    with hidden_libraries(), hidden_libraries():
        for name in (*GPU_LIBRARIES, "apex.optimizers"):
            with pytest.raises(ModuleNotFoundError):
                __import__(name)
        assert importlib.util.find_spec("transformer_engine") is None
    assert {name: sys.modules[name] for name in before} == before
    assert set(sys.modules) == set(before)


def test_an_error_inside_brings_them_back() -> None:
    before = {name for name in GPU_LIBRARIES if name in sys.modules}
    with pytest.raises(KeyError), hidden_libraries():
        raise KeyError
    assert {name for name in GPU_LIBRARIES if name in sys.modules} == before


_IMPORT = """
import contextlib, sys
from vpmoe.runtime import cpu_lane
with cpu_lane.activate() if sys.argv[1] == "lane" else contextlib.nullcontext():
    import megatron.core.optimizer.clip_grads
    from megatron.core.utils import is_te_min_version
    print(is_te_min_version("1.0"))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU lane is for machines without CUDA")
def test_megatron_does_not_take_an_installed_transformer_engine(tmp_path: Path) -> None:
    package = tmp_path / "transformer_engine"
    package.mkdir()
    mark = tmp_path / "imported"
    (package / "__init__.py").write_text(f"open({str(mark)!r}, 'w')\n__version__ = '2.0'\n")
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "TORCHDYNAMO_DISABLE": "1"}

    def asks(where: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", _IMPORT, where],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    inside = asks("lane")
    assert inside.stdout == "False\n", inside.stderr
    assert not mark.exists()
    asks("outside")
    assert mark.exists(), "outside of the lane Megatron takes it"
