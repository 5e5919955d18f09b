"""The vpMoE model on megatron-core: attention, positions, experts, layer specs, builder."""
