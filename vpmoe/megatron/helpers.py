"""Functions of Megatron's that its guides do not name, as vpMoE calls them."""

from __future__ import annotations

from vpmoe.megatron.contract import Contract, Takes

HELPERS = Contract(
    "helpers",
    "vpMoE calls these functions as Megatron's own layers do.",
    "Find what Megatron's layers call in their place, and give it the same name in "
    "vpmoe/megatron/helpers.py.",
    (
        Takes("megatron.core.utils:divide", ("numerator", "denominator")),
        Takes("megatron.core.utils:get_model_config", ("model",)),
        Takes("megatron.core.utils:get_pg_rank", ("group",)),
        Takes("megatron.core.utils:get_pg_size", ("group",)),
        Takes("megatron.core.utils:init_method_normal", ("sigma",)),
        Takes("megatron.core.utils:unwrap_model", ("model",)),
        Takes("megatron.core.typed_torch:apply_module", ("m",)),
    ),
)

LAYERS = Contract(
    "layers of a stage",
    "vpMoE builds the layers of its pipeline stage itself, numbered over the whole model, and asks "
    "Megatron which these are and which of them have a window.",
    "See how this version divides layers among stages and reads --window-attn-skip-freq.",
    (
        Takes(
            "megatron.core.transformer.transformer_block:get_num_layers_to_build",
            ("config", "vp_stage"),
        ),
        Takes(
            "megatron.core.transformer.transformer_layer:get_transformer_layer_offset",
            ("config", "vp_stage"),
        ),
        Takes(
            "megatron.core.transformer.utils:is_layer_window_attention",
            ("window_size", "window_attn_skip_freq", "layer_number"),
        ),
    ),
)

RERUN = Contract(
    "checked losses",
    "vpMoE hands every loss to Megatron's rerun machine, which stops the run for one that is not "
    "finite.",
    "See how this version's `pretrain_gpt.py` validates a loss.",
    (
        Takes("megatron.core.rerun_state_machine:get_rerun_state_machine"),
        Takes(
            "megatron.core.rerun_state_machine:RerunStateMachine.validate_result",
            keywords=("result", "rejection_func", "message", "tolerance", "fatal"),
        ),
    ),
)

CONTRACTS = (HELPERS, LAYERS, RERUN)

divide = HELPERS.take("divide")
get_model_config = HELPERS.take("get_model_config")
get_pg_rank = HELPERS.take("get_pg_rank")
get_pg_size = HELPERS.take("get_pg_size")
init_method_normal = HELPERS.take("init_method_normal")
unwrap_model = HELPERS.take("unwrap_model")
apply_module = HELPERS.take("apply_module")

get_num_layers_to_build = LAYERS.take("get_num_layers_to_build")
get_transformer_layer_offset = LAYERS.take("get_transformer_layer_offset")
is_layer_window_attention = LAYERS.take("is_layer_window_attention")

get_rerun_state_machine = RERUN.take("get_rerun_state_machine")
