"""What vpMoE's cases could set: vpMoE's own flags, and the fields of its presets."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from validation.cases import Case, Field
from vpmoe.arguments import training_parser
from vpmoe.cases.presets import variants_of
from vpmoe.config import expand_preset_flags
from vpmoe.megatron.start import add_megatron_flags
from vpmoe.runtime import detect_lane
from vpmoe.shipped import shipped, shipped_names


def fields(cases: Sequence[Case]) -> dict[str, Field]:
    """Every field, with the value that each case which trains a preset runs with.

    A field is a flag of `vpmoe pretrain` in snake_case. Megatron's own flags are hundreds: those
    that no preset sets are left out.

    Args:
        cases: of a lane.

    Returns:
        Name of the field -> its default, and its value by case, or by `case/variant`.
    """
    parser = training_parser()
    known = known_fields(parser)
    values: dict[str, dict[str, Any]] = {name: {} for name in known}
    for case in cases:
        preset = case.settings.get("preset")
        if preset is None:
            continue
        for name, words in _trainings(case, preset):
            args, _ = parser.parse_known_args(words)
            for field, found in values.items():
                found[name] = plain(getattr(args, known[field]))
    return {
        name: Field(plain(parser.get_default(known[name])), found) for name, found in values.items()
    }


def _trainings(case: Case, preset: str) -> list[tuple[str, list[str]]]:
    """The flags of each training that a case makes, under the case's name and its variants'."""
    variants = variants_of(case.settings)
    if variants:
        return [(f"{case.name}/{name}", words) for name, words in variants]
    flags = [str(flag) for flag in case.settings.get("flags", ())]
    return [(case.name, expand_preset_flags(["--config", preset, *flags]))]


def known_fields(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Lists vpMoE's own flags, and what a shipped preset sets.

    Args:
        parser: of `vpmoe pretrain`.

    Returns:
        Field -> the attribute that its value is parsed to. A flag of several names is called as a
        preset calls it.
    """
    with detect_lane().activate():
        megatron = add_megatron_flags(argparse.ArgumentParser(allow_abbrev=False))
    theirs = {action.dest for action in megatron._actions}
    preset, found = _preset_fields(), {}
    for action in parser._actions:
        names = [o[2:].replace("-", "_") for o in action.option_strings if o.startswith("--")]
        called = [name for name in names if name in preset]
        if called or (action.dest not in theirs and names):
            found[(called or names)[0]] = action.dest
    return found


def _preset_fields() -> set[str]:
    found: set[str] = set()
    for name in shipped_names():
        if name.endswith(".toml"):
            document = tomllib.loads(Path(shipped(name)).read_text(encoding="utf-8"))
            found |= {field for table in document.values() for field in table}
    return found


def plain(value: Any) -> Any:
    """A parsed value as JSON has it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return str(value)
