"""`docs/export.md`, walked literally: its commands in order, then its Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(torch.cuda.is_available(), reason="trains on the CPU lane")
def test_the_page_does_what_it_says(repository: Path, tmp_path: Path) -> None:
    for name in ("configs", "data/sample"):
        link = tmp_path / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(repository / name)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(repository)}
    outputs: dict[str, str] = {}

    def run(words: list[str], name: str) -> None:
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{name}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
        outputs[name] = done.stdout

    blocks = _FENCE.findall((repository / "docs/export.md").read_text())
    assert [kind for kind, _ in blocks] == ["bash", "bash", "bash", "python"]
    for kind, content in blocks:
        if kind == "python":
            run([sys.executable, "-c", content], kind)
            continue
        for line in content.splitlines():
            run(["bash", "-c", line], line)

    texts = [text for line, text in outputs.items() if line.startswith("vpmoe generate")]
    assert [text.startswith(start) for text, start in zip(texts, ("The rain", "<|st"), strict=True)]
    assert outputs["python"].strip() == "torch.Size([1, 4, 201088])"
    assert "after 2 steps" in outputs["vpmoe export runs/train runs/exported"]
    (loaded,) = (text for line, text in outputs.items() if "--load runs/imported" in line)
    assert "loading release distributed checkpoint from runs/imported" in loaded
    files = {p.name: p.read_bytes() for p in (tmp_path / "runs/exported").iterdir()}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "runs/again").iterdir()}
