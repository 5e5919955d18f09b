"""What vpMoE's cases have in common: their functions and the modules that they need, by name."""

TRAINING = "vpmoe.cases.training:run"
LAYOUTS = "vpmoe.cases.layouts:run"
PACED = "vpmoe.cases.pace:run"
DECODE = "vpmoe.cases.tokens:decode"
MODULES = ("torch", "megatron", "vpmoe")
WARM = ("torch", "vpmoe.cases.training:warm")
# What the reader of a training looks at first.
LEADING = ("lm_loss", "grad_norm", "learning_rate", "update_rms/*")
