"""SYNTH rows and conversations to Megatron token files with loss masks and spans, and back in."""
