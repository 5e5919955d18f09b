"""What the cases `data` and `samples` record, and that their laws see what they are for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from validation.running.recorder import Recorder
from validation.trace.model import HeldInvariant
from vpmoe.cases import CASES
from vpmoe.cases.data import building, packing, rendering, tokenizing
from vpmoe.cases.data.refusing import record_refusal
from vpmoe.data.build import build_dataset
from vpmoe.data.dataset import SynthKDDataset
from vpmoe.data.encode import DocumentEncoder, SynthRow
from vpmoe.data.errors import DataError
from vpmoe.data.profiles import get_profile
from vpmoe.runtime.patches import replaced
from vpmoe.tokenizer import O200kHarmonyTokenizer
from vpmoe.tokenizer.asset import ensure_asset
from vpmoe.tokenizer.encoder import Encoder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tokenizer() -> O200kHarmonyTokenizer:
    return O200kHarmonyTokenizer(ensure_asset(ROOT / "data/tokenizer/o200k_base.tiktoken"))


@pytest.fixture(scope="module")
def built(tokenizer: O200kHarmonyTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped rows of SYNTH's form, in shards of 7 and two splits."""
    folder = tmp_path_factory.mktemp("built")
    build_dataset(
        [ROOT / "data/sample/synth_rows.jsonl"],
        folder / "data",
        valid_fraction="0.3",
        rows_per_shard=7,
        vocabulary=tokenizer.path,
    )
    return folder / "data"


def values(recorder: Recorder) -> dict[tuple[str, str], Any]:
    """What was recorded, by place and tensor."""
    events = recorder.trace("case", {}).events
    return {(event.key.module, event.key.tensor): event.value for event in events}


def broken(recorder: Recorder) -> set[str]:
    """Names of the laws that do not hold."""
    laws = [value for value in values(recorder).values() if isinstance(value, HeldInvariant)]
    assert laws
    return {law.name for law in laws if not law.holds}


def test_their_files_are_shipped_and_their_weights_differ() -> None:
    cases = {case.name: case for case in CASES}
    for name in ("data", "samples", "tiny_spans"):
        assert not cases[name].needs.paths
        for setting in cases[name].settings.values():
            if isinstance(setting, str) and setting.endswith(".jsonl"):
                assert (ROOT / setting).is_file()
    flags = cases["tiny_spans"].settings["flags"]
    weights = [
        flags[flags.index(f"--kd-span-weight-{span}") + 1] for span in ("reasoning", "final")
    ]
    assert len({*map(float, weights), 1.0}) == 3


def test_a_refusal_is_recorded_without_folders_and_without_other_libraries_words(
    tmp_path: Path,
) -> None:
    def refuse() -> None:
        try:
            json.loads("{")
        except json.JSONDecodeError as error:
            raise DataError(f"{tmp_path}/a/rows.jsonl:3: broken: {error}; write it") from error

    recorder = Recorder()
    record_refusal(recorder, "row", refuse, tmp_path / "a")
    record_refusal(recorder, "taken", lambda: 7, tmp_path)
    record_refusal(recorder, "object", lambda: tmp_path, tmp_path)
    found = values(recorder)
    message = "rows.jsonl:3: broken: <JSONDecodeError>; write it"
    assert found["row", "refusal"] == {"error": "DataError", "message": message}
    assert found["taken", "refusal"] == {"accepted": 7}
    assert found["object", "refusal"] == {"accepted": "PosixPath"}


def test_spans_are_read_from_the_markup(tokenizer: O200kHarmonyTokenizer) -> None:
    encoder = DocumentEncoder(tokenizer, get_profile("short"))
    documents = encoder.encode([SynthRow("q <|end|>", "r", "a")])
    tokens = documents.tokens.tolist()
    assert rendering.spans_of_markup(tokenizer, tokens) == documents.span.tolist()
    assert rendering.runs(np.array([0, 0, 2, 1, 1])) == [[0, 2], [2, 1], [1, 2]]
    spoilt = dataclasses.replace(documents, span=np.roll(documents.span, 1))
    recorder = Recorder()
    rendering._record_document(recorder, tokenizer, "row", spoilt)
    law = "spans are those that the markup gives, stored for the label"
    assert law in broken(recorder)


@pytest.mark.parametrize(
    ("name", "change", "law"),
    [
        ("encode", lambda ids: ids[::-1], "the ids decode to the text"),
        ("encode_batch", lambda parts: [part[:-1] for part in parts], "a batch gives the same ids"),
    ],
)
def test_laws_of_texts(
    tokenizer: O200kHarmonyTokenizer, name: str, change: Callable[[Any], Any], law: str
) -> None:
    original = getattr(Encoder, name)
    recorder = Recorder()
    with (
        replaced(tokenizing, "TEXTS", {k: tokenizing.TEXTS[k] for k in _SOME}),
        replaced(O200kHarmonyTokenizer, "offsets", lambda *_: []),
        replaced(Encoder, name, lambda *args: change(original(*args))),
    ):
        tokenizing.record_texts(recorder, tokenizer)
    assert law in broken(recorder)


_SOME = ("words", "looks_special", "looks_reserved", "looks_split")


def test_every_law_of_samples_sees_its_field(tokenizer: O200kHarmonyTokenizer, built: Path) -> None:
    dataset = packing._dataset(tokenizer, built, packing._Packing())
    recorder = Recorder()
    packing._record_laws(recorder, "samples", tokenizer, dataset)
    assert not broken(recorder)
    original = SynthKDDataset.__getitem__
    for name, law in packing._LAWS.items():

        def late(self: Any, index: int, name: str = name) -> dict[str, torch.Tensor]:
            sample = original(self, index)
            return sample | {name: sample[name].roll(1) + 1}

        recorder = Recorder()
        with replaced(SynthKDDataset, "__getitem__", late):
            packing._record_laws(recorder, "samples", tokenizer, dataset)
        assert broken(recorder) == {law}
    dataset.shuffle_index = dataset.shuffle_index.copy()
    dataset.shuffle_index[0] = dataset.shuffle_index[1]
    recorder = Recorder()
    packing._record_laws(recorder, "samples", tokenizer, dataset)
    assert broken(recorder) == {"every sample is dealt once"}


def test_a_file_that_differs_breaks_its_law() -> None:
    recorder = Recorder()
    manifest = b'{"inputs": [1], "schema": "a"}'
    one = {"manifest.json": manifest, "a": b"1", "b": b"1"}
    two = {"manifest.json": manifest.replace(b"1", b"2"), "a": b"1", "b": b"2"}
    building._compare(recorder, "build", one, two)
    found = values(recorder)
    assert found["build", "law/manifest.json"].holds
    assert found["build", "law/a"].holds
    assert not found["build", "law/b"].holds
    building._compare(recorder, "less", one, {"a": b"1"})
    assert not values(recorder)["less", "law/b"].holds
