"""Developer messages and tools equal openai-harmony's for any JSON value, and types are strict."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai_harmony import (
    Author,
    DeveloperContent,
    Message,
    ReasoningEffort,
    Role,
    SystemContent,
    ToolDescription,
    ToolNamespaceConfig,
)

from vpmoe.tokenizer import O200kHarmonyTokenizer
from vpmoe.tokenizer.harmony import HarmonyError, HarmonyRenderer
from vpmoe.tokenizer.harmony_values import read_value, write_value

_TEXTS = st.text(max_size=8) | st.sampled_from(
    ["", "a\r\nb\r", "\r", "x\n\n", "null", "<|end|>", '"q"\\', "\x00\x1f\x7f\u2028", "é🌈"]
)
_NUMBERS = (
    st.integers()
    | st.integers(-(2**70), 2**70)
    | st.integers(10**300, 10**308)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([2**63, -(2**63) - 1, 2**64 - 1, 2**64, 1e15, 1e16, 1e-5, 1e-6, -0.0, 5e-324])
    | st.sampled_from([9007199254740993.0, 1.2345678901234568e20, 1.7976931348623157e308])
)
_ANY = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)
_TYPES = st.sampled_from(["object", "array", "string", "number", "integer", "boolean", "null", "x"])


def _schema(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A schema: every keyword that is rendered is absent, as meant, or any value at all."""
    names = st.sampled_from(["a", "b c", "ünï", ""]) | _TEXTS
    keywords = {
        "type": _TYPES | st.lists(_TYPES, max_size=3) | _ANY,
        "description": _TEXTS | _ANY,
        "title": _TEXTS | _ANY,
        "default": _ANY,
        "enum": st.lists(_TEXTS | _NUMBERS, max_size=3) | _ANY,
        "examples": st.lists(_TEXTS | _ANY, max_size=3) | _ANY,
        "nullable": st.booleans() | _ANY,
        "properties": st.dictionaries(names, inner, max_size=3) | _ANY,
        "required": st.lists(names, max_size=3) | _ANY,
        "items": inner,
        "oneOf": st.lists(inner, max_size=3) | _ANY,
    }
    return st.fixed_dictionaries({}, optional=keywords)


_SCHEMAS = st.recursive(_ANY, _schema, max_leaves=6)
_TOOLS = st.fixed_dictionaries(
    {"name": _TEXTS, "description": _TEXTS}, optional={"parameters": _SCHEMAS}
)
_NAMESPACES = st.dictionaries(
    st.sampled_from(["functions", "browser"]) | _TEXTS,
    st.fixed_dictionaries(
        {"name": _TEXTS, "tools": st.lists(_TOOLS, max_size=3)},
        optional={"description": st.none() | _TEXTS},
    ),
    max_size=3,
)
_DEVELOPERS = st.fixed_dictionaries(
    {"type": st.just("developer_content")},
    optional={"instructions": st.none() | _TEXTS, "tools": st.none() | _NAMESPACES},
)
_SYSTEMS = st.fixed_dictionaries(
    {"type": st.just("system_content")},
    optional={
        "model_identity": st.none() | _TEXTS,
        "knowledge_cutoff": st.none() | _TEXTS,
        "conversation_start_date": st.none() | _TEXTS,
        "reasoning_effort": st.sampled_from([None, "Low", "Medium", "High"]),
        "tools": st.none() | _NAMESPACES,
        "channel_config": st.none()
        | st.fixed_dictionaries(
            {"valid_channels": st.lists(_TEXTS, max_size=3), "channel_required": st.booleans()}
        ),
    },
)


@pytest.fixture(scope="module")
def renderer(tokenizer: O200kHarmonyTokenizer) -> HarmonyRenderer:
    return HarmonyRenderer(tokenizer)


def _oracle(harmony: Any, messages: list[Any]) -> list[int] | None:
    """openai-harmony's ids; None when it refuses."""
    text = json.dumps({"messages": messages})
    try:
        ids: list[int] = harmony._inner.render_conversation_for_training(
            conversation_json=text, config={"auto_drop_analysis": False}
        )
    except (ValueError, RuntimeError):
        return None
    return ids


def _ours(renderer: HarmonyRenderer, messages: list[Any]) -> list[int] | None:
    try:
        return renderer.render_conversation(messages).tokens
    except HarmonyError:
        return None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(developer=_DEVELOPERS, system=_SYSTEMS)
def test_any_schema_is_rendered_as_openai_harmony_renders_it(
    renderer: HarmonyRenderer, harmony: Any, developer: Any, system: Any
) -> None:
    messages = [
        {"role": "system", "content": [system]},
        {"role": "developer", "content": [developer]},
    ]
    expected = _oracle(harmony, messages)
    assert _ours(renderer, messages) == expected


_ANY_BUT_LISTS = _ANY.filter(lambda value: not isinstance(value, list))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_field_of_any_other_type_is_refused_as_openai_harmony_refuses_it(
    renderer: HarmonyRenderer, harmony: Any, data: st.DataObject
) -> None:
    """openai-harmony also takes a list of an object's fields for the object; ours does not."""
    tool = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    namespace = {"name": "functions", "description": None, "tools": [tool]}
    channels = {"valid_channels": ["final"], "channel_required": True}
    system = {"type": "system_content", "tools": {"t": namespace}, "channel_config": channels}
    developer = {"type": "developer_content", "tools": {"functions": namespace}}
    messages = [
        {"role": "system", "content": [system]},
        {"role": "developer", "content": [developer]},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
    ]
    owner, keys = data.draw(
        st.sampled_from(
            [
                (tool, ("name", "description")),
                (namespace, ("name", "description", "tools")),
                (channels, ("valid_channels", "channel_required")),
                (system, ("model_identity", "reasoning_effort", "tools", "channel_config")),
                (developer, ("instructions", "tools", "type")),
                (messages[2], ("role", "name", "content", "channel", "recipient", "content_type")),
                (messages[2]["content"][0], ("type", "text")),
            ]
        )
    )
    key = data.draw(st.sampled_from(keys))
    value = data.draw(_ANY_BUT_LISTS)
    if data.draw(st.booleans()):
        owner[key] = value
    else:
        owner.pop(key, None)
    expected, found = _oracle(harmony, messages), _ours(renderer, messages)
    # What openai-harmony ignores, an unknown key of a `tools` entry say, is refused on purpose.
    assert found == expected or (found is None and isinstance(value, dict))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_NUMBERS)
def test_numbers_are_spelt_as_openai_harmony_spells_them(
    renderer: HarmonyRenderer, harmony: Any, number: float
) -> None:
    schema = {"type": "object", "properties": {"n": {"default": number}}}
    tool = {"name": "f", "description": "", "parameters": schema}
    tools = {"functions": {"name": "functions", "tools": [tool]}}
    content = [{"type": "developer_content", "tools": tools}]
    messages = [{"role": "developer", "content": content}]
    assert _ours(renderer, messages) == _oracle(harmony, messages)


def test_nesting_is_refused_where_openai_harmony_refuses_it(
    renderer: HarmonyRenderer, harmony: Any
) -> None:
    refused = []
    for depth in (*range(100, 135), 5000):
        value: Any = "x"
        for _ in range(depth):
            value = [value]
        schema = {"type": "object", "properties": {"n": {"default": value}}}
        tool = {"name": "f", "description": "", "parameters": schema}
        tools = {"functions": {"name": "functions", "tools": [tool]}}
        content = [{"type": "developer_content", "tools": tools}]
        messages = [{"role": "developer", "content": content}]
        found = _ours(renderer, messages)
        if depth < 1000:  # beyond, Python's own json gives up
            assert found == _oracle(harmony, messages), depth
        refused.append(found is None)
    assert refused[-1]
    assert not refused[0]


def test_messages_of_openai_harmony_are_rendered_by_value(
    renderer: HarmonyRenderer, tokenizer: O200kHarmonyTokenizer, harmony: Any
) -> None:
    schema = {"type": "object", "properties": {"place": {"type": "string"}}}
    weather = ToolDescription.new("weather", "Tells it.", parameters=schema)
    system = SystemContent.new().with_reasoning_effort(ReasoningEffort.HIGH).with_python_tool()
    developer = DeveloperContent.new().with_instructions("Be kind.")
    messages = [
        Message.from_role_and_content(Role.SYSTEM, system),
        Message.from_role_and_content(
            Role.DEVELOPER,
            developer.with_function_tools([weather]).with_tools(ToolNamespaceConfig.browser()),
        ),
        Message.from_role_and_content(Role.USER, "Rain?"),
        Message.from_role_and_content(Role.ASSISTANT, "{}")
        .with_channel("commentary")
        .with_recipient("functions.weather")
        .with_content_type("<|constrain|>json"),
        Message.from_author_and_content(Author.new(Role.TOOL, "functions.weather"), "no"),
        Message.from_role_and_content(Role.ASSISTANT, "No.").with_channel("final"),
    ]
    dicts = [message.to_dict() for message in messages]
    assert isinstance(dicts[0]["role"], Role)
    rendering = renderer.render_conversation(dicts)
    assert rendering.tokens == _oracle(harmony, dicts)
    assert rendering.messages[0].role == "system"
    assert type(rendering.messages[0].role) is str
    text = tokenizer.apply_chat_template(dicts, tokenize=False)
    assert isinstance(text, str)
    assert text.startswith("<|start|>system<|message|>")
    assert "Reasoning: high" in text
    with pytest.raises(HarmonyError, match=r"message 0 is no object.*to_dict"):
        renderer.render_conversation(messages)


class _Number(Enum):
    ONE = 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"role": Path("user")}, "no JSON value"),
        ({"role": _Number.ONE}, "unknown role 1"),
        ({"role": b"user"}, "no JSON value"),
        ({"content": b"x"}, "no JSON value"),
        ({"content": {"type": "text", "text": "x"}}, "`content`"),
        ({"content": [{"type": "text", "text": np.int64(3)}]}, "no JSON value"),
        ({"content": [{"type": "text", "text": "x", "annotations": [1]}]}, "`annotations`"),
        ({"name": 3}, "`name` must be a text, found 3"),
        ({"channel": _Number.ONE}, "`channel` must be a text, found 1"),
        ({"thinking": "deep"}, "unknown key `thinking`, which holds 'deep'"),
        ({"weight": 0}, "unknown key `weight`"),
        ({3: "x"}, "no key of a JSON object"),
    ],
)
def test_what_has_no_known_type_or_key_is_refused(
    renderer: HarmonyRenderer, change: Any, match: str
) -> None:
    message = {"role": "user", "content": "x"}
    with pytest.raises(HarmonyError, match=rf"^message 1: .*{match}"):
        renderer.render_conversation([message, message | change])


def test_unknown_keys_without_content_are_no_loss(renderer: HarmonyRenderer) -> None:
    message = {"role": "user", "content": "x"}
    empty = {"refusal": None, "tool_calls": [], "thinking": "", "metadata": {}}
    expected = renderer.render_conversation([message]).tokens
    assert renderer.render_conversation([message | empty]).tokens == expected


@pytest.mark.parametrize(
    "number",
    [float("nan"), float("inf"), 10**400, -(10**5000)],
    ids=["nan", "inf", "large", "huge"],
)
def test_what_is_no_json_number_is_refused(number: float) -> None:
    with pytest.raises(HarmonyError, match="number"):
        read_value({"n": number}, 0)


def test_values_are_written_as_serde_json_writes_them() -> None:
    value = {"é": [1, 2.0, 1e16, 1e-5, 1e-6, 1.5e-7, 2**64, None, True, '\x01"'], "a": {}}
    text = '{"é":[1,2.0,1e16,0.00001,1e-6,1.5e-7,1.8446744073709552e19,null,true,"\\u0001\\""]'
    assert write_value(read_value(value, 0)) == text + ',"a":{}}'
