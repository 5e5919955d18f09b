"""The cases of data: rows to datasets, datasets to micro-batches, and a loss that weighs spans."""

from __future__ import annotations

from validation.cases.base import Case, Needs
from vpmoe.cases.declare import tiny
from vpmoe.cases.targets import DECODE, MODULES, WARM

_SYNTH_ROWS = "data/sample/synth_rows.jsonl"

CASES = (
    Case(
        name="data",
        description="texts to ids, rows to documents, documents to datasets, and what is refused "
        "on the way: the same bytes from JSONL, Parquet, several files and processes",
        lanes=("cpu",),
        target="vpmoe.cases.data.rows:run",
        settings={
            "synth": _SYNTH_ROWS,
            "harmony": "data/sample/chat_harmony.jsonl",
            "openai": "data/sample/chat_openai.jsonl",
        },
        preload=WARM,
        needs=Needs(modules=(*MODULES, "pyarrow")),
        decode=DECODE,
        arithmetic="wide",
    ),
    Case(
        name="samples",
        description="documents to packed samples: order, pieces, positions, masks, spans, the loss "
        "of spans, plain data, the token trace, and flags that are refused",
        lanes=("cpu",),
        target="vpmoe.cases.data.samples:run",
        settings={"synth": _SYNTH_ROWS},
        preload=WARM,
        needs=Needs(modules=MODULES),
        decode=DECODE,
        arithmetic="wide",
    ),
    tiny(
        "tiny_spans",
        "the tiny vpMoE on shipped rows of SYNTH's form, whose spans all weigh differently",
        "--train-iters",
        "3",
        "--kd-span-weight-reasoning",
        "0.375",
        "--kd-span-weight-final",
        "1.75",
        settings={"conversations": _SYNTH_ROWS, "profile": "synth_kd_v1"},
        traced_steps=(1,),
    ),
)
