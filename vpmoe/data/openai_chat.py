"""Messages in OpenAI's chat form as Harmony messages, nothing of them lost.

The form is what chat APIs and the chat templates of gpt-oss take: reasoning in `thinking`
(`reasoning_content`, `reasoning`), calls in `tool_calls` (`function_call`), results in messages of
role `tool` (`function`), declarations in the row's `tools`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vpmoe.data.errors import DataError
from vpmoe.tokenizer.harmony import MESSAGE_KEYS
from vpmoe.tokenizer.harmony_values import HarmonyError, check_keys, field, holds_something

_THINKING = ("thinking", "reasoning_content", "reasoning")
_CALLS = ("tool_calls", "function_call")
# Keys of messages that Harmony does not have and this form does.
CHAT_KEYS = (*_THINKING, *_CALLS, "tool_call_id")
_NAMESPACE = "functions"


def harmony_messages(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None
) -> list[dict[str, Any]]:
    """Converts a chat to Harmony messages.

    An assistant's thinking becomes a message of channel analysis; its calls become messages of
    channel commentary to `functions.NAME`, and its content beside calls a commentary before them;
    other content without a channel is final. A result becomes a message of the tool that was
    called, to the assistant. Declared tools go into the developer message. Other messages stay.

    Args:
        messages: messages of this form, or of Harmony's.
        tools: the row's `tools`.

    Returns:
        The messages.

    Raises:
        DataError: a key or a value that has no place in Harmony; names message or tool.
    """
    called: dict[str, str] = {}
    converted: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        try:
            if message.get("role") == "assistant":
                converted += _assistant(message, called)
            elif message.get("role") in ("tool", "function"):
                converted.append(_result(message, called))
            else:
                check_keys(message, MESSAGE_KEYS)
                converted.append(dict(message))
        except HarmonyError as error:
            raise DataError(f"message {number}: {error}") from error
    if tools:
        _declare(converted, [_declaration(number, tool) for number, tool in enumerate(tools)])
    return converted


def _assistant(message: Mapping[str, Any], called: dict[str, str]) -> Iterator[dict[str, Any]]:
    check_keys(message, (*MESSAGE_KEYS, *_THINKING, *_CALLS))
    thoughts = [key for key in _THINKING if holds_something(message.get(key))]
    if any(message[key] != message[thoughts[0]] for key in thoughts):
        raise HarmonyError(f"both `{thoughts[0]}` and `{thoughts[1]}` hold reasoning; keep one")
    named = {"name": message["name"]} if holds_something(message.get("name")) else {}
    if thoughts:
        text = field(message, thoughts[0], str, required=True)
        yield {"role": "assistant", "channel": "analysis", "content": text} | named
    calls = [_call(call, called) for call in _calls_of(message)]
    content = message.get("content")
    if _has_text(content) or not (thoughts or calls):
        channel = "commentary" if calls else "final"
        plain = {key: message[key] for key in MESSAGE_KEYS if message.get(key) is not None}
        yield {"channel": channel, "content": ""} | plain
    yield from (call | named for call in calls)


def _calls_of(message: Mapping[str, Any]) -> list[Any]:
    calls = list(field(message, "tool_calls", list) or [])
    legacy = field(message, "function_call", dict)
    if legacy and calls:
        raise HarmonyError("both `tool_calls` and `function_call` hold calls; keep one")
    return [legacy] if legacy else calls


def _call(call: Any, called: dict[str, str]) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise HarmonyError("a tool call must be an object")
    function = _function_of(call, ("id", "index"), ("name", "arguments"))
    name = _qualified(field(function, "name", str, required=True))
    identifier = field(call, "id", str)
    if identifier:
        called[identifier] = name
    arguments = function.get("arguments")
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not isinstance(arguments, str):
        raise HarmonyError(f"the `arguments` of a call to {name} must be a text or an object")
    return {
        "role": "assistant",
        "channel": "commentary",
        "recipient": name,
        "content_type": "<|constrain|>json",
        "content": arguments,
    }


def _result(message: Mapping[str, Any], called: Mapping[str, str]) -> dict[str, Any]:
    check_keys(message, (*MESSAGE_KEYS, "tool_call_id"))
    identifier, name = field(message, "tool_call_id", str), field(message, "name", str)
    if identifier and identifier in called:
        name = called[identifier]
    elif not name:
        raise HarmonyError(
            f"no call before it has the id {identifier!r}"
            if identifier
            else "a result needs the `tool_call_id` of its call, or the tool's `name`"
        )
    plain = {key: message[key] for key in MESSAGE_KEYS if message.get(key) is not None}
    sent = {"recipient": "assistant", "channel": "commentary"}
    return sent | plain | {"role": "tool", "name": _qualified(name)}


def _declare(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> None:
    """Puts tools into the developer message, or into a new one after the system's."""
    content: dict[str, Any] = {"type": "developer_content"}
    declared = {_NAMESPACE: {"name": _NAMESPACE, "description": None, "tools": tools}}
    place = next((n for n, m in enumerate(messages) if m.get("role") == "developer"), None)
    if place is None:
        place = next(
            (n for n, m in enumerate(messages) if m.get("role") != "system"), len(messages)
        )
        messages.insert(place, {"role": "developer"})
    else:
        try:
            content["instructions"] = _instructions(messages[place])
        except HarmonyError as error:
            raise DataError(f"the developer message and the row's `tools`: {error}") from error
    messages[place] = messages[place] | {"content": [content | {"tools": declared}]}


def _instructions(message: Mapping[str, Any]) -> str | None:
    """What a developer message says beside tools."""
    if isinstance(message.get("content"), str):
        return str(message["content"])
    parts = field(message, "content", list) or []
    kinds = [part.get("type") if isinstance(part, Mapping) else None for part in parts]
    if kinds == ["developer_content"]:
        check_keys(parts[0], ("type", "instructions"))
        return field(parts[0], "instructions", str)
    if any(kind != "text" for kind in kinds):
        raise HarmonyError("they make no one message; declare the tools in one of the two")
    for part in parts:
        check_keys(part, ("type", "text"))
    return "".join(field(part, "text", str, required=True) for part in parts)


def _declaration(number: int, tool: Any) -> dict[str, Any]:
    try:
        if not isinstance(tool, Mapping):
            raise HarmonyError("a tool must be an object")
        function = _function_of(tool, (), ("name", "description", "parameters", "strict"))
        return {
            "name": field(function, "name", str, required=True),
            "description": field(function, "description", str) or "",
            "parameters": function.get("parameters"),
        }
    except HarmonyError as error:
        raise DataError(f"`tools`: tool {number}: {error}") from error


def _function_of(
    value: Mapping[str, Any], around: tuple[str, ...], keys: tuple[str, ...]
) -> Mapping[str, Any]:
    """The function of a call or a declaration, whether it is wrapped as `function` or not."""
    kind = value.get("type")
    if kind not in (None, "function"):
        raise HarmonyError(f"a tool of type {kind!r}; Harmony has functions")
    function = field(value, "function", dict)
    if function is None:
        check_keys(value, (*around, "type", *keys))
        return value
    check_keys(value, (*around, "type", "function"))
    check_keys(function, keys)
    return function


def _qualified(name: str) -> str:
    prefix = f"{_NAMESPACE}."
    return name if name.startswith(prefix) else prefix + name


def _has_text(content: Any) -> bool:
    return not content.isspace() and content != "" if isinstance(content, str) else bool(content)
