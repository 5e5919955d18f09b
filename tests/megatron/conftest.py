"""Megatron, imported inside the CPU lane."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import torch

from vpmoe.runtime import cpu_lane


@pytest.fixture(scope="module", autouse=True)
def lane() -> Iterator[None]:
    """The lane, with all that a training imports."""
    if torch.cuda.is_available():
        pytest.skip("the CPU lane is for machines without CUDA")
    with cpu_lane.activate():
        importlib.import_module("megatron.training.training")
        yield
