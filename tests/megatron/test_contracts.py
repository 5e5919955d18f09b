"""Every contract holds for the installed Megatron, and refuses by name where it is broken."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vpmoe.megatron import contract as contract_module
from vpmoe.megatron.__main__ import main as check_command
from vpmoe.megatron.contract import (
    Contract,
    Exists,
    Fact,
    MakesTuple,
    MegatronChangedError,
    OnlyCalls,
    Passes,
    Reads,
    Takes,
    installed_version,
)
from vpmoe.megatron.contracts import MODULES, check_model, check_training, contracts_of
from vpmoe.runtime.patches import replaced

ALL = [(module, contract) for module in MODULES for contract in contracts_of(module)]
FACTS = [
    pytest.param(contract, fact, id=f"{contract.name}-{fact.name}-{type(fact).__name__}")
    for _, contract in ALL
    if contract.needs is None
    for fact in contract.facts
]


def owner_of(fact: Fact) -> Any:
    """What holds the fact's name: a module, or the class in the hierarchy that defines it."""
    module, _, path = fact.target.partition(":")
    owner: Any = importlib.import_module(module)
    for part in path.split(".")[:-1]:
        owner = getattr(owner, part)
    if inspect.isclass(owner):
        return next(kind for kind in owner.__mro__ if fact.name in vars(kind))
    return owner


@pytest.mark.parametrize("contract", [c for _, c in ALL], ids=lambda c: c.name)
def test_every_contract_holds(contract: Contract) -> None:
    contract.check()


def test_names_are_unique() -> None:
    names = [contract.name for _, contract in ALL]
    assert len(names) == len(set(names))
    assert all(contract.facts and contract.why and contract.remedy for _, contract in ALL)


@pytest.mark.parametrize(("contract", "fact"), FACTS)
def test_a_name_that_is_gone_is_refused(
    contract: Contract, fact: Fact, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = owner_of(fact)
    while fact.name in vars(owner) or (inspect.isclass(owner) and hasattr(owner, fact.name)):
        holder = owner
        if inspect.isclass(owner):
            holder = next(kind for kind in owner.__mro__ if fact.name in vars(kind))
            if holder is object:  # every class has a constructor
                break
        _remove(holder, fact.name, monkeypatch)
    with pytest.raises(MegatronChangedError) as refused:
        contract.check()
    message = str(refused.value)
    assert message.startswith(f"megatron-core {installed_version()} changed what the contract ")
    assert f"`{contract.name}`" in message
    assert contract.why in message
    assert contract.remedy in message


def _remove(holder: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    abstract = getattr(holder, "__abstractmethods__", None)
    monkeypatch.delattr(holder, name)
    assert abstract == getattr(holder, "__abstractmethods__", None)


@pytest.mark.parametrize(
    ("contract", "fact"),
    [
        p
        for p in FACTS
        if not isinstance(p.values[1], Exists)
        and not (
            isinstance(p.values[1], Takes)
            and not p.values[1].positional
            and not p.values[1].keywords
        )
    ],
)
def test_another_signature_or_body_is_refused(
    contract: Contract, fact: Fact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(surprise: int) -> None:
        """Neither takes nor does what the function did."""

    monkeypatch.setattr(owner_of(fact), fact.name, changed)
    with pytest.raises(MegatronChangedError, match="changed what the contract"):
        contract.check()


def test_what_vpmoe_put_there_is_looked_behind() -> None:
    import megatron.training.training as training

    from vpmoe.megatron.points import TRAINING_LOG

    with replaced(training, "training_log", lambda *args, **kwargs: None):
        TRAINING_LOG.contract.check()
        with TRAINING_LOG.wrapped(lambda original: lambda *args, **kwargs: None):
            TRAINING_LOG.contract.check()


@pytest.mark.parametrize("check", [check_training, check_model])
def test_a_start_is_refused_with_all_that_is_broken(
    check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.core.models.gpt import GPTModel
    from megatron.core.transformer.transformer_block import TransformerBlock

    monkeypatch.setattr(TransformerBlock, "sharded_state_dict", lambda self: None)
    monkeypatch.delattr(GPTModel, "_preprocess")
    with pytest.raises(MegatronChangedError) as refused:
        check()
    assert "hetereogenous_dist_checkpoint" in str(refused.value)
    assert "GPTModel._preprocess is gone" in str(refused.value)


def test_a_training_is_refused_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from vpmoe.pretrain import _train

    # Its package has a function of the module's name.
    finalize = importlib.import_module("megatron.core.distributed.finalize_model_grads")
    monkeypatch.setattr(finalize, "_allreduce_conditional_embedding_grads", lambda *_: None)
    with pytest.raises(MegatronChangedError, match="has_cond_embedder, pipeline_parallel"):
        _train([])


def test_a_fault_is_refused_where_its_point_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    import megatron.core.optimizer.optimizer as optimizer

    from vpmoe.cases.faults.planting import skipped

    monkeypatch.delattr(optimizer, "get_grad_norm_fp32")
    point = "megatron.core.optimizer.optimizer", "get_grad_norm_fp32"
    with pytest.raises(MegatronChangedError, match="get_grad_norm_fp32 is gone"), skipped(*point):
        pass
    with pytest.raises(KeyError), skipped("megatron.core.optimizer.optimizer", "MegatronOptimizer"):
        pass


def test_arguments_of_the_training_log_by_name() -> None:
    from vpmoe.megatron.points import TRAINING_LOG

    given = TRAINING_LOG.arguments(
        ({}, {}, 0.1, 3, 1.0, False, 0, 2.5, None, None), {"max_attention_logit": None}
    )
    assert (given["learning_rate"], given["iteration"], given["grad_norm"]) == (0.1, 3, 2.5)


def test_the_tuple_of_preprocess_is_checked_in_use() -> None:
    from megatron.core.models.gpt import GPTModel

    from vpmoe.megatron.model import RotatedGPTModel

    class Rotated(RotatedGPTModel):
        def __init__(self) -> None:
            """Builds nothing."""

        def rotations(self, position_ids: Any) -> Any:
            return "ours"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTModel, "_preprocess", lambda self, *a, **k: ("in", "theirs", None))
        with pytest.raises(MegatronChangedError, match="second element"):
            Rotated()._preprocess(None, None)  # type: ignore[arg-type]
        patch.setattr(GPTModel, "_preprocess", lambda self, *a, **k: ("in", None, "rest"))
        assert Rotated()._preprocess(None, None) == ("in", "ours", "rest")  # type: ignore[arg-type]


class _Attention:
    """Stands for Transformer Engine's, which is not installed on a CPU."""

    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int,
        num_gqa_groups: int | None = None,
        attention_dropout: float | None = None,
        qkv_format: str = "sbhd",
        attn_mask_type: str = "causal",
        window_size: Any = None,
        softmax_scale: float | None = None,
        softmax_type: str = "vanilla",
    ) -> None:
        self._parameters = {} if softmax_type == "vanilla" else {self.held: "own"}

    held = "softmax_offset"

    def forward(self) -> Any:
        return self.softmax_offset  # type: ignore[attr-defined]


@pytest.fixture
def transformer_engine(monkeypatch: pytest.MonkeyPatch) -> type[_Attention]:
    class Attention(_Attention):
        pass

    package, module = (
        types.ModuleType(name) for name in ("transformer_engine", "transformer_engine.pytorch")
    )
    package.pytorch = module  # type: ignore[attr-defined]
    module.DotProductAttention = Attention  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformer_engine", package)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", module)
    monkeypatch.setattr(contract_module, "_installed", lambda package: True)
    return Attention


def test_transformer_engine_is_lent_an_offset(transformer_engine: type[_Attention]) -> None:
    from vpmoe.megatron.transformer_engine import attention_without_offset, lend_offset

    module = attention_without_offset(4, 8, softmax_type="learnable")
    lend_offset(module, "lent")  # type: ignore[arg-type]
    assert module.forward() == "lent"
    assert not module._parameters
    attention_without_offset(4, 8, softmax_type="vanilla")


def test_another_name_of_the_offset_is_refused(
    transformer_engine: type[_Attention], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vpmoe.megatron.transformer_engine import LENT_OFFSET, attention_without_offset

    monkeypatch.setattr(transformer_engine, "held", "sink")
    with pytest.raises(MegatronChangedError, match=r"transformer-engine .* has no parameter"):
        attention_without_offset(4, 8, softmax_type="learnable")
    monkeypatch.setattr(transformer_engine, "forward", lambda self: self.sink)
    with pytest.raises(MegatronChangedError, match="no longer reads softmax_offset"):
        LENT_OFFSET.check()


def _sample(decoder_input: Any, rotation: Any, is_loading: bool, *, keyword: int = 0) -> Any:
    if is_loading:
        _begin(rotation)
    _go(keyword=keyword)
    return (decoder_input, rotation)


def _begin(value: Any) -> None: ...


def _go(*, keyword: int) -> None: ...


_HERE = f"{__name__}:_sample"


@pytest.mark.parametrize(
    ("fact", "problem"),
    [
        (Takes(_HERE, ("decoder_input", "rotation"), ("keyword",)), None),
        (Takes(_HERE, ("rotation", "decoder_input")), "takes (decoder_input, rotation) first"),
        (Takes(_HERE, keywords=("absent",)), "takes no parameter absent"),
        (Reads(_HERE, names=("_begin", "keyword")), None),
        (Reads(_HERE, names=("absent",)), "no longer reads absent"),
        (Reads(f"{__name__}:_absent", names=("_begin",), former=_HERE), None),
        (Reads(f"{__name__}:_absent", names=("_begin",)), "_absent is gone"),
        (Passes(_HERE, "_go", "keyword", "keyword"), None),
        (Passes(_HERE, "_go", "keyword", "rotation"), "no longer calls _go(keyword=rotation)"),
        (MakesTuple(_HERE, ("decoder_input", "rotation")), None),
        (MakesTuple(_HERE, ("rotation",)), "no longer makes a tuple"),
        (OnlyCalls(_HERE, "is_loading", "_begin"), None),
        (OnlyCalls(_HERE, "is_loading", "_go"), "does more, or less, under is_loading"),
        (Exists("no_such_module:name"), "no_such_module cannot be imported"),
    ],
)
def test_facts(fact: Fact, problem: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__, _this_module()))
    found = fact.problem()
    assert found is None if problem is None else problem in str(found)
    assert fact.words()


def _this_module() -> types.ModuleType:
    module = types.ModuleType(__name__)
    vars(module).update(globals())
    return module


def test_the_command_says_whether_all_hold(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_command([]) == 0
    assert f"megatron-core {installed_version()}: {len(ALL)} contracts hold" in (
        capsys.readouterr().out
    )
    import megatron.core.datasets.utils as dataset_utils

    monkeypatch.delattr(dataset_utils, "compile_helpers")
    assert check_command([]) == 1
    assert "compile_helpers is gone" in capsys.readouterr().err


def test_the_document_lists_the_contracts() -> None:
    from vpmoe.megatron.document import rendered

    document = Path(__file__).resolve().parents[2] / "docs" / "megatron.md"
    assert rendered().strip() in document.read_text(), (
        "docs/megatron.md is stale: put the output of `python -m vpmoe.megatron --markdown` "
        "under `## Contracts`"
    )
