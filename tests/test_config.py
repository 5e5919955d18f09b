"""Presets: every shipped one loads and renders; every contradiction names its field."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from vpmoe.config import PresetError, expand_preset_flags, load_preset

PRESETS = ["vpmoe-6b", "vpmoe-dev", "vpmoe-tiny"]


@pytest.fixture
def edited(repository: Path, tmp_path: Path):
    """Writes the tiny preset with one replacement and returns its path."""

    def edit(old: str, new: str) -> Path:
        text = (repository / "configs/vpmoe-tiny.toml").read_text()
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
        path = tmp_path / "edited.toml"
        path.write_text(text.replace(old, new))
        return path

    return edit


@pytest.fixture(scope="module")
def parsed() -> Callable[[Sequence[str]], dict[str, Any]]:
    """What `vpmoe pretrain` makes of flags."""
    from vpmoe.arguments import training_parser

    return lambda words: vars(training_parser().parse_args(list(words)))


@pytest.mark.parametrize("name", PRESETS)
def test_shipped_preset_renders_every_field(repository: Path, name: str) -> None:
    preset = load_preset(repository / "configs" / f"{name}.toml")
    flags = preset.to_flags()
    for field, value in preset.fields.items():
        flag = "--" + field.replace("_", "-")
        assert (flag in flags) is (value is not False)
        if not isinstance(value, bool):
            assert type(value)(flags[flags.index(flag) + 1]) == value
    assert flags[flags.index("--padded-vocab-size") + 1] == "201088"


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_of_a_shipped_preset_reaches_the_arguments(
    repository: Path, name: str, parsed: Callable[[Sequence[str]], dict[str, Any]]
) -> None:
    """Read without the code under test: what the file says is what the parser has."""
    path = repository / "configs" / f"{name}.toml"
    args, defaults = parsed(load_preset(path).to_flags()), parsed([])
    names = {"norm_epsilon": "layernorm_epsilon"}
    seen = set()
    for table in tomllib.loads(path.read_text()).values():
        for field, value in table.items():
            dest = names.get(field, field)
            if field == "disable_bias_linear":
                dest, value = "add_bias_linear", not value
            elif field == "window_size":
                value = (value - 1, 0)
            elif field == "moe_layer_freq":
                value = [0] + [1] * (args["num_layers"] - 1)
            found = args[dest]
            assert (found[0] if field.startswith("moe_") and found == [value] else found) == value
            seen.add(dest)
    changed = {dest for dest, value in args.items() if value != defaults[dest]}
    assert changed <= seen


@pytest.mark.parametrize(
    ("table", "line", "dest", "value"),
    [
        ("training", "tensor_model_parallel_size = 2", "tensor_model_parallel_size", 2),
        ("optimizer", 'normuon_tp_mode = "blockwise"', "normuon_tp_mode", "blockwise"),
        ("experts", 'expert_kernel = "fused"', "expert_kernel", "fused"),
        ("training", "save_interval = 100", "save_interval", 100),
        ("training", "persistent_save_interval = 100", "save_interval", 100),
        ("training", 'data_path = ["0.3", "a", "0.7", "b"]', "data_path", ["0.3", "a", "0.7", "b"]),
        ("training", "data_path = [0.5, 'a']", "data_path", ["0.5", "a"]),
        ("training", "rampup_batch_size = [2, 2, 100]", "rampup_batch_size", [2, 2, 100]),
        ("training", 'recompute_modules = ["moe"]', "recompute_modules", ["moe"]),
        ("training", "no_rope_fusion = true", "apply_rope_fusion", False),
        ("training", "no_rope_fusion = false", "apply_rope_fusion", True),
        ("attention", "grapem_learnable_freq = false", "grapem_learnable_freq", False),
        ("attention", "grapem_learnable_freq = true", "grapem_learnable_freq", True),
        ("attention", "no_grapem_learnable_freq = true", "grapem_learnable_freq", False),
        ("optimizer", "override_opt_param_scheduler = true", "override_opt_param_scheduler", True),
        ("optimizer", "start_weight_decay = 1", "start_weight_decay", 1.0),
    ],
)
def test_every_flag_is_a_field(
    edited, table: str, line: str, dest: str, value: Any, parsed: Callable[..., dict[str, Any]]
) -> None:
    preset = load_preset(edited(f"[{table}]", f"[{table}]\n{line}"))
    assert parsed(preset.to_flags())[dest] == value


def test_every_flag_of_the_parser_is_known_as_a_field() -> None:
    """A field without a value for it is refused for that, never as unknown."""
    from vpmoe.arguments import training_parser
    from vpmoe.config import parse_field
    from vpmoe.config_checks import FieldError

    for action in training_parser()._actions:
        for option in action.option_strings:
            if option in ("-h", "--help"):
                continue
            with pytest.raises(FieldError, match=r"expected .* \(dict\)"):
                parse_field(option[2:].replace("-", "_"), {})


@pytest.mark.parametrize(
    ("field", "match"),
    [
        ("use_tap = true", r"\[attention\] use_tap: unknown field \(did you mean use_tpa"),
        ("use-tpa = true", "did you mean use_tpa"),
        ("tensor_model_parallel_sizes = 2", "did you mean tensor_model_parallel_size"),
        ("xyzzy = 2", "xyzzy: unknown field; .*vpmoe pretrain --help"),
        ("help = true", "help: unknown field"),
        ('attention_kernel = "eagre"', "attention_kernel: invalid choice: 'eagre'"),
        ("attention_kernel = 3", r"attention_kernel: .*found 3 \(int\)|invalid choice"),
        ("flash_decode = 1", r"flash_decode: expected bool, found 1 \(int\)"),
        ("attention_softmax_in_fp32 = 'yes'", r"expected bool, found 'yes' \(str\)"),
        ("rampup_batch_size = [2, 2]", "rampup_batch_size: expected 3 arguments"),
        ("rampup_batch_size = [2, 2, 1.5]", "expected int, or a list of them, found 1.5"),
        ("data_path = []", None),
        ("clone_scatter = 2020-01-01", "unknown field"),
        ("linear_attention_freq = 2020-01-01", "expected str or int or float"),
        ("linear_attention_freq = '[1'", "linear_attention_freq: cannot be read, found '\\[1'"),
        ("cuda_graph_modules = ['nothing']", "cuda_graph_modules: cannot be read"),
        ("load = '--save'", "load: expected one argument"),
        ("norm_epsilon = 1e-5", r"norm_epsilon: set twice: also as norm_epsilon in \[model\]"),
    ],
)
def test_a_bad_field_is_refused_with_its_line(edited, field: str, match: str | None) -> None:
    path = edited("[attention]", f"[attention]\n# a comment\n{field}")
    if match is None:
        load_preset(path)
        return
    with pytest.raises(PresetError, match=match) as error:
        load_preset(path)
    lines = path.read_text().splitlines()
    line = max(n for n, text in enumerate(lines, 1) if text.startswith(field))
    assert str(error.value).startswith(f"{path}:{line}: [attention] ")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("num_layers = 4\n", r":1: num_layers: outside of a table; put it into one of: model"),
        ("\n[exparts]\nnum_experts = 4\n", r":2: \[exparts\]: no table .*did you mean experts\?"),
        ("model = {num_layers = 'x'}\n", r"\.toml: \[model\] num_layers: expected int"),
        ("model = 3\n", r":1: model: must be a table of fields, found 3"),
        ("[model]\nnum_layers = 4\n", r"hidden_size: missing"),
        ("[model]\nnum_layers = 4\nnum_layers = 5\n", r"not valid TOML: .*line 3"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(PresetError, match=match):
        load_preset(path)


def test_a_preset_that_is_no_readable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match="cannot be read: Is a directory"):
        load_preset(tmp_path)


def test_a_preset_alone_is_a_command_line(repository: Path) -> None:
    path = repository / "configs/vpmoe-tiny.toml"
    assert expand_preset_flags(["--config", str(path)]) == load_preset(path).to_flags()


def test_locked_architecture_of_6b(repository: Path) -> None:
    fields = load_preset(repository / "configs/vpmoe-6b.toml").fields
    assert (fields["num_layers"], fields["hidden_size"]) == (80, 1024)
    assert (fields["num_attention_heads"], fields["num_query_groups"]) == (8, 2)
    assert (fields["num_experts"], fields["moe_router_topk"]) == (256, 4)
    assert (fields["window_size"], fields["window_attn_skip_freq"]) == (128, 4)
    assert fields["moe_shared_expert_intermediate_size"] == 512
    assert fields["hidden_dropout"] == 0.0


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("num_query_groups = 2", "num_query_groups = 3", "num_query_groups"),
        ("group_query_attention = true", "group_query_attention = false", "group_query_attention"),
        ("kv_channels = 16", "kv_channels = 15", "kv_channels"),
        ("window_size = 16", "window_size = 64", "window_size"),
        ("window_attn_skip_freq = 4", "window_attn_skip_freq = 5", "window_attn_skip_freq"),
        ("no_rope_freq = 4", "no_rope_freq = 2", "no_rope_freq"),
        ("tpa_rank = 2\n", "", "tpa_rank"),
        ("use_tpa = true", "use_tpa = false", "tpa_rank"),
        ("[1]*3", "[1]*4", "moe_layer_freq"),
        ('"([0]+[1]*3)"', '"__import__(1)"', "moe_layer_freq"),
        ('"([0]+[1]*3)"', '"[2]*4"', "moe_layer_freq"),
        ("moe_router_group_topk = 1", "moe_router_group_topk = 3", "moe_router_group_topk"),
        ("moe_router_topk = 2", "moe_router_topk = 5", "moe_router_topk"),
        (
            "moe_router_topk = 2\nmoe_router_num_groups = 2\nmoe_router_group_topk = 1",
            "moe_router_topk = 1\nmoe_router_num_groups = 2\nmoe_router_group_topk = 2",
            "moe_router_group_topk",
        ),
        (
            "moe_router_group_topk = 1",
            "moe_router_group_topk = 1\nmoe_router_group_score_topk = 5",
            "moe_router_group_score_topk",
        ),
        (
            "moe_router_num_groups = 2\nmoe_router_group_topk = 1",
            "moe_router_group_score_topk = 2",
            "moe_router_group_score_topk",
        ),
        ("moe_router_num_groups = 2", "moe_router_num_groups = 3", "moe_router_num_groups"),
        ("padded_vocab_size = 201088", "padded_vocab_size = 201216", "padded_vocab_size"),
        ("O200kHarmonyTokenizer", "NullTokenizer", "tokenizer_type"),
        ("hidden_size = 64\nnum", "num", "hidden_size"),
        ("micro_batch_size = 1", "micro_batch_size = 3", "micro_batch_size"),
        ("\nmin_lr = 4e-4", "\nmin_lr = 1.0", "min_lr"),
        ("seq_length = 64", "seq_length = 128", "seq_length"),
        ("hidden_dropout = 0.0", 'hidden_dropout = "none"', "hidden_dropout"),
        ("num_layers = 4", "num_layers = 0", "num_layers"),
        ("num_layers = 4", "num_layers = 4.0", "num_layers"),
        ("use_tpa = true", "use_tpa = true\nlr = 1e-3", "set twice: also as lr in [attention]"),
        ("use_tpa = true", "use_tpa = true\nuse_tap = true", "use_tap"),
        ("[experts]", "[expert]", "[expert]"),
    ],
)
def test_contradiction_names_the_field(edited, old: str, new: str, field: str) -> None:
    path = edited(old, new)
    with pytest.raises(PresetError, match=r"edited\.toml") as error:
        load_preset(path)
    assert field in str(error.value)


def test_missing_and_malformed_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match=r"none\.toml: no such preset"):
        load_preset(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff = [")
    with pytest.raises(PresetError, match=r"bad\.toml: not valid TOML"):
        load_preset(tmp_path / "bad.toml")


def flags_with(path: str, *words: str) -> list[str]:
    return expand_preset_flags(["--config", path, *words])


def test_explicit_flags_come_after_the_preset(repository: Path) -> None:
    path = str(repository / "configs/vpmoe-tiny.toml")
    flags = expand_preset_flags(["--lr", "0.5", "--config", path])
    assert flags[-2:] == ["--lr", "0.5"]
    assert flags == expand_preset_flags([f"--config={path}", "--lr", "0.5"])
    assert expand_preset_flags(["--lr", "0.5"]) == ["--lr", "0.5"]
    for other in (["--optimizer", "adam"], ["--optimizer=adam"]):
        chosen = expand_preset_flags(["--config", path, *other])
        assert not any(flag.startswith("--normuon") for flag in chosen)
    same = expand_preset_flags(["--config", path, "--optimizer", "normuon"])
    assert "--normuon-aux-lr" in same
    legacy = expand_preset_flags(["--config", path, "--legacy-tokenizer"])
    assert not {"--tokenizer-type", "--padded-vocab-size"} & set(legacy)
    assert {"--tokenizer-type", "--padded-vocab-size"} < set(same)
    for plain in (["--mock-data"], ["--data-path", "tokens"], ["--train-data-path=tokens"]):
        assert not any(word.startswith("--kd-") for word in flags_with(path, *plain))
    assert "--kd-span-weight-final" in flags_with(path, "--synth-kd-data", "folder")
    for broken in (["--config"], ["--config", "--lr"], ["--config", path, "--config", path]):
        with pytest.raises(PresetError, match="--config"):
            expand_preset_flags(broken)


@pytest.mark.parametrize(
    ("words", "minimum"),
    [
        (["--normuon-aux-lr", "1e-4"], 3e-5),  # 2e-3 falls to 6e-4 in the preset
        (["--normuon-aux-lr=1e-4"], 3e-5),
        (["--normuon-aux-lr", "6e-4"], 6e-4),
        (["--normuon-aux-lr", "1e-2"], 6e-4),
        (["--normuon-aux-lr", "1e-4", "--normuon-aux-lr", "1e-2"], 6e-4),
        (["--normuon-aux-lr", "nonsense"], 6e-4),  # the parser refuses it
        (["--lr", "1e-4"], 6e-4),
    ],
)
def test_a_presets_minimum_rate_stays_below_a_maximum_of_the_command_line(
    repository: Path, words: list[str], minimum: float
) -> None:
    flags = expand_preset_flags(["--config", str(repository / "configs/vpmoe-tiny.toml"), *words])
    found = float(flags[flags.index("--normuon-aux-min-lr") + 1])
    assert found == pytest.approx(minimum, rel=1e-9)


def test_a_preset_with_tpa_or_shared_experts_has_no_biases(
    repository: Path, tmp_path: Path
) -> None:
    text = (repository / "configs/vpmoe-tiny.toml").read_text()
    path = tmp_path / "biased.toml"
    path.write_text(text.replace("disable_bias_linear = true\n", ""))
    with pytest.raises(PresetError, match="disable_bias_linear: must be true"):
        load_preset(path)
    path.write_text(path.read_text().replace("use_tpa = true", "").replace("tpa_", "# tpa_"))
    with pytest.raises(PresetError, match="shared experts have no bias"):
        load_preset(path)
