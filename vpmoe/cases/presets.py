"""The flags of a case's variants: a preset's, without some of its fields, and their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vpmoe.config import Preset, load_preset

# A model of a few hundred ids, which Megatron's tokenizer without a vocabulary stands for.
VOCABULARY = 512
_SMALL = (
    *("--legacy-tokenizer", "--tokenizer-type", "NullTokenizer", "--mock-data"),
    *("--vocab-size", str(VOCABULARY - 1), "--padded-vocab-size", str(VOCABULARY)),
    *("--eval-iters", "0"),
)
# Of the preset's tokenizer, and of data with spans.
_OTHER_DATA = (
    *("tokenizer_type", "padded_vocab_size"),
    *("kd_span_weight_reasoning", "kd_span_weight_final"),
)


def preset_flags(preset: str, flags: Sequence[Any], without: Sequence[str] = ()) -> list[str]:
    """A preset's flags and more.

    Args:
        preset: file.
        flags: put behind the preset's.
        without: fields of the preset that are left out; what it does not have is no error.

    Returns:
        Flags of `vpmoe pretrain`.
    """
    loaded = load_preset(Path(preset))
    fields = {name: value for name, value in loaded.fields.items() if name not in without}
    return [*Preset(loaded.name, fields).to_flags(), *map(str, flags)]


def small_flags(preset: str, flags: Sequence[Any], without: Sequence[str] = ()) -> list[str]:
    """The same for the preset's layers over a small vocabulary, and data that the case makes up."""
    return preset_flags(preset, [*_SMALL, *flags], [*_OTHER_DATA, *without])


def variants_of(settings: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(name, flags) of each variant of a case of `vpmoe.cases.variants`."""
    shared = settings.get("flags", ())
    return [
        (
            variant["name"],
            small_flags(
                settings["preset"],
                [*shared, *variant.get("flags", ())],
                variant.get("without", ()),
            ),
        )
        for variant in settings.get("variants", ())
    ]
