"""Single-line bugs in a copy of vpMoE: the first divergence names where each of them is."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from validation.cases import Case, discover_cases
from validation.compare import compare
from validation.goldens import GoldenStore
from validation.running.execution import RunOptions, run_case
from validation.running.source import find_root


@dataclass(frozen=True)
class Bug:
    """One edited line, and what the first divergence must say."""

    file: str
    old: str
    new: str
    phase: str
    module: str
    tensor: str
    case: str = "tiny_moe"


BUGS = {
    "tokenizer: no <|return|> at the end": Bug(
        "vpmoe/data/encode.py",
        "_ids([special.RETURN])",
        "_ids([special.END])",
        "data",
        "dataset",
        "manifest",
    ),
    "loss mask: one token late": Bug(
        "vpmoe/data/dataset.py",
        "torch.from_numpy(mask[:-1].astype(np.float32))",
        "torch.from_numpy(mask[1:].astype(np.float32))",
        "data",
        "batch",
        "loss_mask",
    ),
    "window: one token too many": Bug(
        "vpmoe/model/attention/pattern.py",
        "allowed & (distance < window)",
        "allowed & (distance <= window)",
        "forward",
        "window/decoder.layers.0.self_attention",
        "table",
    ),
    "schedule: the dense layer one place off": Bug(
        "vpmoe/model/layer_specs.py",
        "schedule[layer_number - 1]",
        "schedule[layer_number - 2]",
        "init",
        "decoder.layers.0.mlp",
        "",
    ),
    "GRAPE-M: rotated the other way": Bug(
        "vpmoe/model/grape.py",
        "(first * cos - second * sin, second * cos + first * sin)",
        "(first * cos + second * sin, second * cos - first * sin)",
        "forward",
        "decoder.layers.0.self_attention.core_attention",
        "output",
    ),
    "GRAPE-A: bias with the wrong sign": Bug(
        "vpmoe/model/attention/eager.py",
        "logits = logits - slopes",
        "logits = logits + slopes",
        "forward",
        "decoder.layers.3.self_attention.core_attention",
        "output",
    ),
    "TPA: 1/R forgotten": Bug(
        "vpmoe/model/tpa.py",
        "torch.matmul(a, b) / rank",
        "torch.matmul(a, b)",
        "forward",
        "decoder.layers.0.self_attention.linear_qkv",
        "output.0",
    ),
    "softmax: offset column left out": Bug(
        "vpmoe/model/attention/eager.py",
        "    if offset is not None:",
        "    if False:",
        "forward",
        "decoder.layers.0.self_attention.core_attention",
        "output",
    ),
    "router: weights not scaled": Bug(
        "configs/vpmoe-tiny.toml",
        "moe_router_topk_scaling_factor = 2.2",
        "moe_router_topk_scaling_factor = 1.0",
        "forward",
        "decoder.layers.1.mlp.router",
        "output.0",
    ),
    "experts: all drawn from the first one's seed": Bug(
        "vpmoe/model/initialization.py",
        "number = first_expert + int(found.group(1))",
        "number = first_expert",
        "init",
        "decoder.layers.1.mlp.experts.local_experts.1.linear_fc1",
        "weight",
    ),
    "loss: spans weighted by the micro-batch": Bug(
        "vpmoe/data/loss.py",
        "return batch.step.counts, batch.step.parts",
        "return torch.stack(counts), batch.step.parts",
        "backward",
        "model",
        "output.grad",
    ),
    "gradient reduction: phi not summed over tensor-parallel ranks": Bug(
        "vpmoe/model/grape.py",
        "phi = copy_to_tensor_model_parallel_region(phi, self.tp_group)",
        "pass",
        "reduction",
        "grapem",
        "phi.grad",
        "layout_tp",
    ),
    "optimizer: scale of tall matrices missing": Bug(
        "vpmoe/optimizer/chunks.py",
        "math.sqrt(max(1.0, m / n))",
        "1.0",
        "optimizer",
        "decoder.layers.1.mlp.experts.local_experts.0.linear_fc2",
        "weight.replay",
    ),
    "optimizer: biases and norms decay": Bug(
        "vpmoe/optimizer/megatron.py",
        "decays=param.ndim > 1,",
        "decays=True,",
        "init",
        "decoder.layers.0.input_layernorm.weight",
        "optimizer",
    ),
}


def copied(repository: Path, folder: Path) -> Path:
    """A copy of the tracked files."""
    names = subprocess.run(
        ["git", "-C", str(repository), "ls-files", "-z"], capture_output=True, check=True
    ).stdout.decode()
    for name in filter(None, names.split("\0")):
        if not name.startswith(("goldens/", "docs/", "tests/")) and (repository / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, folder / name)
    return folder


@pytest.mark.parametrize("name", BUGS)
def test_first_divergence_names_the_bug(
    name: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug = BUGS[name]
    root = copied(repository, tmp_path / "copy")
    path = root / bug.file
    text = path.read_text("utf-8")
    assert text.count(bug.old) == 1, "the line of the bug is no longer there"
    path.write_text(text.replace(bug.old, bug.new), "utf-8")
    vocabulary = repository / "data" / "tokenizer" / "o200k_base.tiktoken"
    monkeypatch.setenv("O200K_HARMONY_VOCAB_PATH", str(vocabulary))
    case: Case = discover_cases(find_root())[bug.case]
    options = RunOptions(lane="cpu", settings={"stop_after": 1})
    trace = run_case(case, options, root, tmp_path / "log.txt")
    golden = GoldenStore(repository / "goldens").load("cpu", bug.case)
    comparison = compare(golden.trace.up_to(1), trace, golden.tolerances)
    assert comparison.divergences, os.linesep.join(["nothing differs", name])
    first = comparison.divergences[0]
    assert first.phase == bug.phase, first
    assert str(first.module).startswith(bug.module), first
    assert str(first.tensor).startswith(bug.tensor), first
