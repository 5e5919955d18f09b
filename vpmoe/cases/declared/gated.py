"""The code that the cases stand for, and what no case of the lane `cpu` can run, with reasons."""

from __future__ import annotations

from validation.cases.gated import Gated
from vpmoe.cases.declared.unvaried import UNVARIED

_TRITON = "Triton compiles its kernels, which never run as Python, and their callers need a GPU"
_CARD = "runs on a GPU alone"
_GRAPH = "a CUDA graph over the optimizer's step needs a GPU"
_ENGINE = "Transformer Engine needs a GPU"
_ABSTRACT = "every subclass has its own"
_TPA = "vpmoe/model/tpa.py"
_NORMUON = "vpmoe/optimizer/normuon.py"
_BACKENDS = "vpmoe/model/attention/backends.py"

GATED = Gated(
    packages=("vpmoe",),
    fields="vpmoe.cases.fields:fields",
    unvaried=UNVARIED,
    omitted={
        "vpmoe/model/attention/triton_kernel.py": _TRITON,
        "vpmoe/model/cross_entropy_kernel.py": _TRITON,
        "vpmoe/model/moe/permutation_kernel.py": _TRITON,
        "vpmoe/model/moe/routing_kernel.py": _TRITON,
        "vpmoe/model/tpa_kernel.py": _TRITON,
        "vpmoe/optimizer/triton_kernel.py": _TRITON,
        "vpmoe/megatron/transformer_engine.py:attention_without_offset": _ENGINE,
        "vpmoe/megatron/transformer_engine.py:lend_offset": _ENGINE,
        f"{_BACKENDS}:TransformerEngineBackend.attend": _ENGINE,
        f"{_BACKENDS}:_te_module": _ENGINE,
        f"{_BACKENDS}:TritonBackend.attend": _TRITON,
        f"{_BACKENDS}:_installed": "asked of tensors on a GPU alone",
        "vpmoe/model/cross_entropy.py:_statistics:if logits.is_cuda:": _TRITON,
        "vpmoe/model/cross_entropy.py:_differentiate_:if logits.is_cuda:": _TRITON,
        "vpmoe/model/cross_entropy.py:_scaled:if tensor.is_cuda:": _TRITON,
        'vpmoe/model/experts.py:GroupedExperts.forward:if self.config.expert_kernel == "fused":': (
            _TRITON
        ),
        'vpmoe/model/initialization.py:_seeded:if device.type == "cuda":': _CARD,
        'vpmoe/model/layer_specs.py:_moe:if config.expert_kernel == "fused":': _TRITON,
        'vpmoe/model/kernels.py:resolve_kernels:if fast and config.expert_kernel == "auto" and '
        "config.num_moe_experts and refusal is None:": _CARD,
        "vpmoe/model/moe/layer.py:LocalMoELayer": _TRITON,
        "vpmoe/model/moe/layer.py:LocalTokenDispatcher": _TRITON,
        "vpmoe/megatron/moe.py:DispatchedMoELayer": "the layer of the fused dispatch, on a GPU",
        "vpmoe/megatron/moe.py:_Choice.get_replay_topk:if not num_groups or not group_topk:": (
            "Megatron asks so without groups, which the router refuses"
        ),
        "vpmoe/megatron/moe.py:ChoosingRouter.choose": _ABSTRACT,
        "vpmoe/megatron/model.py:RotatedGPTModel.rotations": _ABSTRACT,
        "vpmoe/megatron/optimizer.py:_ShardedRowState._model_parameters": _ABSTRACT,
        "vpmoe/megatron/optimizer.py:install_optimizer.graph_step": _GRAPH,
        "vpmoe/model/moe/router.py:FusedRouter": _TRITON,
        "vpmoe/model/moe/router.py:_Gating": _TRITON,
        f"{_TPA}:TensorProductQKV.forward:if norms is not None and rotation is not None:": _TRITON,
        f"{_TPA}:TPASelfAttention._attention_inputs:norms = (self.q_layernorm, "
        "self.k_layernorm)": _TRITON,
        f"{_TPA}:TPASelfAttention._attention_inputs:query, key, value = "
        "apply_module(self.linear_qkv)(hidden_states, norms, rotation)": _TRITON,
        f"{_TPA}:TPASelfAttention._attention_inputs:return query, key, value": _TRITON,
        "vpmoe/optimizer/arguments.py:validate_optimizer_args:if args.tensor_model_parallel_size > "
        "1:": _GRAPH,
        "vpmoe/optimizer/graph.py:capture": _GRAPH,
        "vpmoe/optimizer/graph.py:GraphedWork": _GRAPH,
        f"{_NORMUON}:NorMuon.step:if self._graph_after is not None:": _GRAPH,
        f"{_NORMUON}:NorMuon.step:for places, values in zip(self._on_device, rates, "
        "strict=True):": _GRAPH,
        f"{_NORMUON}:NorMuon.step:self._graphed(self._decided())": _GRAPH,
        f"{_NORMUON}:NorMuon._queue_on_device": _GRAPH,
        f"{_NORMUON}:NorMuon._queue:if chunk.kernel is not None:": _TRITON,
        f"{_NORMUON}:NorMuon._decided": _GRAPH,
        f"{_NORMUON}:NorMuon._plan:if _fits_kernel(param, layout):": _TRITON,
        f"{_NORMUON}:NorMuon._kernel_chunk": _TRITON,
        f"{_NORMUON}:_fits_kernel:from vpmoe.optimizer.triton_kernel import LARGEST_SIDE": _TRITON,
        f"{_NORMUON}:_fits_kernel:return min(param.shape[-2:]) <= LARGEST_SIDE": (_TRITON),
        f"{_NORMUON}:_device_rates": _GRAPH,
    },
)
