"""Checkpoints and exports on disk: there and back bit for bit, and every damage named."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vpmoe.cli import main
from vpmoe.export import folder as folder_module
from vpmoe.export.architecture import ExportError, tensor_shapes
from vpmoe.export.checkpoint import Checkpoint
from vpmoe.export.convert import export_checkpoint, import_export
from vpmoe.export.flags import architecture_of
from vpmoe.export.folder import open_export, write_export

Build = Callable[..., AbstractContextManager[Any]]
_MODEL = "model-00001-of-00001.safetensors"
_BIAS = "decoder.layers.2.mlp.router.expert_bias"


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def _redigest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a config as someone would who also mends its digest."""
    path = folder / "config.json"
    document = json.loads(path.read_text())
    change(document)
    body = {name: value for name, value in document.items() if name != "digest"}
    document["digest"] = folder_module._digest(body)
    path.write_text(json.dumps(document))


# There and back


def test_export_import_export_is_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    import_export(exported, tmp_path / "imported")
    again = export_checkpoint(tmp_path / "imported", tmp_path / "again")
    assert again.iteration == 7
    assert _digests(tmp_path / "again") == _digests(exported)


def test_every_tensor_of_the_checkpoint_is_exported_as_it_is(
    checkpoint: Path, exported: Path
) -> None:
    opened, export = Checkpoint(checkpoint), open_export(exported)
    assert opened.shapes == {name: t.shape for name, t in export.tensors.items()}
    saved, tensors = opened.read(opened.shapes), export.read()
    for name, tensor in tensors.items():
        assert tensor.dtype == saved[name].dtype, name
        assert torch.equal(tensor, saved[name]), name


@pytest.mark.parametrize("fp32", [False, True])
def test_half_precision_is_kept_or_widened_exactly(
    build: Build, parts: dict[str, list[str]], tmp_path: Path, fp32: bool
) -> None:
    flags = [*parts["body"], *parts["attention"], *parts["experts"], "--bf16"]
    with build(flags, torch.bfloat16) as built:
        built.save(tmp_path / "checkpoint")
        weights = built.tensors()
    export = export_checkpoint(tmp_path / "checkpoint", tmp_path / "export", fp32=fp32)
    tensors = export.read()
    for name, weight in weights.items():
        assert tensors[name].dtype == (torch.float32 if fp32 else weight.dtype), name
        assert torch.equal(tensors[name].to(weight.dtype), weight), name
    assert weights["grapem.phi"].dtype == torch.float32
    import_export(tmp_path / "export", tmp_path / "imported")
    export_checkpoint(tmp_path / "imported", tmp_path / "again")
    assert _digests(tmp_path / "again") == _digests(tmp_path / "export")


def test_a_large_export_is_several_files(
    checkpoint: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "FILE_BYTES", 20_000)
    export = export_checkpoint(checkpoint, tmp_path / "export")
    files = {tensor.file for tensor in export.tensors.values()}
    assert len(files) > 2
    assert files | {"config.json"} == set(_digests(tmp_path / "export"))
    for name, tensor in open_export(tmp_path / "export").read().items():
        assert torch.equal(tensor, open_export(exported).read()[name])


def test_one_checkpoint_of_several_can_be_named(checkpoint: Path, tmp_path: Path) -> None:
    export = export_checkpoint(checkpoint / "iter_0000007", tmp_path / "export")
    assert export.iteration == 7


# What is refused of checkpoints


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--swiglu"], "--swiglu"),
        (["--moe-shared-expert-gate"], "--moe-shared-expert-gate"),
        (["--moe-expert-capacity-factor", "1.0"], "--moe-expert-capacity-factor"),
        (["--moe-router-score-function", "sqrtsoftplus"], "score_function: 'sqrtsoftplus'"),
    ],
)
def test_flags_that_an_export_does_not_describe_are_named(
    checkpoint: Path, flags: list[str], words: str
) -> None:
    args = argparse.Namespace(**vars(Checkpoint(checkpoint).args))
    name = flags[0].removeprefix("--").replace("-", "_")
    value: Any = flags[1] if len(flags) > 1 else True
    setattr(args, name, float(value) if value == "1.0" else value)
    with pytest.raises(ExportError, match=words):
        architecture_of(args)


def test_another_kind_of_balancing_is_named(checkpoint: Path) -> None:
    args = argparse.Namespace(**vars(Checkpoint(checkpoint).args))
    args.moe_router_load_balancing_type = ["seq_aux_loss", "sinkhorn"]
    with pytest.raises(ExportError, match="'sinkhorn'"):
        architecture_of(args)


def test_arguments_of_another_training_are_refused(checkpoint: Path) -> None:
    args = argparse.Namespace(**vars(Checkpoint(checkpoint).args))
    del args.use_tpa
    with pytest.raises(ExportError, match="no use_tpa"):
        architecture_of(args)


@pytest.fixture
def lying(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Has checkpoints changed as they are opened, by a function of an open one."""
    from vpmoe.export import convert

    def start(change: Callable[[Checkpoint], None]) -> None:
        def opened(path: Path) -> Checkpoint:
            found = Checkpoint(path)
            change(found)
            return found

        monkeypatch.setattr(convert, "Checkpoint", opened)

    return start


def test_a_tensor_that_is_not_finite_is_named(
    checkpoint: Path, lying: Callable[[Any], None], tmp_path: Path
) -> None:
    def spoil(opened: Any) -> None:
        read = opened.read

        def spoilt(names: list[str]) -> dict[str, torch.Tensor]:
            tensors: dict[str, torch.Tensor] = read(names)
            tensors["decoder.layers.2.mlp.router.weight"][3, 5] = float("nan")
            return tensors

        opened.read = spoilt

    lying(spoil)
    words = r"iter_0000007: tensor decoder.layers.2.mlp.router.weight: 1 of 256 .* at \[3, 5\]"
    with pytest.raises(ExportError, match=words):
        export_checkpoint(checkpoint, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"moe_router_enable_expert_bias": False},
            f"tensor {_BIAS.replace('2', '1')}: an export does not describe",
        ),
        (
            {"moe_shared_expert_intermediate_size": 20},
            r"shared_experts.linear_fc1.weight: shape \[12, 32\], but .* give \[20, 32\]",
        ),
        ({"num_layers": 5, "moe_layer_freq": 1}, "tensor decoder.layers.0.mlp.router.weight: mis"),
        ({"tpa_q_rank": 4}, r"a_q: shape \[12, 32\], but .* give \[16, 32\]"),
        ({"softmax_type": "vanilla"}, "core_attention.softmax_offset: an export does not"),
    ],
)
def test_arguments_that_the_tensors_contradict(
    checkpoint: Path,
    lying: Callable[[Any], None],
    tmp_path: Path,
    changes: dict[str, Any],
    words: str,
) -> None:
    lying(lambda opened: vars(opened.args).update(changes))
    with pytest.raises(ExportError, match=words):
        export_checkpoint(checkpoint, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no checkpoint"):
        Checkpoint(tmp_path / "nothing")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("soon")
    with pytest.raises(ExportError, match="expected a number of steps, found 'soon'"):
        Checkpoint(tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("12")
    with pytest.raises(ExportError, match="iter_0000012: no torch_dist checkpoint"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (".metadata", b""),
        (".metadata", b"no pickle"),
        ("__0_0.distcp", b"short"),
        ("__0_0.distcp", None),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(
    checkpoint: Path, tmp_path: Path, file: str, content: bytes | None
) -> None:
    path = Path(shutil.copytree(checkpoint, tmp_path / "copy")) / "iter_0000007"
    (path / file).unlink()
    if content is not None:
        (path / file).write_bytes(content)
    with pytest.raises(ExportError, match="iter_0000007"):
        export_checkpoint(path, tmp_path / "export")
    assert not (tmp_path / "export").exists()


class _Bomb:
    """Unpickled without a list of what may be named, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_an_index_cannot_run_code(checkpoint: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(checkpoint, tmp_path / "copy")) / "iter_0000007"
    (path / ".metadata").write_bytes(pickle.dumps(_Bomb(tmp_path / "exploded")))
    with pytest.raises(ExportError, match="which no checkpoint's index holds"):
        Checkpoint(path)
    assert not (tmp_path / "exploded").exists()


def test_arguments_cannot_run_code(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = io.BytesIO()
    torch.save([{"args": _Bomb(tmp_path / "exploded")}], bomb)

    def swap(planner: Any, item: Any, value: Any) -> None:
        load(planner, item, io.BytesIO(bomb.getvalue()))

    from vpmoe.export import checkpoint as module

    load = module._Planner.load_bytes
    monkeypatch.setattr(module._Planner, "load_bytes", swap)
    with pytest.raises(ExportError, match="iter_0000007"):
        Checkpoint(checkpoint)
    assert not (tmp_path / "exploded").exists()


# What is refused of exports


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", "other", "format: no vpmoe-export"),
        ("version", 2, "version: 2; this vpMoE reads version 1"),
        ("iteration", -1, "iteration: expected a number of steps"),
        ("iteration", 8, "digest: not that of the content"),
        ("extra", 1, "extra: unknown key"),
        ("digest", "0" * 64, "digest: not that of the content"),
    ],
)
def test_a_changed_config_is_refused(copy: Path, key: str, value: Any, words: str) -> None:
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ExportError, match=f"config.json: {words}"):
        open_export(copy)


@pytest.mark.parametrize(
    ("where", "key", "value", "words"),
    [
        ((), "rotary_scale", 2, "architecture.rotary_scale: unknown key"),
        ((), "qk_norm", None, "architecture.qk_norm: expected bool, found None"),
        ((), "hidden_size", "32", "architecture.hidden_size: expected int, found '32'"),
        ((), "hidden_size", True, "architecture.hidden_size: expected int, found True"),
        ((), "num_query_groups", 3, "architecture.num_query_groups: 3 does not divide 4"),
        ((), "softmax", "sparse", "architecture.softmax: 'sparse' is none of"),
        ((), "norm_epsilon", -1e-5, "architecture.norm_epsilon: must be positive"),
        ((), "layers", [], "architecture.layers: empty"),
        ((), "tpa", None, r"layers\[0\].tpa: true, but architecture.tpa is null"),
        ((), "position_embedding", "none", r"layers\[0\].rotates: true, but"),
        (("layers", 1), "window", 0, r"layers\[1\].window: must be positive"),
        (("layers", 1), "alibi", "no", r"layers\[1\].alibi: expected bool"),
        (("experts",), "topk", 9, "experts.topk: 9 exceeds"),
        (("experts",), "groups", 3, "experts.groups: 3 groups"),
        (("tpa",), "rank", 0, "tpa.rank: must be positive"),
    ],
)
def test_a_config_that_contradicts_itself_is_named(
    copy: Path, where: tuple[Any, ...], key: str, value: Any, words: str
) -> None:
    def change(document: dict[str, Any]) -> None:
        place = document["architecture"]
        for step in where:
            place = place[step]
        place[key] = value

    _redigest(copy, change)
    with pytest.raises(ExportError, match=words):
        open_export(copy)


@pytest.mark.parametrize("key", ["qk_norm", "layers", "experts", "tpa", "vocab_size"])
def test_a_key_that_is_missing_is_named(copy: Path, key: str) -> None:
    _redigest(copy, lambda document: document["architecture"].pop(key))
    with pytest.raises(ExportError, match=f"architecture.{key}: missing"):
        open_export(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(_BIAS), f"tensor {_BIAS}: missing"),
        (lambda t: t.update(gate=torch.ones(1)), "tensor gate: not in config.json"),
        (lambda t: t.update({_BIAS: torch.ones(3)}), rf"tensor {_BIAS}: float32 \[3\], but"),
        (lambda t: t.update({_BIAS: t[_BIAS].double()}), f"tensor {_BIAS}: float64"),
        (lambda t: t[_BIAS].add_(1), f"tensor {_BIAS}: its bytes are not those"),
        (lambda t: t[_BIAS].fill_(float("inf")), f"tensor {_BIAS}: 8 of 8 entries are not finite"),
    ],
)
def test_a_changed_tensor_is_named(copy: Path, change: Any, words: str) -> None:
    # Clones, since what is loaded may be a view of the file that is written.
    tensors = {name: tensor.clone() for name, tensor in load_file(copy / _MODEL).items()}
    change(tensors)
    save_file(tensors, copy / _MODEL)
    with pytest.raises(ExportError, match=f"{_MODEL}: {words}"):
        open_export(copy).read()


def test_a_tensor_that_the_config_lacks_or_adds_is_named(copy: Path) -> None:
    entry: dict[str, Any] = {}
    _redigest(copy, lambda document: entry.update(document["tensors"].pop(_BIAS)))
    with pytest.raises(ExportError, match=rf"tensors.{_BIAS}: missing"):
        open_export(copy)
    _redigest(copy, lambda document: document["tensors"].update({_BIAS: entry, "gate": entry}))
    with pytest.raises(ExportError, match=r"tensors\.gate: unknown to this architecture"):
        open_export(copy)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "other.bin", 3])
def test_an_export_reads_its_own_files_alone(copy: Path, file: Any) -> None:
    _redigest(copy, lambda document: document["tensors"][_BIAS].update(file=file))
    with pytest.raises(ExportError, match=rf"{_BIAS}.file: .* is no file of an export"):
        open_export(copy)


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 100])
def test_a_missing_or_cut_file_is_named(copy: Path, content: bytes | None) -> None:
    (copy / _MODEL).unlink()
    if content is not None:
        (copy / _MODEL).write_bytes(content)
    with pytest.raises(ExportError, match=_MODEL):
        open_export(copy).read()


def test_layers_that_no_flags_build_are_not_imported(copy: Path, tmp_path: Path) -> None:
    _redigest(copy, lambda d: d["architecture"]["layers"][1].update(window=5))
    with pytest.raises(ExportError, match=r"windows .*vpMoE has one"):
        import_export(copy, tmp_path / "imported")
    _redigest(copy, lambda d: d["architecture"]["layers"][1].update(window=6, alibi=True))
    with pytest.raises(ValueError, match="no flags of `vpmoe pretrain` build these layers"):
        import_export(copy, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


# Folders


def test_what_exists_is_not_overwritten(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there: exists already"):
        export_checkpoint(checkpoint, tmp_path / "there")
    with pytest.raises(FileExistsError, match="there: exists already"):
        import_export(exported, tmp_path / "there")
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_a_write_that_fails_leaves_nothing(exported: Path, tmp_path: Path) -> None:
    export = open_export(exported)
    tensors = export.read()
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}

    def write() -> None:
        write_export(
            tmp_path / "new",
            export.architecture,
            None,
            1,
            dtypes,
            lambda names: {name: tensors[name] for name in names},
        )

    tensors["output_layer.weight"] = torch.ones(2, 2)
    with pytest.raises(ExportError, match=r"output_layer.weight: shape \[2, 2\]"):
        write()
    tensors["output_layer.weight"] = torch.full(
        tensor_shapes(export.architecture)["output_layer.weight"], 1e39, dtype=torch.float64
    )
    with pytest.raises(ExportError, match=r"output_layer\.weight as float32: 2048 of 2048"):
        write()
    assert list(tmp_path.iterdir()) == []


# The commands


def test_refusals_are_exit_2_and_one_line(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = str(tmp_path / "nothing")
    for words in (
        ["export", nothing, str(tmp_path / "new")],
        ["import", nothing, str(tmp_path / "new")],
        ["import", str(exported), str(exported)],
        ["generate", nothing, "--prompt", "a", "--tokens", "1"],
        # Its tokenizer is none of vpMoE's.
        ["generate", str(exported), "--prompt", "a", "--tokens", "1"],
    ):
        assert main(words) == 2, words
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"vpmoe {words[0]}: "), captured.err
        assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
