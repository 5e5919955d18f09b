"""Records of Harmony's values: how numbers are spelt, and what is no value, key or message."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from validation.running.recorder import Recorder
from vpmoe.cases.data.refusing import record_refusal
from vpmoe.data.encode import ConversationRow, check_conversation
from vpmoe.tokenizer.harmony import HarmonyRenderer
from vpmoe.tokenizer.harmony_values import read_value, write_value
from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer

_NUMBERS = (
    *(0, -1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 12345678901234567890123, 10**300),
    *(0.0, -0.0, 0.1, -2.5, 1.0, 123456.0, 1e15, 1e16, 123456789012345680.0, 1e21, 1.5e300),
    *(1e-4, 1e-5, 1.25e-5, 1e-6, 1e-7, 2.2250738585072014e-308, 5e-324, 1.7976931348623157e308),
    *(3.141592653589793, 0.30000000000000004, 9007199254740993.0, 18446744073709551615.0),
)


class _Kind(Enum):
    """An enumeration, such as openai-harmony's roles."""

    USER = "user"
    NUMBER = 1.5


def record_values(recorder: Recorder, tokenizer: O200kHarmonyTokenizer, folder: Path) -> None:
    """Records how values are read and written, and which are refused.

    Args:
        recorder: of this process.
        tokenizer: renders messages.
        folder: an empty one.
    """
    for number in _NUMBERS:
        written = write_value(read_value(number, 0))
        recorder.discrete(f"value/{_short(number)}", written, tensor="written", phase="data")
    values: dict[str, Any] = {
        "nested": {"a": [None, True, 'é"\n', {"b": (1, 2.0)}], "c": {}},
        "enumerations": {_Kind.USER: [_Kind.USER, _Kind.NUMBER]},
        "infinite": float("inf"),
        "not_a_number": [float("nan")],
        "beyond_floats": 9 * 10**308,
        "beyond_digits": -(10**309),
        "a_set": {"a": {1}},
        "bytes": b"x",
        "number_as_key": {1: 2},
        "deepest": _deep(127),
        "too_deep": _deep(128),
    }
    for name, value in values.items():
        call = _written_as(value)
        record_refusal(recorder, f"value/{name}", call, folder)
    renderer = HarmonyRenderer(tokenizer)
    developer = [{"type": "developer_content", "instructions": "a\ud800"}]
    conversations: dict[str, list[Any]] = {
        "none": [],
        "no_object": [3],
        "no_value": [{"role": "user", "content": {1}}],
        "surrogate": [{"role": "developer", "content": developer}],
        "surrogate_in_text": [{"role": "user", "content": "a\ud800"}],
        "enumeration": [{"role": _Kind.USER, "content": "x"}],
    }
    for name, messages in conversations.items():
        record_refusal(
            recorder,
            f"message/{name}",
            lambda messages=messages: renderer.render_conversation(messages).tokens,  # type: ignore[misc]
            folder,
        )
    row = ConversationRow([3])  # type: ignore[list-item]
    record_refusal(recorder, "message/of_a_row", lambda: check_conversation(row), folder)


def _short(number: float) -> str:
    digits = repr(number)
    return digits if len(digits) < 32 else f"integer of {len(digits)} digits"


def _written_as(value: Any) -> Callable[[], str]:
    return lambda: write_value(read_value(value, 0))


def _deep(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value
