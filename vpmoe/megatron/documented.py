"""What vpMoE may import from Megatron outside this room, and which methods it may override.

Listed are names that Megatron's guides tell a user to import, and methods that a subclass is meant
to have. A test holds all of vpMoE to them.
"""

from __future__ import annotations

DOCUMENTED: dict[str, frozenset[str]] = {
    module: frozenset(names.split())
    for module, names in {
        "megatron.core": "dist_checkpointing parallel_state",
        "megatron.core.activations": "squared_relu",
        "megatron.core.datasets.blended_megatron_dataset_builder": "BlendedMegatronDatasetBuilder",
        "megatron.core.datasets.gpt_dataset": "GPTDataset GPTDatasetConfig MockGPTDataset",
        "megatron.core.datasets.indexed_dataset": "IndexedDataset",
        "megatron.core.datasets.utils": "Split",
        "megatron.core.dist_checkpointing.mapping": "ShardedObject ShardedTensor",
        "megatron.core.fusions.fused_bias_dropout": "get_bias_dropout_add",
        "megatron.core.num_microbatches_calculator": "get_num_microbatches",
        "megatron.core.optimizer": "MegatronOptimizer OptimizerConfig ParamKey",
        "megatron.core.process_groups_config": "ProcessGroupCollection",
        "megatron.core.tensor_parallel": (
            "ColumnParallelLinear RowParallelLinear copy_to_tensor_model_parallel_region "
            "gather_from_sequence_parallel_region reduce_from_tensor_model_parallel_region "
            "set_tensor_model_parallel_attributes"
        ),
        "megatron.core.transformer.attention": "SelfAttentionSubmodules",
        "megatron.core.transformer.enums": "AttnMaskType",
        "megatron.core.transformer.mlp": "MLP MLPSubmodules",
        "megatron.core.transformer.module": "MegatronModule",
        "megatron.core.transformer.moe.experts": "SequentialMLP",
        "megatron.core.transformer.moe.moe_layer": "MoELayer MoESubmodules",
        "megatron.core.transformer.moe.router": "TopKRouter",
        "megatron.core.transformer.moe.shared_experts": "SharedExpertMLP",
        "megatron.core.transformer.moe.token_dispatcher": "MoETokenDispatcher",
        "megatron.core.transformer.spec_utils": "ModuleSpec",
        "megatron.core.transformer.transformer_block": "TransformerBlockSubmodules",
        "megatron.core.transformer.transformer_config": "TransformerConfig",
        "megatron.core.transformer.transformer_layer": (
            "TransformerLayer TransformerLayerSubmodules"
        ),
        "megatron.training": "get_args get_tokenizer print_rank_0",
    }.items()
}

OVERRIDDEN: dict[str, frozenset[str]] = {
    base: frozenset(names.split())
    for base, names in {
        "MegatronModule": "sharded_state_dict",
        "SelfAttention": "get_query_key_value_tensors",
        "TransformerConfig": "__post_init__",
        "Router": "gating",
        "TopKRouter": "routing",
        "MoETokenDispatcher": (
            "dispatch_preprocess token_dispatch dispatch_postprocess combine_preprocess "
            "token_combine combine_postprocess"
        ),
        "GPTDataset": "build_low_level_dataset",
    }.items()
}
"""Methods that a subclass may override, by the class it extends; what torch's modules and Python's
classes have, such as `forward` and `__init__`, besides."""
