"""Flags and preset fields that vpMoE's cases vary, and those that they don't."""

from pathlib import Path

from validation.cases import discover_cases, discover_gated
from validation.coverage.fields import never_varied
from vpmoe.cases.fields import fields

ROOT = Path(__file__).parents[2]


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
    found = never_varied(gated.fields, cases)
    assert not {"optimizer", "train_iters", "num_experts"} & set(found)
    varied = {"loss_kernel", "normuon_tp_mode", "grapem_per_head"}
    assert not varied & set(found), "variants set them"
    assert found["norm_epsilon"] == {"default": 1e-5, "value": 1e-5}
