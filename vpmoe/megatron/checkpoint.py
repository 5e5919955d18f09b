"""What modules of vpMoE's own write into Megatron's distributed checkpoints."""

from __future__ import annotations

from vpmoe.megatron.contract import Contract, Takes

SHARDED_TENSORS = Contract(
    "sharded tensors",
    "vpMoE's modules describe their weights to distributed checkpoints with Megatron's helpers, "
    "and build some entries themselves.",
    "See what `sharded_state_dict` of Megatron's own layers does in this version.",
    (
        Takes(
            "megatron.core.transformer.utils:make_sharded_tensors_for_checkpoint",
            ("state_dict", "prefix", "tensor_parallel_layers_axis_map", "sharded_offsets"),
            ("tp_group", "dp_cp_group"),
        ),
        Takes("megatron.core.transformer.utils:ensure_metadata_has_dp_cp_group", ("metadata",)),
        Takes(
            "megatron.core.dist_checkpointing.mapping:ShardedTensor",
            keywords=(
                *("key", "data", "dtype", "local_shape", "global_shape", "global_offset"),
                *("axis_fragmentations", "replica_id"),
            ),
        ),
        Takes(
            "megatron.core.dist_checkpointing.mapping:ShardedTensor.from_rank_offsets",
            ("key", "data"),
            ("replica_id", "prepend_axis_num"),
        ),
        Takes("megatron.core.dist_checkpointing.mapping:ShardedTensor.global_slice"),
        Takes("megatron.core.dist_checkpointing.mapping:ShardedTensor.validate_metadata_integrity"),
        Takes(
            "megatron.core.dist_checkpointing.mapping:ShardedObject",
            ("key", "data", "global_shape", "global_offset"),
            ("replica_id",),
        ),
        Takes("megatron.core.dist_checkpointing:save", ("sharded_state_dict", "checkpoint_dir")),
    ),
)

CONTRACTS = (SHARDED_TENSORS,)

make_sharded_tensors_for_checkpoint = SHARDED_TENSORS.take("make_sharded_tensors_for_checkpoint")
ensure_metadata_has_dp_cp_group = SHARDED_TENSORS.take("ensure_metadata_has_dp_cp_group")
