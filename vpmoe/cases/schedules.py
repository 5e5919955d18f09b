"""The target of the case `schedules`: what a preset of any size decides, without training it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from validation.running.recorder import Recorder
from vpmoe.cases.built import record_built
from vpmoe.cases.probe import allowed_intervals
from vpmoe.cases.statics import record_schedule


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Records every layer's kind, window, slopes and position encoding, and each weight's routing.

    The models are built on torch's meta device. The attention kernels of some layers are probed
    for the keys that they use. The optimizer's groups and the parameters' marks are recorded of
    one rank that holds all, and of each layout.

    Args:
        recorder: of this process.
        settings: `presets` (files), `probed` (stem of a preset -> numbers of layers), `length`
            (tokens of a probe), `layouts` (name -> `flags` of the parallel sizes, and how many
            `ranks` they make).
    """
    from vpmoe.config import load_preset
    from vpmoe.model.grape import initial_log_frequencies, rotation_angles
    from vpmoe.model.meta import meta_model
    from vpmoe.optimizer.report import routing_report

    for preset in settings["presets"]:
        flags = load_preset(Path(preset)).to_flags()
        name = Path(preset).stem
        for route in routing_report(flags):
            value = route.as_dict()
            recorder.discrete(f"{name}/{value.pop('name')}", value, tensor="optimizer")
        record_built(recorder, flags, f"{name}/alone", ranks=1)
        for layout, shared in settings["layouts"].items():
            parallel = [*flags, *(str(flag) for flag in shared["flags"])]
            record_built(recorder, parallel, f"{name}/{layout}", ranks=shared["ranks"])
        with meta_model(flags) as (args, model):
            record_schedule(recorder, model, f"{name}/")
            config = model.config
            phi = initial_log_frequencies(
                config.kv_channels, config.rotary_base, config.grapem_log_freq_scale
            )
            positions = torch.arange(args.max_position_embeddings)[None]
            angles = rotation_angles(phi[None], positions, config.grapem_log_freq_scale)
            recorder.tensor(
                step=0,
                micro_batch=0,
                phase="init",
                module=f"{name}/grapem",
                tensor="angles",
                value=angles,
            )
            for number in settings["probed"].get(name, ()):
                recorder.table(
                    f"window/{name}/layer{number}", _probed(config, number, settings["length"])
                )


def _probed(config: Any, layer_number: int, length: int) -> list[list[int]]:
    from megatron.core.transformer.enums import AttnMaskType

    from vpmoe.model.attention.core import CoreAttention

    core = CoreAttention(config, layer_number, AttnMaskType.causal, "self")
    heads, groups = config.num_attention_heads, config.num_query_groups
    return allowed_intervals(core.float(), length, heads, groups, config.kv_channels)
