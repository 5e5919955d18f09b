"""The target of the case `samples`: a dataset's documents to what a training gets of them.

Nothing is trained. Every record is exact: order, pieces, positions, masks, spans and losses.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from validation.running.recorder import Recorder


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Records everything that happens between a dataset and a micro-batch.

    Args:
        recorder: of this process.
        settings: `synth` (file of SYNTH rows without ids).
    """
    from vpmoe.data.build import build_dataset
    from vpmoe.runtime import detect_lane
    from vpmoe.tokenizer import O200kHarmonyTokenizer
    from vpmoe.tokenizer.asset import ensure_asset

    tokenizer, rows = O200kHarmonyTokenizer(ensure_asset()), Path(settings["synth"])
    with tempfile.TemporaryDirectory(prefix="golden-data-") as name:

        def new(part: str) -> Path:
            folder = Path(name) / part
            folder.mkdir()
            return folder

        built = new("built")
        build_dataset([rows], built, valid_fraction="0.3", rows_per_shard=7)
        with detect_lane().activate():
            from vpmoe.cases.data import packing, plain_samples, sources, span_losses

            packing.record_samples(recorder, tokenizer, built, new("cache"))
            packing.record_trace(recorder, tokenizer, built)
            span_losses.record_span_losses(recorder)
            sources.record_flags(recorder, built, rows, new("flags"))
            with sources.one_rank():
                sources.record_provider(recorder, tokenizer, built, new("provider"))
                plain_samples.record_plain_samples(recorder, new("plain"))
