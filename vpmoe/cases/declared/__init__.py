"""Declarations of cases, by topic: nothing of vpMoE or Megatron is imported in them."""
