"""The target of the case `data`: texts to ids, rows to documents, documents to a dataset.

Nothing is trained. Every record is exact: ids, spans, files, and the message of each refusal.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from validation.running.recorder import Recorder


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Records everything that happens to rows before a training sees them.

    Args:
        recorder: of this process.
        settings: files: `synth` (SYNTH rows without ids), `harmony` and `openai` (conversations in
            these two forms).
    """
    from vpmoe.cases.data import bad_rows, building, damage, rendering, tokenizing, values, watching
    from vpmoe.runtime.patches import replaced
    from vpmoe.tokenizer import O200kHarmonyTokenizer
    from vpmoe.tokenizer.asset import ensure_asset

    vocabulary = ensure_asset()
    tokenizer = O200kHarmonyTokenizer(vocabulary)
    synth, harmony, openai = (Path(settings[name]) for name in ("synth", "harmony", "openai"))
    # Nothing here must outlive a power cut, and a thousand waits for a disk are most of the time.
    with (
        tempfile.TemporaryDirectory(prefix="golden-data-") as name,
        replaced(os, "fsync", lambda descriptor: None),
    ):

        def new(part: str) -> Path:
            folder = Path(name) / part
            folder.mkdir()
            return folder

        tokenizing.record_texts(recorder, tokenizer)
        tokenizing.record_vocabulary(recorder, tokenizer)
        values.record_values(recorder, tokenizer, new("values"))
        rendering.record_templates(recorder, tokenizer)
        rendering.record_rows(recorder, tokenizer, "synth", synth, "harmony")
        rendering.record_rows(recorder, tokenizer, "harmony", harmony, "harmony")
        rendering.record_rows(recorder, tokenizer, "openai", openai, "openai")
        rendering.record_profiles(recorder, tokenizer, synth)
        bad_rows.record_bad_rows(recorder, vocabulary, new("bad_rows"))
        bad_rows.record_bad_files(recorder, vocabulary, new("bad_files"))
        tokenizing.record_refusals(recorder, tokenizer, new("tokenizer"))
        built = building.record_build(recorder, synth, openai, new("builds"))
        building.record_build_refusals(recorder, synth, built, new("refused_builds"))
        damage.record_damage(recorder, built, new("damaged"))
        watching.record_progress(recorder)
