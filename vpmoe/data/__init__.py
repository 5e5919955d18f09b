"""Builds and reads Megatron token files, with loss masks and spans, of SYNTH and conversations."""
