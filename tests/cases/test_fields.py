"""Flags and preset fields that vpMoE's cases vary, and those that they don't."""

from pathlib import Path

import pytest

from validation.cases import discover_cases, discover_gated
from validation.coverage.fields import never_varied
from vpmoe.cases.fields import fields
from vpmoe.config import load_preset

ROOT = Path(__file__).parents[2]
PRESETS = [
    ROOT / "configs" / "vpmoe-tiny.toml",
    *sorted((ROOT / "vpmoe" / "cases" / "presets").glob("*.toml")),
]


def test_fields_are_called_as_presets_call_them_and_hold_each_cases_value() -> None:
    cases = [case for case in discover_cases(ROOT).values() if "cpu" in case.lanes]
    found = fields(cases)
    assert {"norm_epsilon", "disable_bias_linear", "normuon_momentum", "window_size"} <= set(found)
    assert "tensorboard_dir" not in found, "Megatron's own, which no preset sets"
    assert found["optimizer"].values["tiny_moe"] == "normuon"
    assert found["optimizer"].values["tiny_adam"] == "adam"
    assert found["train_iters"].values["tiny_dense"] == 6
    assert found["loss_kernel"].values["alternatives/chunked_loss"] == "chunked"
    assert found["use_tpa"].values["alternative_models/plain_attention"] is False
    assert "refusals" not in found["optimizer"].values, "it trains none"
    assert "schedules" not in found["optimizer"].values, "it trains no preset"


def test_what_no_case_varies_is_told_with_its_value() -> None:
    gated = discover_gated(ROOT)
    assert gated is not None
    cases = [case for case in discover_cases(ROOT).values() if "cpu" in case.lanes]
    found = never_varied(gated, cases)
    assert not {"optimizer", "train_iters", "num_experts"} & set(found)
    varied = {"loss_kernel", "normuon_tp_mode", "grapem_per_head"}
    assert not varied & set(found), "variants set them"


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_no_value_of_a_preset_is_another_ones_or_the_default(path: Path) -> None:
    given = load_preset(path).fields
    numbers = {n: v for n, v in given.items() if isinstance(v, float) and not n.endswith("dropout")}
    assert len(numbers) >= 6
    assert len(set(numbers.values())) == len(numbers), sorted(numbers.items(), key=lambda x: x[1])
    defaults = {name: field.default for name, field in fields([]).items()}
    for name, value in numbers.items():
        assert value != defaults.get(name), name
    seeds = {load_preset(preset).fields["seed"] for preset in PRESETS}
    assert len(seeds | {1234}) == len(PRESETS) + 1


def test_every_field_is_varied_or_has_a_reason() -> None:
    gated = discover_gated(ROOT)
    assert gated is not None
    cases = [case for case in discover_cases(ROOT).values() if "cpu" in case.lanes]
    found = never_varied(gated, cases)
    without = {name for name, said in found.items() if "reason" not in said}
    assert without == set()
    assert gated.unvaried.keys() <= found.keys(), "a reason for what a case does vary"
