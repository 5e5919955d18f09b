"""vpMoE: training of a sparse mixture-of-experts language model on Megatron-core."""
