"""Builds the model for Megatron's `pretrain()` from its arguments."""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from vpmoe.megatron.contracts import check_model
from vpmoe.megatron.start import config_from_flags
from vpmoe.model.config import VpmoeConfig
from vpmoe.model.gpt_model import VpmoeModel
from vpmoe.model.initialization import initialize_weights
from vpmoe.model.kernels import resolve_kernels
from vpmoe.model.layer_specs import block_spec


def config_from_args(args: argparse.Namespace) -> VpmoeConfig:
    """Translates validated arguments to vpMoE's configuration.

    Megatron's fusions for other activations and its Apex extension are left out where they don't
    apply, since its defaults assume both.
    """
    fusions = argparse.Namespace(**vars(args))
    if args.squared_relu:
        fusions.bias_gelu_fusion = False
    if importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is None:
        fusions.gradient_accumulation_fusion = False
    # Drawn by initialize_weights, after the modules exist.
    fusions.perform_initialization = False
    return resolve_kernels(config_from_flags(fusions, VpmoeConfig))


def model_provider(
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
    config: VpmoeConfig | None = None,
    pg_collection: ProcessGroupCollection | None = None,
) -> VpmoeModel:
    """Builds one pipeline stage; Megatron's `model_provider`.

    Args:
        pre_process: the stage embeds tokens.
        post_process: the stage computes logits and losses.
        vp_stage: the chunk of a virtual pipeline.
        config: built from Megatron's arguments when None.
        pg_collection: Megatron's process groups when None.

    Returns:
        The stage, whose forward also takes `document_ids` [b, s], with weights that depend on
        `--seed` and their names alone.
    """
    from megatron.training import get_args

    args = get_args()
    return build_model(
        config if isinstance(config, VpmoeConfig) else config_from_args(args),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        seed=args.seed,
        pre_process=pre_process,
        post_process=post_process,
        vp_stage=vp_stage,
        pg_collection=pg_collection,
        fp16_lm_cross_entropy=args.fp16_lm_cross_entropy,
    )


def build_model(
    config: VpmoeConfig,
    *,
    vocab_size: int,
    max_sequence_length: int,
    seed: int,
    vp_stage: int | None = None,
    pg_collection: ProcessGroupCollection | None = None,
    **kwargs: Any,
) -> VpmoeModel:
    """Builds and initialises one pipeline stage from a configuration.

    Args:
        config: vpMoE's configuration.
        vocab_size: padded vocabulary.
        max_sequence_length: longest sequence.
        seed: of the initial weights.
        vp_stage: the chunk of a virtual pipeline.
        pg_collection: Megatron's process groups when None.
        **kwargs: of `VpmoeModel`.

    Returns:
        The stage, with its initial weights.

    Raises:
        MegatronChangedError: the installed megatron-core is not what the model relies on.
    """
    check_model()
    if pg_collection is None:
        pg_collection = ProcessGroupCollection.use_mpu_process_groups()
    model = VpmoeModel(
        config,
        block_spec(config, vp_stage),
        vocab_size,
        max_sequence_length,
        vp_stage=vp_stage,
        pg_collection=pg_collection,
        parallel_output=True,
        **kwargs,
    )
    if not any(parameter.is_meta for parameter in model.parameters()):
        with torch.no_grad():
            initialize_weights(model, config, seed, pg_collection)
    return model
