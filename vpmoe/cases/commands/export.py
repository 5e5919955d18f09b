"""`vpmoe export`, `vpmoe import` and `vpmoe generate`: there and back, and every refusal.

The weights are made up: nothing trains. The vocabulary is small enough that a model takes no time,
so that prompts are of the few texts whose ids are in it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from validation.running.recorder import Recorder
from vpmoe.cases.commands.made_up import ARCHITECTURE, BIAS, GONE, Edits, edited, tensors_of
from vpmoe.cases.commands.reference import record_reference
from vpmoe.cases.commands.session import Session, session

_MODEL = "model-00001-of-00001.safetensors"
_STEPS = 7

# What makes a config another.
_GOOD_CONFIGS: Mapping[str, Edits] = {
    "a whole number for a fraction": {"architecture/grapem_log_freq_scale": 16},
}
_BAD_CONFIGS: Mapping[str, Edits] = {
    "another format": {"format": "other"},
    "another version": {"version": 2},
    "an unknown key": {"extra": 1},
    "no iteration": {"iteration": GONE},
    "a negative iteration": {"iteration": -1},
    "tensors in a list": {"tensors": []},
    "no entry of a tensor": {"tensors/" + BIAS: GONE},
    "an entry of no tensor": {"tensors/gate": {}},
    "an entry that is a text": {"tensors/" + BIAS: "x"},
    "an entry without a digest": {"tensors/" + BIAS + "/sha256": GONE},
    "a digest that is a number": {"tensors/" + BIAS + "/sha256": 3},
    "another shape": {"tensors/" + BIAS + "/shape": [9]},
    "another kind of number": {"tensors/" + BIAS + "/dtype": "float8"},
    "a file elsewhere": {"tensors/" + BIAS + "/file": "../secret.safetensors"},
    "a file that is a number": {"tensors/" + BIAS + "/file": 3},
    "another file": {"tensors/" + BIAS + "/file": "model-00002-of-00002.safetensors"},
    "another tokenizer": {"tokenizer/name": "NullTokenizer"},
    "no tokenizer": {"tokenizer": None},
    "a tokenizer that is a text": {"tokenizer": "o200k"},
    "stops in a text": {"tokenizer/stop_ids": "200002"},
    "stops of texts": {"tokenizer/stop_ids": ["200002"]},
    "a vocabulary that is a number": {"tokenizer/asset_sha256": 1},
    "an unknown key of the model": {"architecture/rotary_scale": 2},
    "a missing key of the model": {"architecture/qk_norm": GONE},
    "nothing for a switch": {"architecture/qk_norm": None},
    "a text for a number": {"architecture/hidden_size": "32"},
    "a switch for a number": {"architecture/hidden_size": True},
    "no finite number": {"architecture/norm_epsilon": float("inf")},
    "a negative number": {"architecture/norm_epsilon": -1e-5},
    "an object for a list": {"architecture/layers": {}},
    "no layers": {"architecture/layers": []},
    "a layer that is a number": {"architecture/layers/1": 3},
    "heads that do not divide": {"architecture/num_query_groups": 3},
    "an odd head": {"architecture/kv_channels": 7},
    "an unknown softmax": {"architecture/softmax": "sparse"},
    "unknown positions": {"architecture/position_embedding": "learned"},
    "unknown scores": {"architecture/experts/score_function": "tanh"},
    "TPA without ranks": {"architecture/tpa": None},
    "experts without a mixture": {"architecture/experts": None},
    "rotations of nothing": {"architecture/position_embedding": "none"},
    "a rank of zero": {"architecture/tpa/rank": 0},
    "a window of zero": {"architecture/layers/1/window": 0},
    "groups that do not divide": {"architecture/experts/groups": 3},
    "more groups than there are": {"architecture/experts/group_topk": 5},
    "more experts than in the groups": {"architecture/experts/topk": 5},
    "more experts than score": {"architecture/experts/group_score_topk": 5},
    "a bias of a softmax": {"architecture/experts/score_function": "softmax"},
    "no expert at all": {"architecture/experts/count": 0},
}
# Configs whose digest is not mended.
_CHANGED_CONFIGS: Mapping[str, Edits] = {
    "another number of steps": {"iteration": _STEPS + 1},
    "another digest": {"digest": "0" * 64},
}
# Layers that no flags of a training build.
_NOT_IMPORTED: Mapping[str, Edits] = {
    "two windows": {"architecture/layers/1/window": 5},
    "a biased window": {"architecture/layers/1/alibi": True},
}
# Of the training's arguments.
_BAD_ARGUMENTS: Mapping[str, Edits] = {
    "swiglu": {"swiglu": True},
    "capacity": {"moe_expert_capacity_factor": 1.0},
    "a gate": {"moe_shared_expert_gate": True},
    "a part of RoPE": {"position_embedding_type": "rope", "rotary_percent": 0.5},
    "Sinkhorn": {"moe_router_load_balancing_type": ["seq_aux_loss", "sinkhorn"]},
    "other scores": {"moe_router_score_function": "sqrtsoftplus"},
    "no argument of vpMoE": {"use_tpa": GONE},
    "one layer more": {"num_layers": 5, "moe_layer_freq": 1},
    "another rank": {"tpa_q_rank": 4},
    "no bias": {"moe_router_enable_expert_bias": False},
    "a narrower expert": {"moe_shared_expert_intermediate_size": 20},
}
_ARGUMENTS: Mapping[str, Edits] = {
    "as they are": {},
    "another tokenizer": {"tokenizer_type": "NullTokenizer"},
    "values of no effect": {"mtp_num_layers": 0, "qk_l2_norm": None},
}


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Runs every command with good input and with each kind of bad input.

    Args:
        recorder: of this process.
        settings: none.
    """
    del settings
    with session(recorder, "export") as commands:
        _round_trip(commands)
        _generate(commands)
        _bad_exports(commands)
        _bad_checkpoints(commands)
        _bad_arguments(commands)
    record_reference(recorder)


def _write(folder: str) -> Any:
    """Writes an export of made-up weights, of three kinds of numbers."""
    import torch

    from vpmoe.export.architecture import parse_architecture
    from vpmoe.export.convert import TOKENIZER
    from vpmoe.export.folder import Tokenizer, write_export
    from vpmoe.tokenizer.asset import ASSET_SHA256
    from vpmoe.tokenizer.special import CALL, ENDOFTEXT, RETURN

    model = parse_architecture(ARCHITECTURE)
    tensors = tensors_of(model)
    halves = {
        "embedding.word_embeddings.weight": torch.bfloat16,
        "output_layer.weight": torch.float16,
    }
    return write_export(
        Path(folder),
        model,
        Tokenizer(TOKENIZER, ASSET_SHA256, (ENDOFTEXT, RETURN, CALL)),
        _STEPS,
        dict.fromkeys(tensors, torch.float32) | halves,
        lambda names: {name: tensors[name] for name in names},
    )


def _round_trip(commands: Session) -> None:
    from vpmoe.export import folder
    from vpmoe.runtime.patches import replaced

    vpmoe = commands.vpmoe
    commands.call("made", lambda: _write("made").digest)
    vpmoe("import", "import", "made", "imported")
    vpmoe("export", "export", "imported", "again", watch="again")
    vpmoe("export one checkpoint", "export", "imported/release", "release", watch="release")
    vpmoe("export in fp32", "export", "imported", "wide", "--dtype", "fp32", watch="wide")
    with replaced(folder, "FILE_BYTES", 4096):
        vpmoe("export in several files", "export", "imported", "several", watch="several")
    vpmoe("generate from several files", "generate", "several", "--prompt", "5", "--tokens", "2")
    vpmoe("export in another dtype", "export", "imported", "half", "--dtype", "fp16")
    vpmoe("export onto a folder", "export", "imported", "made", watch="made")
    vpmoe("import onto a folder", "import", "made", "imported")
    vpmoe("import no export", "import", "imported", "new")
    vpmoe("export no checkpoint", "export", "made", "new")
    vpmoe("export nothing", "export")
    for command in ("export", "import"):
        with _interrupted():
            vpmoe(f"{command} interrupted", command, "imported", "new")
        commands.run(f"{command} to a closed pipe", _closed, [command])


def _generate(commands: Session) -> None:
    generate = ("generate", "made", "--prompt")
    commands.vpmoe("generate", *generate, "5", "--tokens", "6")
    commands.vpmoe("generate to JSON", *generate, "5", "--tokens", "6", "--json")
    _reconfigured("made", "stopping", {"tokenizer/stop_ids": [*range(96)]})
    commands.vpmoe(
        "generate until a stop", "generate", "stopping", "--prompt", "5", "--tokens", "6", "--json"
    )
    commands.vpmoe("generate from an id outside", *generate, "hello", "--tokens", "1")
    commands.vpmoe(
        "generate from a control token", *generate, "<|end|>", "--tokens", "1", "--special"
    )
    commands.vpmoe("generate from nothing", *generate, "", "--tokens", "1")
    commands.vpmoe("generate nothing", *generate, "5", "--tokens", "0")
    commands.vpmoe("generate too much", *generate, "5", "--tokens", "24")
    commands.vpmoe("generate some", *generate, "5", "--tokens", "some")
    Path("other").write_bytes(b"aGVsbG8= 0\n")
    commands.vpmoe(
        "generate with a vocabulary", *generate, "5", "--tokens", "1", "--vocabulary", "other"
    )
    commands.vpmoe(
        "generate with no export", "generate", "imported", "--prompt", "5", "--tokens", "1"
    )
    with _interrupted():
        commands.vpmoe("generate interrupted", *generate, "5", "--tokens", "1")


def _reconfigured(source: str, target: str, edits: Edits, mended: bool = True) -> None:
    """A copy of an export, its config changed; `mended` gives it its digest again."""
    from vpmoe.export import folder

    Path(target).mkdir()
    for path in Path(source).glob("*.safetensors"):
        os.link(path, Path(target) / path.name)
    document = json.loads((Path(source) / "config.json").read_text())
    document = edited(document, edits, "/")
    if mended:
        body = {name: value for name, value in document.items() if name != "digest"}
        document["digest"] = folder._digest(body)
    (Path(target) / "config.json").write_text(json.dumps(document))


def _bad_exports(commands: Session) -> None:
    """Configs and tensors that are not what the other says."""
    import torch
    from safetensors.torch import load_file, save_file

    def refused(name: str, folder: str) -> None:
        commands.vpmoe(f"refused: {name}", "generate", folder, "--prompt", "5", "--tokens", "1")

    for mended, configs in ((True, {**_GOOD_CONFIGS, **_BAD_CONFIGS}), (False, _CHANGED_CONFIGS)):
        for name, edits in configs.items():
            folder = name.replace(" ", "-")
            _reconfigured("made", folder, edits, mended)
            refused(name, folder)
    for name, content in (
        ("a config of no JSON", b"{"),
        ("a config of a list", b"[]"),
        ("a config of no UTF-8", b"\xff"),
    ):
        folder = name.replace(" ", "-")
        Path(folder).mkdir()
        (Path(folder) / "config.json").write_bytes(content)
        refused(name, folder)
    for name, edits in _NOT_IMPORTED.items():
        folder = name.replace(" ", "-")
        _reconfigured("made", folder, edits)
        commands.vpmoe(f"import {name}", "import", folder, f"{folder}-imported")

    def filled(value: float) -> Callable[[dict[str, Any]], None]:
        return lambda tensors: tensors.update({BIAS: torch.full((8,), value)})

    changes: Mapping[str, Callable[[dict[str, Any]], Any]] = {
        "a missing tensor": lambda tensors: tensors.pop(BIAS),
        "an unknown tensor": lambda tensors: tensors.update(gate=torch.ones(1)),
        "a short tensor": lambda tensors: tensors.update({BIAS: torch.ones(3)}),
        "a tensor in fp64": lambda tensors: tensors.update({BIAS: tensors[BIAS].double()}),
        "another tensor": filled(0.25),
        "an infinite tensor": filled(float("inf")),
    }
    for name, change in changes.items():
        folder = name.replace(" ", "-")
        _reconfigured("made", folder, {})
        tensors = {key: tensor.clone() for key, tensor in load_file(f"made/{_MODEL}").items()}
        change(tensors)
        (Path(folder) / _MODEL).unlink()
        save_file(tensors, Path(folder) / _MODEL)
        refused(name, folder)
    _reconfigured("made", "a-cut-file", {})
    Path("a-cut-file", _MODEL).unlink()
    Path("a-cut-file", _MODEL).write_bytes(b"\0" * 100)
    refused("a cut file", "a-cut-file")
    Path("a-cut-file", _MODEL).unlink()
    refused("a missing file", "a-cut-file")
    _without_tokenizer(commands)


def _without_tokenizer(commands: Session) -> None:
    """An export that has no tokenizer of vpMoE's, up to where Megatron saves the checkpoint."""
    from vpmoe.export.convert import _fill
    from vpmoe.megatron.points import SAVE_SHARDED

    saved: list[Any] = []
    _reconfigured("made", "no-tokenizer-to-import", {"tokenizer": None})
    with SAVE_SHARDED.wrapped(lambda original: lambda content, folder: saved.append(content)):
        commands.vpmoe("import without a tokenizer", "import", "no-tokenizer-to-import", "without")
    commands.call(
        "imported without a tokenizer",
        lambda: [
            [content["args"].tokenizer_type, content["iteration"], sorted(content["model"])]
            for content in saved
        ],
    )
    place = SimpleNamespace(key="gate", global_shape=(3,))
    commands.call("a tensor that does not fit", _fill, place, {"gate": _anything_of(2)})


def _anything_of(length: int) -> Any:
    import torch

    return torch.ones(length)


class _Named:
    """Pickled as a call, which no reader may make."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("called"),)


def _bad_checkpoints(commands: Session) -> None:
    """Folders and files that are no checkpoint, or not a whole one."""
    refused = commands.vpmoe
    tracker = Path("tracked/latest_checkpointed_iteration.txt")
    tracker.parent.mkdir()
    for name, content in (
        ("words", b"soon"),
        ("a step", b"12"),
        ("no text", b"\xff"),
        ("a release", b"release"),
    ):
        tracker.write_bytes(content)
        refused(f"export what {name} tracks", "export", "tracked", "new")
    index = Path("imported/release/.metadata").read_bytes()
    for name, content in (
        ("empty", b""),
        ("of no pickle", b"no pickle"),
        ("of a number", pickle.dumps(3)),
        ("of a call", pickle.dumps(_Named())),
        ("that leads outside", index.replace(b"__0_0.distcp", b"../_0.distcp")),
        ("that leads to the root", index.replace(b"__0_0.distcp", b"/_0_0.distcp")),
        ("of other arguments", index.replace(b"common_state/shard_0_1", b"common_stat_/shard_0_1")),
    ):
        folder = f"index-{name}".replace(" ", "-")
        _linked("imported/release", folder)
        Path(folder, ".metadata").unlink()
        Path(folder, ".metadata").write_bytes(content)
        refused(f"export an index {name}", "export", folder, "new", watch=".")
    for name, damaged in (("short", b"short"), ("missing", None)):
        folder = f"data-{name}"
        _linked("imported/release", folder)
        for path in Path(folder).glob("*.distcp"):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
        refused(f"export {name} data", "export", folder, "new")
    for name, common in (
        ("a list", [[]]),
        ("no arguments", [{"iteration": 1}]),
        ("words for arguments", {"args": "x"}),
    ):
        with _loaded(common):
            refused(f"export {name} as common state", "export", "imported", "new")


def _linked(source: str, target: str) -> None:
    Path(target).mkdir()
    for path in Path(source).iterdir():
        os.link(path, Path(target) / path.name)


@contextlib.contextmanager
def _loaded(common: Any) -> Iterator[None]:
    """Checkpoints whose common state is this."""
    from vpmoe.export.checkpoint import COMMON, Checkpoint
    from vpmoe.runtime.patches import replaced

    original = Checkpoint._load

    def load(self: Checkpoint, state: dict[str, Any]) -> dict[str, Any]:
        return {COMMON: common} if COMMON in state else original(self, state)

    with replaced(Checkpoint, "_load", load):
        yield


def _bad_arguments(commands: Session) -> None:
    """Checkpoints whose arguments or tensors are others than they were saved with."""
    from vpmoe.export.checkpoint import Checkpoint
    from vpmoe.export.flags import ASSUMED, ASSUMED_OF_ROPE

    for name, edits in {**_BAD_ARGUMENTS, **_ARGUMENTS}.items():
        folder = f"arguments-{name}".replace(" ", "-")
        with _opened(functools.partial(_set_arguments, edits)):
            commands.vpmoe(f"export: {name}", "export", "imported", folder)
    for name, change in _CHANGES.items():
        with _opened(change):
            commands.vpmoe(f"export: {name}", "export", "imported", "new")
    args = Checkpoint(Path("imported")).args
    for name, value in {**ASSUMED, **ASSUMED_OF_ROPE}.items():
        given = copy.copy(args)
        other = {True: False, False: True, "RMSNorm": "LayerNorm"}.get(value, 3)
        _set(given, {"position_embedding_type": "rope", name: other})
        commands.call(f"assumed: {name}", _architecture, given)
    for name, edits in (
        ("layers by number", {"no_rope_freq": 4, "window_attn_skip_freq": 4, "moe_layer_freq": 2}),
        ("no window", {"window_size": None, "no_rope_freq": None}),
        ("no groups", {"moe_router_num_groups": None, "moe_router_group_topk": None}),
        ("groups by their two best", {"moe_router_group_score_topk": 2}),
        ("one query group", {"group_query_attention": False}),
        ("dense", {"num_experts": None}),
    ):
        given = copy.copy(args)
        _set(given, edits)
        commands.call(f"arguments: {name}", _architecture, given)


def _architecture(args: Any) -> Mapping[str, Any]:
    from vpmoe.export.flags import architecture_of

    return architecture_of(args).as_dict()


def _set_arguments(edits: Edits, found: Any) -> None:
    _set(found.args, edits)


def _set(args: Any, edits: Edits) -> None:
    for name, value in edits.items():
        if value is GONE:
            delattr(args, name)
        else:
            setattr(args, name, value)


def _not_finite(found: Any) -> None:
    read = found.read

    def spoilt(names: Any) -> dict[str, Any]:
        tensors: dict[str, Any] = read(names)
        tensors["decoder.layers.2.mlp.router.weight"][3, 5] = float("nan")
        return tensors

    found.read = spoilt


def _breaks(found: Any) -> None:
    from vpmoe.export.architecture import ExportError

    def read(names: Any) -> Any:
        raise ExportError(f"{found.folder}: it breaks")

    found.read = read


_CHANGES: Mapping[str, Callable[[Any], None]] = {
    "a tensor that is not finite": _not_finite,
    "a tensor of fp64": lambda found: found.dtypes.update({BIAS: __import__("torch").float64}),
    "a file that breaks": _breaks,
    "a tensor more": lambda found: found.shapes.update(gate=(1,)),
    "a tensor less": lambda found: found.shapes.pop(BIAS),
}


@contextlib.contextmanager
def _opened(change: Callable[[Any], Any]) -> Iterator[None]:
    """Checkpoints that are changed as they are opened."""
    from vpmoe.export import convert
    from vpmoe.export.checkpoint import Checkpoint
    from vpmoe.runtime.patches import replaced

    def opened(path: Path) -> Checkpoint:
        found = Checkpoint(path)
        change(found)
        return found

    with replaced(convert, "Checkpoint", opened):
        yield


@contextlib.contextmanager
def _interrupted() -> Iterator[None]:
    """Ctrl-C where a command opens what it reads."""
    from vpmoe.export import convert, folder
    from vpmoe.runtime.patches import replaced

    def stop(*given: Any) -> Any:
        raise KeyboardInterrupt

    with (
        replaced(convert, "Checkpoint", stop),
        replaced(convert, "open_export", stop),
        replaced(folder, "open_export", stop),
    ):
        yield


def _closed(words: list[str]) -> int:
    """A command whose reader has seen enough before it prints."""
    from vpmoe.cli import main
    from vpmoe.export import convert
    from vpmoe.runtime.patches import replaced

    def close(*given: Any, **named: Any) -> Any:
        raise BrokenPipeError

    with replaced(convert, "export_checkpoint", close), replaced(convert, "import_export", close):
        return main([*words, "imported", "new"])
