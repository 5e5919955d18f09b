"""Trains vpMoE where a script named `pretrain_gpt.py` is what gets launched, as in Megatron-LM.

    torchrun --nproc-per-node 8 examples/pretrain_gpt.py --config configs/vpmoe-dev.toml \\
        --mock-data --train-iters 10

It is `vpmoe pretrain`: Megatron's flags and vpMoE's, and `--config` for a preset's.
"""

import sys

from vpmoe.pretrain import main

if __name__ == "__main__":
    sys.exit(main())
