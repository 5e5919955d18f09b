"""Presets: one TOML file that says what a vpMoE model is and how it is trained.

A preset holds the flags of `vpmoe pretrain` in snake_case, grouped in tables for the reader.
Megatron's own parser, with vpMoE's flags, knows the fields and checks each; then they are checked
together. `Preset.to_flags()` renders the command line. Flags that a user adds come later and win.

    preset = load_preset(Path("configs/vpmoe-tiny.toml"))
    preset.to_flags()        # ['--num-layers', '4', '--hidden-size', '64', ...]
"""

from __future__ import annotations

import argparse
import difflib
import functools
import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpmoe.config_checks import FieldError, check_together
from vpmoe.data.arguments import plain_sources
from vpmoe.shipped import shipped, shipped_names

TABLES = ("model", "attention", "experts", "optimizer", "training")

_NORMUON_ONLY = ("normuon_", "polar_express_")
_TOKENIZER_ONLY = ("tokenizer_type", "padded_vocab_size")
_SPANS_ONLY = ("kd_span_weight_",)
_RATES = (("lr", "min_lr"), ("normuon_aux_lr", "normuon_aux_min_lr"))
_TABLE_LINE = re.compile(r"\s*\[\s*[\"']?([\w-]+)[\"']?\s*\]")
_FIELD_LINE = re.compile(r"\s*[\"']?([\w-]+)[\"']?\s*=")


class PresetError(ValueError):
    """A preset that cannot be used; the message names the file, the line and the field."""


@dataclass(frozen=True)
class Preset:
    """A validated preset.

    Attributes:
        name: file name without its ending.
        fields: flat mapping from field to value, in the order of the file.
    """

    name: str
    fields: Mapping[str, Any]

    def to_flags(self) -> list[str]:
        """Renders the flags in the file's order.

        `true` is the switch, `false` its `--no-` form where it has one and nothing elsewhere; a
        list is the flag with several values.
        """
        return [word for field, value in self.fields.items() for word in _words(field, value)]


def load_preset(path: Path) -> Preset:
    """Reads and validates a preset.

    Args:
        path: a TOML file, such as `configs/vpmoe-tiny.toml`.

    Returns:
        The preset with every field checked, alone and together with the others.

    Raises:
        PresetError: the file is missing or not TOML, or a field is unknown, missing, of the wrong
            type, or contradicts another one.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except FileNotFoundError as error:
        presets = [name for name in shipped_names() if name.endswith(".toml")]
        raise PresetError(
            f"{path}: no such preset; give a TOML file, or of vpMoE's {', '.join(presets)}"
        ) from error
    except OSError as error:
        raise PresetError(f"{path}: cannot be read: {error.strerror}; give a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PresetError(f"{path}: not valid TOML: {error}") from error
    homes: dict[str, str] = {}
    try:
        fields = _flatten(document, homes)
        words = [word for field, value in fields.items() for word in _words(field, value)]
        check_together(_parser().parse_args(words), fields)
    except FieldError as error:
        home = homes.get(error.field)
        line = _line_of(text, home, error.field)
        where = f"{path}:{line}" if line else f"{path}"
        table = f"[{home}] " if home else ""
        raise PresetError(f"{where}: {table}{error.field}: {error}") from None
    return Preset(name=path.stem, fields=fields)


def expand_preset_flags(argv: list[str]) -> list[str]:
    """Replaces `--config FILE` by the flags that the preset renders to.

    The preset's flags are put first, wherever `--config` stood, so that explicit flags win. Where
    they choose another optimizer, the preset's flags for NorMuon alone are left out, its
    tokenizer's where they have Megatron build another, and its weights of spans where they train
    on data without. Where they set a learning rate below the preset's minimum, the minimum keeps
    the preset's ratio to it.

    Args:
        argv: flags of `vpmoe pretrain`.

    Returns:
        The flags without `--config`.

    Raises:
        PresetError: `--config` without a file, given twice, or an unusable preset.
    """
    rest: list[str] = []
    preset: Path | None = None
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != "--config":
            rest.append(word)
            continue
        file = value if equals else next(words, "")
        if not file or file.startswith("--"):
            raise PresetError("--config needs a file, such as configs/vpmoe-tiny.toml")
        if preset is not None:
            raise PresetError(f"--config is given twice: {preset} and {file}; leave one out")
        preset = shipped(file)
    if preset is None:
        return rest
    loaded = load_preset(preset)
    if _last_value(rest, "--optimizer") not in (None, "normuon"):
        fields = {k: v for k, v in loaded.fields.items() if not k.startswith(_NORMUON_ONLY)}
        loaded = Preset(loaded.name, fields)
    if "--legacy-tokenizer" in rest:
        fields = {k: v for k, v in loaded.fields.items() if k not in _TOKENIZER_ONLY}
        loaded = Preset(loaded.name, fields)
    if any(_is_given(rest, flag) for flag in plain_sources()):
        fields = {k: v for k, v in loaded.fields.items() if not k.startswith(_SPANS_ONLY)}
        loaded = Preset(loaded.name, fields)
    return Preset(loaded.name, _lowered_minima(loaded.fields, rest)).to_flags() + rest


def parse_field(field: str, value: Any) -> Any:
    """Parses a field's value with Megatron's parser.

    Args:
        field: a flag of `vpmoe pretrain` in snake_case.
        value: as a preset gives it, such as `"([0]+[1]*3)"` for `moe_layer_freq`.

    Returns:
        What Megatron's arguments hold for the field.

    Raises:
        FieldError: there is no such flag, or it does not take the value.
    """
    option, action = _option(field)
    _check_type(field, action, value)
    words = _words(field, value)
    try:
        args, rest = _parser().parse_known_args(words)
    except argparse.ArgumentError as error:
        raise FieldError(
            field, f"{error.message}; give what {option} takes: {_help(action)}"
        ) from error
    except Exception as error:  # the flags' own types raise whatever their code runs into
        raise FieldError(
            field,
            f"cannot be read, found {value!r} ({error}); give what {option} takes: {_help(action)}",
        ) from error
    if rest:
        raise FieldError(
            field, f"takes no value that begins with a dash, found {value!r}; use another"
        )
    return getattr(args, action.dest)


def _parser() -> argparse.ArgumentParser:
    # Megatron is imported for the first preset that is read, not with this module.
    from vpmoe.arguments import training_parser

    return training_parser()


@functools.cache
def _options() -> Mapping[str, tuple[str, argparse.Action]]:
    """Returns each field's flag, and the parser's action for it."""
    return {
        option[2:].replace("-", "_"): (option, action)
        for action in _parser()._actions
        for option in action.option_strings
        if option.startswith("--") and action.dest != "help"
    }


def _option(field: str) -> tuple[str, argparse.Action]:
    options = _options()
    if field not in options:
        near = _did_you_mean(field, options)
        raise FieldError(
            field,
            f"unknown field{near}; use one of the flags that `vpmoe pretrain --help` lists",
        )
    return options[field]


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=3, cutoff=0.75)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _help(action: argparse.Action) -> str:
    """Returns a flag's help in one line, for a message."""
    text = " ".join((action.help or "no description").split())
    return text if len(text) <= 160 else text[:157] + "..."


def _check_type(field: str, action: argparse.Action, value: Any) -> None:
    kinds: tuple[type, ...] = (str, int, float)
    if action.nargs == 0:
        kinds = (bool,)
    elif action.type is int:
        kinds = (int,)
    elif action.type is float:
        kinds = (int, float)
    elif action.type is str:
        kinds = (str,)
    several = action.nargs not in (None, 0)
    values = value if several and isinstance(value, list) else [value]
    for one in values:
        if type(one) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            if several:
                expected = f"{expected}, or a list of them"
            raise FieldError(field, f"expected {expected}, found {one!r} ({type(one).__name__})")


def _words(field: str, value: Any) -> list[str]:
    option, action = _option(field)
    if value is True:
        return [option]
    if value is False:
        negative = "--no-" + option[2:]
        return [negative] if negative in action.option_strings else []
    return [option, *(str(one) for one in (value if isinstance(value, list) else [value]))]


def _flatten(document: Mapping[str, Any], homes: dict[str, str]) -> dict[str, Any]:
    """Returns the fields of all tables, each checked alone; notes in `homes` the table of each."""
    fields: dict[str, Any] = {}
    first: dict[str, tuple[str, str]] = {}
    for table, entries in document.items():
        is_table = isinstance(entries, Mapping)
        if table not in TABLES:
            near = _did_you_mean(table, TABLES)
            what = (
                f"no table of a preset{near}; use one of"
                if is_table
                else "outside of a table; put it into one of"
            )
            raise FieldError(f"[{table}]" if is_table else table, f"{what}: {', '.join(TABLES)}")
        if not is_table:
            raise FieldError(table, f"must be a table of fields, found {entries!r}")
        for field, value in entries.items():
            homes[field] = table
            _, action = _option(field)
            place = (field, table)
            # A flag may have several names, and a field stand in several tables.
            earlier = first.setdefault(action.option_strings[0], place)
            if earlier != place:
                also = f"{earlier[0]} in [{earlier[1]}]"
                raise FieldError(field, f"set twice: also as {also}; leave one out")
            parse_field(field, value)
            fields[field] = value
    return fields


def _line_of(text: str, table: str | None, name: str) -> int | None:
    """Returns the line of a field in its table, or of the table that is named `[name]`.

    None where it has no line of its own, as in `model = {num_layers = 4}`.
    """
    current: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if match := _TABLE_LINE.match(line):
            current = match[1]
            if table is None and name == f"[{current}]":
                return number
        elif (match := _FIELD_LINE.match(line)) and (current, match[1]) == (table, name):
            return number
    return None


def _lowered_minima(fields: Mapping[str, Any], words: list[str]) -> dict[str, Any]:
    """The fields, with minimum learning rates that stay below the maxima of the command line."""
    lowered = dict(fields)
    for high, low in _RATES:
        given = _last_value(words, "--" + high.replace("_", "-"))
        if given is None or low not in fields:
            continue
        try:
            rate = float(given)
        except ValueError:  # the parser refuses it
            continue
        if 0 < rate < fields[low]:
            lowered[low] = rate * fields[low] / fields.get(high, fields[low])
    return lowered


def _is_given(words: list[str], flag: str) -> bool:
    return any(word.partition("=")[0] == flag for word in words)


def _last_value(words: list[str], flag: str) -> str | None:
    found = None
    for word, following in itertools.pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name == flag:
            found = value if equals else following
    return found
