"""Every refusal of flags names a way out, and the way out is accepted.

The flags go through Megatron's parser and checks too, in the order of `vpmoe pretrain`: what
Megatron would advise first must not be refused after.
"""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from vpmoe.config import Preset, expand_preset_flags, load_preset
from vpmoe.megatron.repairs import skip_helper_build
from vpmoe.runtime import cpu_lane

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the CPU lane is for machines without CUDA"
)

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = REPOSITORY / "configs" / "vpmoe-tiny.toml"
CHECKED = ("vpmoe/model/arguments.py", "vpmoe/optimizer/arguments.py")
# Refusals that a machine without a GPU cannot be brought to.
ON_A_GPU = ("--optimizer-cuda-graph with",)

_TPA = ("use_tpa", "tpa_rank", "tpa_q_rank")
_SPANS = ("kd_span_weight_reasoning", "kd_span_weight_final")
_SHARED = "moe_shared_expert_intermediate_size"
_LIMIT = ("moe_router_num_groups", "moe_router_group_topk")
_GROUPS = "--moe-router-num-groups 2 --moe-router-group-topk 1"
_EXPERTS = tuple(
    name
    for name in tomllib.loads(TINY.read_text())["experts"]
    if name == "num_experts" or name.startswith("moe_")
)
_TP4 = "--tensor-model-parallel-size 4 --sequence-parallel"
_FULL_GRAPH = "--cuda-graph-impl full_iteration --no-check-for-nan-in-loss-and-grad"


@dataclass(frozen=True)
class Refusal:
    """Flags over the tiny preset that are refused, and what the message says to do instead.

    Attributes:
        flags: refused.
        advice: part of the message.
        mended: accepted.
        without: fields of the preset that are left out of both.
    """

    flags: str
    advice: str
    mended: str = ""
    without: Sequence[str] = ()


REFUSALS = (
    Refusal("--context-parallel-size 2", "use 1", "--context-parallel-size 1"),
    Refusal("--multi-latent-attention", "leave it out"),
    Refusal("--mtp-num-layers 1", "leave it out"),
    Refusal("--use-grouped-gemm-for-shared-expert", "leave it out"),
    Refusal("--normalization LayerNorm", "use --normalization RMSNorm"),
    Refusal(
        "",
        "pass --untie-embeddings-and-output-weights",
        "--untie-embeddings-and-output-weights",
        ("untie_embeddings_and_output_weights",),
    ),
    Refusal("--attention-dropout 0.1", "use 0", "--attention-dropout 0"),
    Refusal(
        "",
        "shared experts have no bias.* unless --disable-bias-linear is passed",
        "--disable-bias-linear",
        ("disable_bias_linear",),
    ),
    Refusal(
        "",
        "factors have no bias.* unless --disable-bias-linear is passed",
        "--disable-bias-linear",
        ("disable_bias_linear", _SHARED),
    ),
    Refusal("--add-qkv-bias", "leave out one of the two"),
    Refusal("--use-tpa --tpa-rank 2 --tpa-q-rank 4 --add-qkv-bias", "one", "--add-qkv-bias", _TPA),
    Refusal("--fp8-format e4m3", "use --bf16", "--bf16"),
    Refusal("--fp8-format hybrid --fp8-param-gather", "use --bf16", "--bf16"),
    Refusal("--cuda-graph-impl local", "full_iteration graphs", _FULL_GRAPH),
    Refusal(f"{_FULL_GRAPH} --optimizer adam --fp16", "use --bf16", f"{_FULL_GRAPH} --bf16"),
    Refusal(
        f"{_FULL_GRAPH} --step-batch-size-schedule 0:2",
        "leave out --step-batch-size-schedule",
        _FULL_GRAPH,
        ("global_batch_size",),
    ),
    Refusal(
        "--rampup-batch-size 2 2 100",
        "use --step-batch-size-schedule",
        "--step-batch-size-schedule 0:2,4096:4",
        ("global_batch_size",),
    ),
    Refusal(
        "--position-embedding-type learned_absolute",
        "vpMoE has grapem",
        "--position-embedding-type grapem",
    ),
    Refusal("--flash-decode", "leave it out"),
    Refusal("--kv-channels 15", "use an even number", "--kv-channels 14"),
    Refusal("--grapem-log-freq-scale 0", "must be positive", "--grapem-log-freq-scale 8"),
    Refusal(
        "--position-embedding-type none --grapem-per-head",
        "needs --position-embedding-type grapem",
        "--position-embedding-type grapem --grapem-per-head",
    ),
    Refusal(
        f"{_TP4} --grapem-per-head",
        "use a tensor-parallel size that divides 2",
        "--tensor-model-parallel-size 2 --sequence-parallel --grapem-per-head",
        _TPA,
    ),
    Refusal("--num-query-groups 3", "use a number that divides 4", "--num-query-groups 4"),
    Refusal(
        _TP4,
        "use a tensor-parallel size that divides 2",
        "--tensor-model-parallel-size 2 --sequence-parallel",
        _TPA,
    ),
    Refusal("", "needs --window-size", "--window-size 16", ("window_size", *_TPA)),
    Refusal("", "pass --no-rope-freq", "--no-rope-freq 4", ("no_rope_freq",)),
    Refusal("", "or --grape-a-with-rotation", "--grape-a-with-rotation", ("no_rope_freq",)),
    Refusal(
        "--grape-a-with-rotation",
        "needs --grape-a",
        "--grape-a-with-rotation --grape-a",
        ("grape_a",),
    ),
    Refusal("", "need --use-tpa", "--use-tpa", ("use_tpa",)),
    Refusal(
        "",
        "set --window-size",
        "--window-size 16",
        ("window_size", "window_attn_skip_freq", "grape_a"),
    ),
    Refusal("", "--tpa-rank is missing", "--tpa-rank 2", ("tpa_rank",)),
    Refusal("", "--tpa-q-rank is missing", "--tpa-q-rank 2", ("tpa_q_rank",)),
    Refusal("--tpa-rank 0", "must be positive", "--tpa-rank 1"),
    Refusal(_TP4, "use a tensor-parallel size of at most 2", f"{_TP4[:29]}2 --sequence-parallel"),
    Refusal("--moe-router-group-score-topk 2", "needs --num-experts", "", _EXPERTS),
    Refusal(
        "--moe-router-group-score-topk 2",
        "needs --moe-router-num-groups and --moe-router-group-topk",
        f"{_GROUPS} --moe-router-group-score-topk 2",
        _LIMIT,
    ),
    Refusal(
        "--moe-router-topk 5",
        "raise --moe-router-group-topk",
        "--moe-router-topk 5 --moe-router-group-topk 2",
    ),
    Refusal(
        "--moe-router-group-topk 2 --moe-router-topk 1",
        "lower it, or set --moe-router-group-score-topk",
        "--moe-router-group-topk 2 --moe-router-topk 1 --moe-router-group-score-topk 1",
    ),
    Refusal("--moe-router-group-score-topk 5", "use 1 to 4", "--moe-router-group-score-topk 4"),
    Refusal(
        "--optimizer adam --normuon-aux-lr 1e-3",
        "needs --optimizer normuon",
        "--optimizer normuon --normuon-aux-lr 1e-3",
    ),
    *(
        Refusal(flags, "leave it out")
        for flags in (
            "--use-distributed-optimizer",
            "--optimizer-cpu-offload",
            "--use-precision-aware-optimizer",
            "--optimizer-cpu-offload --use-precision-aware-optimizer",
            "--overlap-param-gather",
            "--overlap-param-gather --overlap-grad-reduce",
            "--overlap-param-gather-with-optimizer-step",
            "--use-torch-fsdp2",
            "--use-megatron-fsdp",
            "--fp16",
            "--use-mup",
            "--main-grads-dtype bf16",
            "--main-params-dtype fp16",
            "--exp-avg-dtype bf16",
            "--exp-avg-sq-dtype fp8",
            "--optimizer-cuda-graph",
        )
    ),
    Refusal("--normuon-momentum 1", r"must be in \[0, 1\)", "--normuon-momentum 0"),
    Refusal("--normuon-beta2 -0.5", r"must be in \[0, 1\)", "--normuon-beta2 0.5"),
    Refusal(
        "--polar-express-safety-factor 1",
        r"must be in \[0, 1\)",
        "--polar-express-safety-factor 0.1",
    ),
    Refusal(
        "--normuon-aux-lr 1e-4 --normuon-aux-min-lr 2e-4",
        "set --normuon-aux-min-lr to at most 0.0001",
        "--normuon-aux-lr 1e-4 --normuon-aux-min-lr 0.0001",
    ),
    Refusal(
        "--decoupled-lr 1e-4",
        "set --decoupled-min-lr to at most 0.0001",
        "--decoupled-lr 1e-4 --decoupled-min-lr 1e-4",
    ),
    Refusal("--decoupled-lr 1e-4", "or --decoupled-lr to at least 0.0006", "--decoupled-lr 0.0006"),
)


@pytest.fixture(scope="module")
def checked() -> Iterator[Any]:
    """Takes flags through the parser and the checks of both sides; returns the message, if any."""
    with pytest.MonkeyPatch.context() as patch, cpu_lane.activate(), skip_helper_build():
        for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "8")):
            patch.setenv(name, value)
        patch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        from vpmoe.model.meta import checked_arguments

        @functools.cache
        def check(flags: tuple[str, ...]) -> str | None:
            try:
                checked_arguments(list(flags))
            except ValueError as error:
                return str(error)
            return None

        yield check


def flags_of(words: str, without: Sequence[str]) -> tuple[str, ...]:
    """The lane's flags, the tiny preset's without some fields, and more."""
    preset = load_preset(TINY)
    given = {**preset.fields, "global_batch_size": 8}
    if not {"--mock-data", "--data-path"}.isdisjoint(words.split()):
        without = (*without, *_SPANS)  # as `--config` leaves them out
    fields = {name: value for name, value in given.items() if name not in without}
    return (*cpu_lane.DEFAULT_FLAGS, *Preset(preset.name, fields).to_flags(), *words.split())


@pytest.mark.parametrize("case", REFUSALS, ids=lambda c: f"{c.flags} {c.advice}")
def test_the_way_out_of_a_refusal_is_accepted(checked: Any, case: Refusal) -> None:
    message = checked(flags_of(case.flags, case.without))
    assert message is not None
    assert re.search(case.advice, message), message
    assert checked(flags_of(case.mended, case.without)) is None


def refusals_in(path: Path) -> Iterator[str]:
    """A pattern for each message that a module raises a ValueError with."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            (text,) = node.exc.args
            parts = text.values if isinstance(text, ast.JoinedStr) else [text]
            yield "".join(
                re.escape(part.value) if isinstance(part, ast.Constant) else ".*" for part in parts
            )


@pytest.mark.parametrize("module", CHECKED)
def test_the_sweep_has_every_refusal(checked: Any, module: str) -> None:
    messages = [checked(flags_of(case.flags, case.without)) or "" for case in REFUSALS]
    patterns = [
        p
        for p in refusals_in(REPOSITORY / module)
        if not p.startswith(tuple(re.escape(start) for start in ON_A_GPU))
    ]
    assert len(patterns) > 5
    assert [p for p in patterns if not any(re.fullmatch(p, m) for m in messages)] == []


MOCK = "--mock-data --eval-iters 0"
PLAIN = "--data-path {folder}/tokens"
SPLIT = "--split 100,0,0"
# Flags of data and tokenizer over the tiny preset; `{folder}` holds what they need.
OF_DATA = (
    Refusal("", "--mock-data on made-up tokens", MOCK),
    Refusal("--synth-kd-data {folder}/train --mock-data", "leave one out", MOCK),
    Refusal(f"{PLAIN} {SPLIT} --mock-data", "leave one out", f"{PLAIN} {SPLIT}"),
    Refusal(f"{MOCK} --kd-span-weight-final -1", "a number >= 0", MOCK),
    Refusal(
        "--synth-kd-data {folder}/train --kd-span-weight-reasoning 0 --kd-span-weight-final 0",
        "nothing to train on",
        "--synth-kd-data {folder}/train --kd-span-weight-reasoning 0",
    ),
    Refusal(f"{MOCK} --dataloader-type external", "leave them out", MOCK),
    Refusal(f"{PLAIN} {SPLIT} --multiple-validation-sets", "leave it out", f"{PLAIN} {SPLIT}"),
    Refusal(f"{MOCK} --kd-span-weight-final 2", "leave them out", MOCK),
    Refusal(f"{MOCK} --sft", "leave it out", MOCK),
    Refusal(PLAIN, "needs --split, such as 969,30,1", f"{PLAIN} --split 969,30,1"),
    Refusal(f"{PLAIN} --split 0,100,0", "see --train-data-path, --split", f"{PLAIN} {SPLIT}"),
    Refusal(f"{PLAIN} {SPLIT} --full-validation", "leave it out", f"{PLAIN} {SPLIT}"),
    Refusal(f"{PLAIN}.bin {SPLIT}", "give the path without .bin", f"{PLAIN} {SPLIT}"),
    Refusal(f"{PLAIN}x {SPLIT}", "give another path", f"{PLAIN} {SPLIT}"),
    Refusal(
        "--synth-kd-data {folder}/train --legacy-tokenizer --tokenizer-type NullTokenizer",
        "leave it out",
        "--synth-kd-data {folder}/train",
    ),
    Refusal("--synth-kd-data {folder}/valid", "a smaller --valid-fraction", MOCK),
    Refusal(
        "--synth-kd-data {folder}/train --full-validation",
        "build with --valid-fraction",
        "--synth-kd-data {folder}/train",
    ),
    Refusal(f"{MOCK} --legacy-tokenizer", "or leave it out", MOCK),
    Refusal(f"{MOCK} --tokenizer-type NullTokenizer", "--legacy-tokenizer lets", MOCK),
    Refusal(f"{MOCK} --padded-vocab-size 201216", "leave it out", MOCK),
    Refusal(f"{MOCK} --vocab-size 7", "leave it out", MOCK),
    Refusal(
        f"{MOCK} --tensor-model-parallel-size 3",
        "use a power of 2 of at most 128",
        MOCK,
    ),
)


@pytest.fixture(scope="module")
def checked_data(
    checked: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Refusal, str], str | None]:
    """Takes flags through the checks of tokenizer and data; returns the message, if any."""
    from vpmoe.arguments import training_parser
    from vpmoe.data.arguments import validate_data_args
    from vpmoe.data.build import build_dataset
    from vpmoe.tokenizer.arguments import validate_tokenizer_args

    del checked  # for the lane that it is inside of
    folder = tmp_path_factory.mktemp("data")
    rows = REPOSITORY / "data" / "sample" / "conversations.jsonl"
    for name, fraction in (("train", 0), ("valid", 1)):
        build_dataset([rows], folder / name, valid_fraction=fraction)
    for ending in ("idx", "bin"):
        (folder / f"tokens.{ending}").touch()

    def check(case: Refusal, words: str) -> str | None:
        words = words.replace("{folder}", str(folder))
        args = training_parser().parse_args(flags_of(words, case.without))
        try:
            validate_tokenizer_args(args)
            validate_data_args(args)
        except ValueError as error:
            return str(error)
        return None

    return check


@pytest.mark.parametrize("case", OF_DATA, ids=lambda c: f"{c.flags} {c.advice}")
def test_the_way_out_of_a_refusal_of_data_is_accepted(
    checked_data: Callable[[Refusal, str], str | None], case: Refusal
) -> None:
    message = checked_data(case, case.flags)
    assert message is not None
    assert case.advice in message
    assert checked_data(case, case.mended) is None


@pytest.mark.parametrize("module", ["vpmoe/data/arguments.py", "vpmoe/tokenizer/arguments.py"])
def test_the_sweep_of_data_has_every_refusal(
    checked_data: Callable[[Refusal, str], str | None], module: str
) -> None:
    messages = [checked_data(case, case.flags) or "" for case in OF_DATA]
    patterns = list(refusals_in(REPOSITORY / module))
    assert [p for p in patterns if not any(re.fullmatch(p, m) for m in messages)] == []


def test_every_module_of_flags_is_swept() -> None:
    swept = {*CHECKED, "vpmoe/data/arguments.py", "vpmoe/tokenizer/arguments.py"}
    found = REPOSITORY.glob("vpmoe/*/arguments.py")
    assert {str(path.relative_to(REPOSITORY)) for path in found} == swept


@pytest.mark.parametrize("preset", ["tiny", "dev", "6b"])
@pytest.mark.parametrize("rate", ["1e-2", "1e-4", "1e-6"])
def test_the_optimizers_example_is_accepted_on_every_preset(
    checked: Any, preset: str, rate: str
) -> None:
    """A minimum learning rate of a preset does not stand in the way of a lower maximum."""
    config = ["--config", str(REPOSITORY / f"configs/vpmoe-{preset}.toml")]
    example = (
        f"--optimizer normuon --normuon-aux-lr {rate} --normuon-momentum 0.95 "
        "--normuon-beta2 0.95 --polar-express-safety-factor 2e-2"
    ).split()
    for words in (example, [*example, "--lr", rate], ["--optimizer", "adam", "--lr", rate]):
        batch = [] if preset == "6b" else ["--global-batch-size", "64"]
        flags = expand_preset_flags([*config, *words, *batch])
        assert checked((*cpu_lane.DEFAULT_FLAGS, *flags)) is None
