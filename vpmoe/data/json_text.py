"""JSON as rows hold it: read strictly, so that nothing of it is lost or made up."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from vpmoe.data.errors import DataError


def parse_json(text: str) -> Any:
    """Parses a JSON text.

    Args:
        text: the text.

    Returns:
        Its value.

    Raises:
        DataError: no JSON, NaN or Infinity, a key that occurs twice in an object, an integer of
            too many digits, or nesting that is too deep.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise DataError(f"no JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise DataError("no JSON that can be read: it is nested too deep") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise DataError(f"the key `{twice}` occurs twice in an object; one of them would be lost")
    return value


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:
        raise DataError(f"an integer of {len(digits.lstrip('-'))} digits is too long") from error


def _no_number(name: str) -> Any:
    raise DataError(f"no JSON: {name} is no JSON number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_constant=_no_number
)
