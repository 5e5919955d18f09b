"""Every declared bug and harmless change finds what it patches, and takes it back."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest
import torch

from validation.cases import discover_benign, discover_cases, discover_faults
from validation.running.source import find_root
from validation.running.worker import resolve
from vpmoe.cases import faults
from vpmoe.cases.faults import benign, planting

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="plants in the CPU lane")

FAULTS, BENIGN = discover_faults(find_root()), discover_benign(find_root())


def test_no_file_of_faults_is_left_out() -> None:
    for found in pkgutil.iter_modules(faults.__path__, f"{faults.__name__}."):
        importlib.import_module(found.name)
        assert {fault.id for fault in planting.declared(found.name)} <= FAULTS.keys()
        assert {change.id for change in benign.declared(found.name)} <= BENIGN.keys()


@pytest.mark.parametrize("name", [*FAULTS, *BENIGN])
def test_it_can_be_planted_and_taken_back(name: str) -> None:
    declared = (FAULTS | BENIGN)[name]
    assert declared.case in discover_cases(find_root())
    for plant in (declared.plant, declared.plant, getattr(declared, "no_op", None)):
        if plant is not None:
            with resolve(plant)():
                pass


def test_there_are_canaries_and_categories() -> None:
    canaries = [fault for fault in FAULTS.values() if fault.canary and fault.canary_steps]
    assert len(canaries) >= 20
    assert len({fault.category for fault in FAULTS.values()}) >= 12
    assert len(FAULTS) >= 140
    assert len(BENIGN) >= 50
    assert all(fault.no_op for fault in FAULTS.values())
    assert sum(fault.equivalent is not None for fault in FAULTS.values()) <= 0.05 * len(FAULTS)


def test_a_no_op_control_passes_everything_through() -> None:
    from vpmoe.model.attention import core

    class Config:
        num_layers, window_size, window_attn_skip_freq = 4, (15, 0), 4

    right = core.layer_window(Config(), 1)
    with resolve(FAULTS["window-plus-one"].plant)():
        assert core.layer_window(Config(), 1) == right + 1
    with resolve(FAULTS["window-plus-one"].no_op)():
        assert core.layer_window(Config(), 1) == right


def test_declaring_faults_imports_no_torch() -> None:
    """Every `golden check` and completion of a fault's name imports the declarations."""
    script = "import sys, vpmoe.cases.faults; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=find_root())
