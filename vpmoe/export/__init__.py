"""Export: a checkpoint as safetensors with a config, and a plain PyTorch model of it."""
