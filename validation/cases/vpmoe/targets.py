"""What vpMoE's cases have in common: their functions and the modules that they need, by name."""

TRAINING = "validation.cases.vpmoe.training:run"
PACED = "validation.cases.vpmoe.pace:run"
DECODE = "validation.cases.vpmoe.tokens:decode"
MODULES = ("torch", "megatron", "vpmoe")
WARM = ("torch", "validation.cases.vpmoe.training:warm")
