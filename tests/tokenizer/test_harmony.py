"""Rendering equals openai-harmony's, message spans cover it, and its errors are ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from vpmoe.tokenizer import O200kHarmonyTokenizer, special
from vpmoe.tokenizer.harmony import ROLES, HarmonyError, HarmonyRenderer

Message = dict[str, Any]
MakeText = Callable[..., str]


@pytest.fixture(scope="module")
def renderer(tokenizer: O200kHarmonyTokenizer) -> HarmonyRenderer:
    return HarmonyRenderer(tokenizer)


def _oracle(harmony: Any, messages: list[Message]) -> list[int]:
    return harmony._inner.render_conversation_for_training(
        conversation_json=json.dumps({"messages": messages}),
        config={"auto_drop_analysis": False},
    )


def _maybe(random: Random, message: Message, key: str, values: list[str], chance: float) -> None:
    if random.random() < chance:
        message[key] = random.choice(values)


def _schema(random: Random, depth: int = 0) -> Any:
    kinds = ["string", "integer", "number", "boolean", "enum", "array", "types", "any", "null"]
    kind = random.choice(kinds + (["object", "object", "oneOf", "oneOf"] if depth < 3 else []))
    schema: dict[str, Any] = {}
    if kind == "object":
        names = ["a", "b_c", "ünï", "d"][: random.randrange(5)]
        schema = {"type": "object", "properties": {n: _schema(random, depth + 1) for n in names}}
        if random.random() < 0.5:
            schema["required"] = random.sample(names, random.randrange(len(names) + 1))
    elif kind == "oneOf":
        schema = {"oneOf": [_schema(random, depth + 1) for _ in range(random.randrange(4))]}
    elif kind == "enum":
        schema = {"type": "string", "enum": ["x", "y", 3][: random.randrange(4)]}
    elif kind == "array":
        schema = {"type": "array"} | ({"items": _schema(random, depth + 1)} if depth < 3 else {})
    elif kind == "types":
        schema = {"type": random.sample(["string", "integer", "null"], 2)}
    elif kind != "any":
        schema = {"type": kind}
    for key, values in (
        ("description", ["one", "two\nlines", ""]),
        ("title", ["T"]),
        ("default", ["q", 1, 2.5, None, True, ["é", 1], {"k": "v"}, "x"]),
        ("examples", [["e", 1], []]),
        ("nullable", [True, False]),
    ):
        if random.random() < 0.25:
            schema[key] = random.choice(values)
    return schema


def _tools(random: Random) -> dict[str, Any]:
    names = random.sample(["functions", "browser", "python", "zeta"], random.randrange(1, 4))
    namespaces = {}
    for name in names:
        tools = []
        for number in range(random.randrange(4)):
            tool: dict[str, Any] = {
                "name": f"tool{number}",
                "description": random.choice(["Does.", "a\nb", "a\r\nb\n", ""]),
            }
            if random.random() < 0.8:
                tool["parameters"] = _schema(random)
            tools.append(tool)
        namespaces[name] = {"name": name, "tools": tools}
        _maybe(random, namespaces[name], "description", ["About.", "Two\nlines"], 0.5)
    return namespaces


def _content(random: Random, role: str, adversarial_text: MakeText) -> Any:
    if role == "system" and random.random() < 0.6:
        content: dict[str, Any] = {"type": "system_content"}
        for key, values in (
            ("model_identity", ["You are vpMoE.", "", None]),
            ("knowledge_cutoff", ["2024-06", None]),
            ("conversation_start_date", ["2026-01-01", None]),
            ("reasoning_effort", ["Low", "Medium", "High", None]),
            (
                "channel_config",
                [
                    {"valid_channels": ["analysis", "final"], "channel_required": True},
                    {"valid_channels": ["a"], "channel_required": False},
                    {"valid_channels": [], "channel_required": True},
                    None,
                ],
            ),
        ):
            if random.random() < 0.8:
                content[key] = random.choice(values)
        if random.random() < 0.3:
            content["tools"] = _tools(random)
        return [content]
    if role == "developer" and random.random() < 0.6:
        content = {"type": "developer_content"}
        if random.random() < 0.8:
            content["instructions"] = adversarial_text(random, 40)
        if random.random() < 0.4:
            content["tools"] = _tools(random)
        return [content]
    text = adversarial_text(random, 40)
    if random.random() < 0.2:
        return [
            {"type": "text", "text": text},
            {"type": "text", "text": adversarial_text(random, 9)},
        ]
    return text


def _conversation(random: Random, adversarial_text: MakeText) -> list[Message]:
    messages = []
    for _ in range(random.randrange(1, 7)):
        role = random.choice(ROLES)
        message: Message = {"role": role, "content": _content(random, role, adversarial_text)}
        _maybe(random, message, "name", ["bob", "functions.f"], 1.0 if role == "tool" else 0.1)
        _maybe(random, message, "recipient", ["all", "functions.f", "assistant"], 0.2)
        channels = ["analysis", "final", "final", "commentary"]
        _maybe(random, message, "channel", channels, 0.9 if role == "assistant" else 0.1)
        types = ["<|constrain|>json", "json", "<|constrain|>", "code é"]
        _maybe(random, message, "content_type", types, 0.15)
        messages.append(message)
    return messages


def test_equals_openai_harmony_on_2000_conversations(
    renderer: HarmonyRenderer, harmony: Any, adversarial_text: MakeText
) -> None:
    random = Random(5)
    compared = 0
    while compared < 2000:
        messages = _conversation(random, adversarial_text)
        rendering = renderer.render_conversation(messages)
        assert rendering.tokens == _oracle(harmony, messages), messages
        spans = rendering.messages
        assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
        assert spans[-1].end == len(rendering.tokens)
        assert all(rendering.tokens[span.start] == special.START for span in spans)
        compared += 1


def test_equals_openai_harmony_on_empty_and_huge_messages(
    renderer: HarmonyRenderer, harmony: Any, adversarial_text: MakeText
) -> None:
    random = Random(6)
    text = "".join(adversarial_text(random) for _ in range(200))
    texts = ["", "x1 " * 33_334, (text * 20)[:100_000]]
    for content in texts:
        messages = [
            {"role": "user", "content": content},
            {"role": "assistant", "channel": "analysis", "content": content},
            {"role": "assistant", "channel": "final", "content": content},
        ]
        assert renderer.render_conversation(messages).tokens == _oracle(harmony, messages)


@pytest.mark.parametrize(
    ("message", "match"),
    [
        ({"role": "robot", "content": "x"}, "unknown role 'robot'"),
        ({"role": "tool", "content": "x"}, "tool's name"),
        ({"role": "user", "content": [{"type": "system_content"}]}, "system_content"),
        ({"role": "user", "content": [{"type": "developer_content"}]}, "developer_content"),
        ({"role": "user", "content": [{"type": "image"}]}, "unknown content"),
        ({"role": "user"}, "`content`"),
        ({"role": "user", "content": "x", "channel": 3}, "`channel`"),
        (
            {
                "role": "developer",
                "content": [{"type": "developer_content", "tools": {"functions": "no"}}],
            },
            "malformed|tools",
        ),
    ],
)
def test_what_harmony_refuses_is_refused(
    renderer: HarmonyRenderer, harmony: Any, message: Message, match: str
) -> None:
    with pytest.raises(HarmonyError, match=match) as caught:
        renderer.render_conversation([{"role": "user", "content": "fine"}, message])
    assert str(caught.value).startswith("message 1: ")
    with pytest.raises(Exception, match=r".") as refused:
        _oracle(harmony, [message])
    assert not isinstance(refused.value, AssertionError)


def test_last_token_by_the_last_message(renderer: HarmonyRenderer) -> None:
    def last(**message: Any) -> int:
        return renderer.render_conversation([{"content": "x", **message}]).tokens[-1]

    assert last(role="assistant", channel="final") == special.RETURN
    assert last(role="assistant", channel="analysis") == special.END
    assert last(role="assistant", channel="commentary", recipient="f") == special.CALL
    assert last(role="user") == special.END


def test_chat_template_is_the_renderer(
    tokenizer: O200kHarmonyTokenizer, renderer: HarmonyRenderer
) -> None:
    messages = [{"role": "user", "content": "hi"}]
    ids = renderer.render_conversation(messages).tokens
    assert tokenizer.apply_chat_template(messages) == ids
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|start|>user<|message|>hi<|end|>"
    with pytest.raises(ValueError, match="chat_template"):
        tokenizer.apply_chat_template(messages, chat_template="jinja")
