"""Trainings on several processes over gloo, each held to the training of one process."""

from __future__ import annotations

from vpmoe.cases.declare import (
    BIASES,
    ONE_REPLICA,
    SAME_TRAINING,
    SHARDS,
    WHOLE,
    canonical,
    layout,
    moved,
)

_TP = ("--tensor-model-parallel-size", "2")
_TP_SP = (*_TP, "--sequence-parallel")
_EP = ("--expert-model-parallel-size", "2")
_PP = ("--pipeline-model-parallel-size", "2")
_DENSE = ("--moe-layer-freq", "([0]*4)")

CASES = (
    canonical(
        "one_process",
        "the tiny vpMoE on one process, its tensors cut as layouts cut them: what these are held "
        "to",
    ),
    canonical("one_process_dense", "the same with dense layers alone", *_DENSE),
    canonical(
        "one_process_small",
        "the tiny vpMoE on one process over a small vocabulary: what four processes are held to",
        small=True,
    ),
    layout("dp", "data parallel", same={**SAME_TRAINING, **WHOLE}),
    layout(
        "tp",
        "tensor parallel, dense (Megatron has experts with sequence parallelism alone)",
        *_TP,
        *_DENSE,
        same=SAME_TRAINING,
        shards=SHARDS,
        reference="one_process_dense",
    ),
    layout("tp_sp", "tensor and sequence parallel", *_TP_SP, same={**ONE_REPLICA, **BIASES}),
    layout("ep", "expert parallel", *_EP, same={**SAME_TRAINING, **BIASES}),
    layout("pp", "pipeline parallel", *_PP, same=ONE_REPLICA),
    layout(
        "tp_ep",
        "tensor, sequence and expert parallel",
        *_TP_SP,
        *_EP,
        same={**SAME_TRAINING, **BIASES},
        processes=4,
    ),
    layout(
        "tp_pp",
        "tensor, sequence and pipeline parallel",
        *_TP_SP,
        *_PP,
        same=ONE_REPLICA,
        processes=4,
    ),
    layout(
        "ep_dp",
        "expert parallel, with each expert on two of them, and data parallel",
        *_EP,
        same={**SAME_TRAINING, **BIASES},
        processes=4,
    ),
    layout("pp_dp", "pipeline and data parallel", *_PP, same=SAME_TRAINING, processes=4),
    moved(
        "tp_pp",
        "from tensor parallel to pipeline parallel",
        *_PP,
        saved_by=_TP_SP,
    ),
    moved("pp_dp", "from pipeline parallel to data parallel", saved_by=_PP),
    moved("dp_tp", "from data parallel to tensor parallel", *_TP_SP, saved_by=()),
    moved(
        "ep_dp",
        "from expert parallel to data parallel, without the optimizer, whose parts Megatron saves "
        "under other names",
        "--no-load-optim",
        saved_by=_EP,
        straight=False,
    ),
    moved(
        "ep_tp",
        "from expert and data parallel to expert and tensor parallel",
        *_TP_SP,
        *_EP,
        saved_by=_EP,
        processes=4,
    ),
)
