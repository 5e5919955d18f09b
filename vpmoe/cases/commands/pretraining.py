"""`vpmoe pretrain` up to the training itself: what the flags become, and how they are refused."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from vpmoe.cases.commands.presets import BASE, preset
from vpmoe.cases.commands.session import Session

_PLAIN = "--data-path tokens"
_SPLIT = "--split 100,0,0"
_MOCK = "--mock-data"
_GRAPH = "--cuda-graph-impl full_iteration --no-check-for-nan-in-loss-and-grad"
_TPA = ("attention.use_tpa", "attention.tpa_rank", "attention.tpa_q_rank")
_NORMUON = ("optimizer.normuon_aux_lr", "optimizer.normuon_aux_min_lr")
_EXPERTS = tuple(f"experts.{name}" for name in BASE["experts"])
_LIMIT = ("experts.moe_router_num_groups", "experts.moe_router_group_topk")

# Words over the base preset, on mock data where they name none; fields that the flags are left
# without. What Megatron refuses by itself is Megatron's.
_REFUSED_BY_MODEL: Sequence[tuple[str, Sequence[str]]] = (
    ("--context-parallel-size 2", ()),
    ("--multi-latent-attention", ()),
    ("--mtp-num-layers 1", ()),
    ("--use-grouped-gemm-for-shared-expert", ()),
    ("--normalization LayerNorm", ()),
    ("", ("model.untie_embeddings_and_output_weights",)),
    ("--attention-dropout 0.1", ()),
    ("", ("model.disable_bias_linear",)),
    ("", ("model.disable_bias_linear", "experts.moe_shared_expert_intermediate_size")),
    ("--add-qkv-bias", ()),
    ("--fp8-format e4m3", ()),
    ("--cuda-graph-impl local", ()),
    (f"{_GRAPH} --optimizer adam --fp16", ()),
    (f"{_GRAPH} --rampup-batch-size 2 2 100", ()),
    ("--position-embedding-type learned_absolute", ()),
    ("--flash-decode", ()),
    ("--kv-channels 15", ()),
    ("--grapem-log-freq-scale 0", ()),
    ("--position-embedding-type none --grapem-per-head", ()),
    ("--position-embedding-type rope --no-grapem-learnable-freq", ()),
    ("--num-query-groups 3", ()),
    ("", ("attention.window_size", *_TPA)),
    ("", ("attention.no_rope_freq",)),
    ("--grape-a-with-rotation", ("attention.grape_a",)),
    ("", ("attention.use_tpa",)),
    ("", ("attention.window_size", "attention.window_attn_skip_freq", "attention.grape_a")),
    ("", ("attention.tpa_rank",)),
    ("", ("attention.tpa_q_rank",)),
    ("--tpa-rank 0", ()),
    ("--moe-router-group-score-topk 2", _EXPERTS),
    ("--moe-router-group-score-topk 2", _LIMIT),
    ("--moe-router-topk 5", ()),
    ("--moe-router-group-topk 2 --moe-router-topk 1", ()),
    ("--moe-router-group-score-topk 5", ()),
    ("--window-size x", ()),
    ("--window-size 0", ()),
    ("--window-size 4,1", ()),
)
_REFUSED_WITH_ADAM = (
    "--normuon-aux-lr 1e-3",
    "--normuon-aux-min-lr 1e-3",
    "--polar-express-coeffs-path none.json",
)
# Of four processes, of which this one is told that it is the first.
_REFUSED_AS_ONE_OF_FOUR: Sequence[tuple[str, Sequence[str]]] = (
    ("--tensor-model-parallel-size 4 --sequence-parallel --grapem-per-head", _TPA),
    ("--tensor-model-parallel-size 4 --sequence-parallel", _TPA),
    ("--tensor-model-parallel-size 4 --sequence-parallel", ()),
)
_REFUSED_BY_OPTIMIZER = (
    "--use-distributed-optimizer",
    "--optimizer-cpu-offload",
    "--use-precision-aware-optimizer",
    "--overlap-param-gather",
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
    "--normuon-momentum 1",
    "--normuon-beta2 -0.5",
    "--polar-express-safety-factor 1",
    "--normuon-aux-lr 1e-4 --normuon-aux-min-lr 2e-4",
    "--decoupled-lr 1e-4",
    "--decoupled-lr 1e-4 --decoupled-min-lr 2e-4",
    "--polar-express-coeffs-path none.json",
    "--polar-express-coeffs-path object.json",
    "--polar-express-coeffs-path pairs.json",
    "--polar-express-coeffs-path words.json",
    "--polar-express-coeffs-path empty.json",
    "--normuon-tp-mode some",
    "--loss-kernel some",
)
_REFUSED_BY_DATA = (
    "",
    f"--synth-kd-data train {_MOCK}",
    f"{_PLAIN} {_SPLIT} {_MOCK}",
    f"{_MOCK} --kd-span-weight-final -1",
    f"{_MOCK} --kd-span-weight-reasoning NaN",
    "--synth-kd-data train --kd-span-weight-reasoning 0 --kd-span-weight-final 0",
    f"{_MOCK} --dataloader-type external",
    f"{_PLAIN} {_SPLIT} --multiple-validation-sets",
    f"{_MOCK} --kd-span-weight-final 2",
    f"{_MOCK} --sft",
    f"{_MOCK} --fim-data",
    f"{_PLAIN} --split 0,100,0",
    f"{_PLAIN} {_SPLIT} --full-validation",
    f"{_PLAIN}.bin {_SPLIT}",
    f"{_PLAIN}x {_SPLIT}",
    "--synth-kd-data train --legacy-tokenizer --tokenizer-type NullTokenizer",
    "--synth-kd-data valid",
    "--synth-kd-data train --full-validation",
    "--synth-kd-data none",
    f"{_MOCK} --legacy-tokenizer",
    f"{_MOCK} --tokenizer-type NullTokenizer",
    f"{_MOCK} --padded-vocab-size 201216",
    f"{_MOCK} --vocab-size 7",
    f"{_MOCK} --tokenizer-model rows.jsonl",
    f"{_MOCK} --a-flag-of-nobody",
)
# What trains, and warns of a limit that limits nothing.
_ACCEPTED: Sequence[tuple[str, Sequence[str]]] = (
    ("--synth-kd-data train", ()),
    ("--synth-kd-data both --eval-iters 3", ()),
    (_MOCK, ()),
    (_PLAIN, ()),
    (f"{_PLAIN} {_SPLIT}", ()),
    (f"{_PLAIN} --split 90,10,0", ()),
    ("--train-data-path 1 tokens --valid-data-path 1 tokens", ()),
    ("--data-path s3://bucket/tokens --split 90,10,0", ()),
    (f"{_MOCK} --legacy-tokenizer --tokenizer-type NullTokenizer --vocab-size 100", ()),
    (f"{_MOCK} --optimizer adam", _NORMUON),
    (f"{_MOCK} --decoupled-lr 2e-3 --decoupled-min-lr 1e-3", ()),
    (f"{_MOCK} --window-size 15,0 --no-grapem-learnable-freq --grapem-per-head", ()),
    (f"{_MOCK} --kd-span-weight-final 1 --polar-express-coeffs-path triples.json", ()),
    (f"{_MOCK} --moe-router-group-topk 2", ()),
    (f"{_MOCK} --moe-router-num-groups 4 --moe-router-group-topk 2", ()),
    (_MOCK, ("experts.moe_router_group_topk",)),
    (f"{_MOCK} --moe-router-load-balancing-type sinkhorn", ()),
    (f"{_MOCK} --moe-router-topk 8 --moe-expert-capacity-factor 1", _LIMIT),
    (f"{_MOCK} --window-attn-skip-freq [0]*4 --no-rope-freq [1]*4", _TPA),
    (f"{_MOCK} --window-size 64 --position-embedding-type none", _TPA),
    (f"{_MOCK} --no-rope-freq [0]*4", ("attention.window_attn_skip_freq",)),
    (_MOCK, _EXPERTS),
)

# What the lane decides, what a start has by default, and what data turns off.
_STARTED = (
    "distributed_backend",
    "use_cpu_initialization",
    "transformer_impl",
    "moe_token_dispatcher_type",
    "cuda_graph_impl",
    "gradient_accumulation_fusion",
    "bias_dropout_fusion",
    "eval_interval",
    "eval_iters",
    "enable_one_logger",
)
# What stands before the preset, and after it.
_WITH_PRESET = (
    ("", ""),
    ("--seed 7 --lr 6e-3", "--tpa-rank 1 --lr 5e-3"),
    ("", "--lr 1e-4 --normuon-aux-lr 1e-4"),
    ("--optimizer=adam", ""),
    ("", "--legacy-tokenizer --tokenizer-type NullTokenizer --vocab-size 100"),
    ("--tpa-rank 1", "--no-grapem-learnable-freq"),
)


def record_pretraining(commands: Session) -> None:
    """Records every refusal of `vpmoe pretrain`, and what the flags of a training become."""
    _write_files(commands)
    commands.vpmoe("no preset", "pretrain", "--config", "configs/none.toml")
    commands.vpmoe("two presets", "pretrain", "--config", "a.toml", "--config", "b.toml")
    with _sources_read_once():
        for words, without in _REFUSED_BY_MODEL:
            _refused(commands, f"{_MOCK} {words}", without)
        with _first_of(3):
            _refused(commands, f"{_MOCK} --tensor-model-parallel-size 3 --sequence-parallel", _TPA)
        with _first_of(4):
            for words, without in _REFUSED_AS_ONE_OF_FOUR:
                _refused(commands, f"{_MOCK} {words}", without)
        for words in _REFUSED_BY_OPTIMIZER:
            _refused(commands, f"{_MOCK} {words}")
        for words in _REFUSED_WITH_ADAM:
            _refused(commands, f"{_MOCK} --optimizer adam {words}", _NORMUON)
        for words in _REFUSED_BY_DATA:
            _refused(commands, words)
        for words, without in _ACCEPTED:
            _accepted(commands, words, without)
        _with_preset(commands)
    commands.module(
        "as a module", "vpmoe.pretrain", ["--config", "configs/none.toml"], megatron_prints=True
    )
    _schedule_plan(commands)
    _flags(commands)
    _lanes(commands)


@contextlib.contextmanager
def _sources_read_once() -> Iterator[None]:
    """Megatron's parser reads the sources of its classes, which takes half of a command's time."""
    from vpmoe.runtime.patches import replaced

    with (
        replaced(inspect, "getsource", functools.cache(inspect.getsource)),
        replaced(ast, "parse", functools.cache(ast.parse)),
    ):
        yield


def _write_files(commands: Session) -> None:
    row = {"query": "a", "synthetic_reasoning": "b", "synthetic_answer": "c"}
    lines = [json.dumps(row | {"synth_id": str(number)}) for number in range(9)]
    Path("rows.jsonl").write_text("\n".join(lines))
    build = ("data", "build", "--input", "rows.jsonl", "--output")
    for name, fraction in (("train", "0"), ("valid", "1"), ("both", "0.5")):
        commands.vpmoe(f"build {name}", *build, name, "--valid-fraction", fraction)
    for ending in ("idx", "bin"):
        content = Path(f"train/train/shard_00_tokens.{ending}").read_bytes()
        Path(f"tokens.{ending}").write_bytes(content)
    coefficients = {
        "triples": [[3.4, -4.7, 1.8], [2.0, -1.5, 0.5]],
        "object": {"a": 1},
        "pairs": [[1.0, 2.0]],
        "words": [["a", "b", "c"]],
        "empty": [],
    }
    for name, value in coefficients.items():
        Path(f"{name}.json").write_text(json.dumps(value))


def _refused(commands: Session, words: str, without: Sequence[str] = ()) -> None:
    """A refusal, which is all that a command comes to: its record says so if it would train."""

    def train(program: str, *given: Any) -> None:
        print(f"{program}: it trains", file=sys.stderr)

    _over_base(commands, "refused", words, without, train)


def _accepted(commands: Session, words: str, without: Sequence[str]) -> None:
    """What comes to Megatron's loop: vpMoE's flags, the fields of presets, and providers."""
    seen: list[Any] = []
    name = _over_base(commands, "accepted", words, without, _kept(seen))
    commands.call(f"{name}: arguments", _all_started, commands, seen)


def _with_preset(commands: Session) -> None:
    """`--config` among other flags, which win."""
    Path("preset.toml").write_text(preset())
    for before, after in _WITH_PRESET:
        seen: list[Any] = []
        words = [*before.split(), "--config", "preset.toml", _MOCK, *after.split()]
        name = " ".join(words)
        with _in_place_of_training(_kept(seen)):
            commands.vpmoe(name, "pretrain", *words, megatron_prints=True)
        commands.call(f"{name}: arguments", _all_started, commands, seen)


def _kept(seen: list[Any]) -> Callable[..., None]:
    return lambda *given: seen.append(given)


def _all_started(commands: Session, seen: Sequence[Any]) -> list[Any]:
    return [_started(commands, *given) for given in seen]


def _over_base(
    commands: Session,
    kind: str,
    words: str,
    without: Sequence[str],
    train: Callable[..., Any],
) -> str:
    """Runs a command over the base preset's flags, some fields left out; returns its name."""
    from vpmoe.cli import main

    flags: list[str] = []
    for table, fields in BASE.items():
        for field, value in fields.items():
            if f"{table}.{field}" not in without:
                flag = "--" + field.replace("_", "-")
                flags += [flag] if value is True else [flag, str(value)]
    left_out = f" without {' '.join(place.partition('.')[2] for place in without)}"
    name = f"{kind}: {words.strip()}{left_out if without else ''}"
    with _in_place_of_training(train):
        commands.run(
            name,
            lambda given: main(["pretrain", *flags, *given]),
            words.split(),
            megatron_prints=True,
        )
    return name


def _started(
    commands: Session,
    program: str,
    args: Any,
    datasets: Any,
    forward_step: Any,
    model_provider: Any,
) -> Mapping[str, Any]:
    """What a training would start with, as JSON."""
    from vpmoe.arguments import training_parser
    from vpmoe.cases.fields import known_fields, plain

    fields = {
        name: plain(getattr(args, place)) for name, place in known_fields(training_parser()).items()
    }
    providers = (datasets, forward_step, model_provider)
    return {
        "program": program,
        **{name: getattr(args, name) for name in _STARTED},
        "providers": [f"{p.__module__}.{p.__qualname__}" for p in providers],
        "fields": {
            name: commands.masked(value) if isinstance(value, str) else value
            for name, value in fields.items()
        },
    }


@contextlib.contextmanager
def _in_place_of_training(train: Callable[..., Any]) -> Iterator[None]:
    """Has `vpmoe pretrain` call this where Megatron's loop would begin."""
    from vpmoe.megatron import start
    from vpmoe.runtime.patches import replaced

    with replaced(start, "run_pretrain", train):
        yield


def _first_of(processes: int) -> AbstractContextManager[Any]:
    """torchrun's environment of the first of some processes."""
    added = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    return patch.dict(os.environ, added)


def _schedule_plan(commands: Session) -> None:
    from vpmoe.pretrain import forward_step

    commands.call("a schedule plan", lambda: forward_step(iter(()), None, True))


def _flags(commands: Session) -> None:
    """vpMoE's own flags, and the options of its commands: kind, default, choices."""
    import argparse

    from vpmoe.arguments import training_parser
    from vpmoe.cases.fields import plain
    from vpmoe.cli import _parser
    from vpmoe.megatron.start import add_megatron_flags
    from vpmoe.runtime import detect_lane

    def told(action: argparse.Action) -> Mapping[str, Any]:
        return {
            "kind": type(action).__name__,
            "type": getattr(action.type, "__name__", None),
            "default": plain(action.default),
            "choices": None if action.choices is None else [str(c) for c in action.choices],
            "nargs": action.nargs,
            "required": action.required,
        }

    def options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, Any]]:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command, inner in action.choices.items():
                    yield from ((f"{command} {name}", found) for name, found in options(inner))
            else:
                yield "/".join(action.option_strings) or action.dest, told(action)

    with detect_lane().activate():
        theirs = add_megatron_flags(argparse.ArgumentParser(allow_abbrev=False))
    known = theirs._option_string_actions
    own = [a for a in training_parser()._actions if not set(a.option_strings) <= known.keys()]
    commands.call("flags of pretrain", lambda: {a.option_strings[0]: told(a) for a in own})
    commands.call("options of the commands", lambda: dict(options(_parser())))


def _lanes(commands: Session) -> None:
    """The lanes in words, and what stands for CUDA on the CPU's."""
    import torch

    from vpmoe.runtime import cpu_lane
    from vpmoe.runtime.lane import CPU, GPU, in_words
    from vpmoe.runtime.patches import replaced

    with replaced(torch.version, "cuda", "13.0"):
        commands.call("the lane of a machine without a card", in_words, CPU)
    with replaced(torch.version, "cuda", None):
        commands.call("the lane of a torch without CUDA", in_words, CPU)
    with (
        replaced(torch.cuda, "get_device_capability", lambda: (9, 0)),
        replaced(torch.cuda, "get_device_name", lambda: "a card"),
    ):
        commands.call("the lane of a card", in_words, GPU)
    commands.call("flags of the lanes", lambda: [CPU.default_flags, GPU.default_flags])
    with replaced(torch.cuda, "is_available", lambda: True):
        commands.call("the CPU's lane where there is a card", _entered, cpu_lane.activate)
    with CPU.activate():
        commands.call("in place of CUDA", _stand_ins)


def _entered(context: Callable[[], Any]) -> str:
    with context():
        return "entered"


def _stand_ins() -> dict[str, Any]:
    """What torch.cuda answers on the CPU, and where tensors go that are sent to a card."""
    import torch

    event, stream = torch.cuda.Event(), torch.cuda.Stream()
    with stream, torch.cuda.stream(stream):
        stream.wait_stream(torch.cuda.current_stream())
        stream.wait_event(event)
        recorded = stream.record_event() is not stream.record_event(event)
    event.record()
    event.synchronize()
    state = torch.cuda.get_rng_state()
    torch.cuda.manual_seed(7)
    first = torch.rand(3).tolist()
    torch.cuda.manual_seed_all(7)
    seeded = torch.rand(3).tolist() == first
    torch.cuda.set_rng_state(state)
    torch.cuda.synchronize()
    numbers = torch.ones(2, device="cuda")
    properties = torch.cuda.get_device_properties(0)
    return {
        "events": [event.query(), event.elapsed_time(event), recorded],
        "seeded": seeded,
        "restored": torch.equal(torch.cuda.get_rng_state(), state),
        "devices": [
            str(numbers.device),
            str(numbers.cuda().device),
            str(numbers.to("cuda:1").device),
            str(numbers.to(torch.device("cuda")).device),
            str(torch.cuda.current_device()),
        ],
        "types": [numbers.type(), str(numbers.type(torch.float64).dtype)],
        "card": [torch.cuda.device_count(), properties.name, properties.total_memory],
        "capability": torch.cuda.get_device_capability(),
        "memory": [torch.cuda.memory_allocated(), torch.cuda.max_memory_reserved()],
        "statistics": torch.cuda.memory_stats(),
    }
