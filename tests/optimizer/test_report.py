"""The routing of every parameter of vpmoe-tiny, as `vpmoe params --optimizer` lists it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_COMMON = {
    "input_layernorm.weight": "adamw",
    "self_attention.core_attention.softmax_offset": "adamw",
    "self_attention.linear_proj.weight": [[1, 64, 64]],
    "self_attention.q_layernorm.weight": "adamw",
    "self_attention.k_layernorm.weight": "adamw",
    "pre_mlp_layernorm.weight": "adamw",
}
_TPA = {
    "self_attention.linear_qkv.a_q": [[1, 16, 64]],
    "self_attention.linear_qkv.a_k": [[1, 4, 64]],
    "self_attention.linear_qkv.a_v": [[1, 4, 64]],
    "self_attention.linear_qkv.b_q": [[1, 64, 64]],
    "self_attention.linear_qkv.b_k": [[1, 32, 64]],
    "self_attention.linear_qkv.b_v": [[1, 32, 64]],
}
_QKV = {"self_attention.linear_qkv.weight": [[1, 64, 64], [1, 32, 64], [1, 32, 64]]}
_DENSE = {"mlp.linear_fc1.weight": [[1, 64, 64]], "mlp.linear_fc2.weight": [[1, 64, 64]]}
_MOE = {
    "mlp.router.weight": [[1, 8, 64]],
    "mlp.experts.weight1": [[8, 32, 64]],
    "mlp.experts.weight2": [[8, 64, 32]],
    "mlp.shared_experts.linear_fc1.weight": [[1, 64, 64]],
    "mlp.shared_experts.linear_fc2.weight": [[1, 64, 64]],
}
_LAYERS = [_TPA | _DENSE, _TPA | _MOE, _TPA | _MOE, _QKV | _MOE]
SNAPSHOT = {
    "embedding.word_embeddings.weight": "adamw",
    "grapem.phi": "adamw",
    "decoder.final_layernorm.weight": "adamw",
    "output_layer.weight": "adamw",
    **{
        f"decoder.layers.{index}.{name}": route
        for index, layer in enumerate(_LAYERS)
        for name, route in (_COMMON | layer).items()
    },
}


@pytest.fixture(scope="module")
def routes(repository: Path) -> dict[str, dict[str, object]]:
    config = repository / "configs" / "vpmoe-tiny.toml"
    words = ["-m", "vpmoe.cli", "params", "--optimizer", "--json", "--config", str(config)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {route["name"]: route for route in json.loads(done.stdout)}


def test_routing_snapshot(routes: dict[str, dict[str, object]]) -> None:
    found = {
        name: route["matrices"] if route["optimizer"] == "normuon" else "adamw"
        for name, route in routes.items()
    }
    assert found == SNAPSHOT


def test_vectors_do_not_decay(routes: dict[str, dict[str, object]]) -> None:
    for name, route in routes.items():
        shape = route["shape"]
        assert isinstance(shape, list)
        assert route["weight_decay"] == (0.12 if len(shape) > 1 else 0.0), name
