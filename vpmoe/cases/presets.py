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
_TOKENIZER = ("tokenizer_type", "padded_vocab_size")


def small_flags(preset: str, flags: Sequence[Any], without: Sequence[str] = ()) -> list[str]:
    """Flags of `vpmoe pretrain` for a preset's layers over a small vocabulary.

    Args:
        preset: file.
        flags: put behind the preset's.
        without: fields of the preset that are left out; what it does not have is no error.

    Returns:
        The flags.
    """
    loaded = load_preset(Path(preset))
    fields = {
        name: value
        for name, value in loaded.fields.items()
        if name not in _TOKENIZER and name not in without
    }
    return [*Preset(loaded.name, fields).to_flags(), *_SMALL, *map(str, flags)]


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
