"""Values of Harmony's messages: read as openai-harmony reads their JSON, written as it writes them.

openai-harmony gets JSON and reads it with Rust's serde_json, which has 64-bit integers, floating
numbers that may be off by a last bit, a limit on nesting, and another spelling of numbers than
Python. What is rendered must have all of that.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Collection, Mapping
from decimal import Decimal
from enum import Enum
from typing import Any

# serde_json refuses the 128th list or object within another.
_DEEPEST = 127
_LARGEST = 2**64 - 1
_KINDS = {str: "a text", bool: "true or false", list: "a list", dict: "an object"}


class HarmonyError(ValueError):
    """A conversation that is not Harmony; the message says which message and what to do."""


def read_value(value: Any, depth: int) -> Any:
    """A value as openai-harmony would read it from JSON.

    Args:
        value: None, bool, int, float, str, an enumeration of them (taken by value), or lists,
            tuples and mappings of them.
        depth: lists and objects that the value lies in.

    Returns:
        The same of None, bool, int, float, str, list and dict alone.

    Raises:
        HarmonyError: a value that JSON does not have, a number out of range, or nesting that is
            too deep.
    """
    if isinstance(value, Enum):
        return read_value(value.value, depth)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value) if -(2**63) <= value <= _LARGEST else _read_float(value)
    if isinstance(value, float):
        return _read_float(float(value))
    if not isinstance(value, Mapping | list | tuple):
        raise HarmonyError(f"{show(value)} ({type(value).__name__}) is no JSON value")
    if depth >= _DEEPEST:
        raise HarmonyError(f"nested deeper than {_DEEPEST} lists and objects")
    if isinstance(value, Mapping):
        return {_key(key): read_value(item, depth + 1) for key, item in value.items()}
    return [read_value(item, depth + 1) for item in value]


def write_value(value: Any) -> str:
    """A value that `read_value` returned, as serde_json writes it."""
    if isinstance(value, float):
        return _write_float(value)
    if isinstance(value, list):
        return f"[{','.join(map(write_value, value))}]"
    if isinstance(value, dict):
        items = (f"{write_value(key)}:{write_value(item)}" for key, item in value.items())
        return f"{{{','.join(items)}}}"
    return json.dumps(value, ensure_ascii=False)


def field(value: Mapping[str, Any], key: str, kind: type, *, required: bool = False) -> Any:
    """Reads what an object has under a key.

    Args:
        value: an object of a message.
        key: the key.
        kind: the Python type that the value must have.
        required: whether there must be a value.

    Returns:
        The value, or None where there is none.

    Raises:
        HarmonyError: something of another kind, or nothing where something is required.
    """
    found = value.get(key)
    if isinstance(found, kind) or (found is None and not required):
        return found
    raise HarmonyError(f"`{key}` must be {_KINDS[kind]}, found {show(found)}")


def check_keys(value: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuses a key that rendering would drop together with what it holds.

    Args:
        value: an object of a message.
        known: the keys that Harmony has there.

    Raises:
        HarmonyError: names the key and the known ones.
    """
    for key, item in value.items():
        if key not in known and holds_something(item):
            raise HarmonyError(
                f"unknown key `{key}`, which holds {show(item)}: rendering would lose it; Harmony "
                f"has {', '.join(known)} here"
            )


def holds_something(value: Any) -> bool:
    """Whether a value is more than None, an empty text, list or object."""
    return value is not None and value not in ("", [], {})


def show(value: Any) -> str:
    """A value in a few words, however large or deep it is."""
    return reprlib.repr(value)


def _key(key: Any) -> str:
    key = key.value if isinstance(key, Enum) else key
    if not isinstance(key, str):
        raise HarmonyError(f"{show(key)} ({type(key).__name__}) is no key of a JSON object")
    return str.__str__(key)


def _read_float(number: float) -> float:
    """A number as serde_json 1.0 reads it: digits as an integer, times or by a power of ten."""
    if isinstance(number, float) and not math.isfinite(number):
        raise HarmonyError(f"{number} is no JSON number")
    if abs(number) >= 10**309:
        raise HarmonyError("an integer is out of the range of numbers")
    sign, digits, exponent = Decimal(repr(number)).as_tuple()
    assert isinstance(exponent, int)
    significand = 0
    for place, digit in enumerate(digits):
        if significand * 10 + digit > _LARGEST:
            exponent += len(digits) - place
            break
        significand = significand * 10 + digit
    result = float(significand)
    if exponent < -308:
        result /= 1e308
        exponent += 308
    if exponent >= 0:  # of at most 20 digits, so at most 308
        result *= float(f"1e{exponent}")
    else:
        result /= float(f"1e{-exponent}")
    if math.isinf(result):
        raise HarmonyError(f"{number!r} is out of the range of numbers")
    return -result if sign else result


def _write_float(number: float) -> str:
    """A finite number as Rust's ryu writes it: the shortest digits that mean it."""
    if number == 0:
        return "-0.0" if math.copysign(1, number) < 0 else "0.0"
    digits, power = f"{Decimal(repr(abs(number))).normalize():e}".split("e")
    digits = digits.replace(".", "")
    point = int(power) + 1  # digits before the decimal point
    if 0 < point <= 16:
        text = f"{digits[:point].ljust(point, '0')}.{digits[point:] or '0'}"
    elif -5 < point <= 0:
        text = f"0.{'0' * -point}{digits}"
    else:
        text = f"{digits[0]}{'.' * (len(digits) > 1)}{digits[1:]}e{point - 1}"
    return f"-{text}" if number < 0 else text
