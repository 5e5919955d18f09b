"""Conversations in OpenAI's Harmony format, as token ids with the place of every message.

Ids equal openai-harmony's `render_conversation_for_training` without dropping analysis messages
(https://github.com/openai/harmony, `docs/format.md`); the tests compare the two. On purpose this
renderer refuses what openai-harmony drops in silence: a key that it does not know and that holds
something.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vpmoe.tokenizer import special
from vpmoe.tokenizer.harmony_content import developer_text, has_function_tools, system_text
from vpmoe.tokenizer.harmony_values import HarmonyError, check_keys, field, read_value, show

if TYPE_CHECKING:
    from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer

ROLES = ("system", "developer", "user", "assistant", "tool")
MESSAGE_KEYS = ("role", "name", "content", "channel", "recipient", "content_type")
_CONSTRAIN_NAME = "<|constrain|>"
_AROUND_MESSAGE = 2  # openai-harmony reads a conversation: an object, and in it the list

__all__ = [
    "MESSAGE_KEYS",
    "ROLES",
    "HarmonyError",
    "HarmonyRenderer",
    "MessageSpan",
    "Rendering",
]


@dataclass(frozen=True)
class MessageSpan:
    """Where a message lies in the ids: [start, end), header and closing token included."""

    role: str
    channel: str | None
    start: int
    end: int


@dataclass
class Rendering:
    """A rendered conversation.

    Attributes:
        tokens: ids.
        messages: a span for every message, in order; together they cover all ids.
    """

    tokens: list[int] = dataclasses.field(default_factory=list)
    messages: list[MessageSpan] = dataclasses.field(default_factory=list)


class HarmonyRenderer:
    """Renders conversations with one tokenizer.

    Args:
        tokenizer: encodes the texts; control tokens come from the renderer alone.
    """

    def __init__(self, tokenizer: O200kHarmonyTokenizer) -> None:
        self._encode = tokenizer.tokenize

    def render_conversation(self, messages: Sequence[Mapping[str, Any]]) -> Rendering:
        """Ids of a conversation for training.

        Args:
            messages: as openai-harmony's JSON, or its `Message.to_dict()`, has them: `role`,
                `content` (a text, or a list of `{"type": "text" | "system_content" |
                "developer_content"}`), and optionally `name`, `channel`, `recipient`,
                `content_type`.

        Returns:
            The ids, in which a last message of assistant/final ends with `<|return|>` and all
            others keep their `<|end|>` or `<|call|>`, and the span of every message.

        Raises:
            HarmonyError: a message that Harmony has no form for, or a key that would be lost.
        """
        plain = [_read_message(number, message) for number, message in enumerate(messages)]
        function_tools = has_function_tools(plain)
        rendering = Rendering()
        for number, message in enumerate(plain):
            start = len(rendering.tokens)
            try:
                rendering.tokens += self._render_message(message, function_tools)
            except HarmonyError as error:
                raise HarmonyError(f"message {number}: {error}") from error
            rendering.messages.append(
                MessageSpan(_role(message), message.get("channel"), start, len(rendering.tokens))
            )
        if rendering.messages:
            last = rendering.messages[-1]
            if (last.role, last.channel) == ("assistant", "final"):
                rendering.tokens[-1] = special.RETURN
        return rendering

    def _render_message(self, message: Mapping[str, Any], function_tools: bool) -> list[int]:
        role = _role(message)
        check_keys(message, MESSAGE_KEYS)
        for key in ("name", "recipient", "channel", "content_type"):
            field(message, key, str)
        recipient = message.get("recipient")
        tokens = [special.START, *self._encode_name(role, message.get("name"))]
        if recipient is not None and recipient != "all":
            tokens += self._encode(f" to={recipient}")
        if message.get("channel") is not None:
            tokens += [special.CHANNEL, *self._encode(message["channel"])]
        if message.get("content_type") is not None:
            tokens += self._encode_content_type(message["content_type"])
        tokens.append(special.MESSAGE)
        for text in _texts(message, role, function_tools):
            tokens += self._encode(text)
        to_tool = role == "assistant" and recipient is not None
        tokens.append(special.CALL if to_tool else special.END)
        return tokens

    def _encode_name(self, role: str, name: str | None) -> list[int]:
        if role == "tool":
            if name is None:
                raise HarmonyError("a message of role tool needs the tool's name in `name`")
            return self._encode(name)
        return self._encode(role) + (self._encode(f":{name}") if name is not None else [])

    def _encode_content_type(self, content_type: str) -> list[int]:
        if content_type.startswith(_CONSTRAIN_NAME):
            rest = content_type.removeprefix(_CONSTRAIN_NAME)
            return [*self._encode(" "), special.CONSTRAIN, *self._encode(rest)]
        return self._encode(f" {content_type}")


def _read_message(number: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise HarmonyError(
            f"message {number} is no object, found {show(message)} ({type(message).__name__}); "
            "openai-harmony's `Message.to_dict()` makes one"
        )
    try:
        read: dict[str, Any] = read_value(message, _AROUND_MESSAGE)
    except HarmonyError as error:
        raise HarmonyError(f"message {number}: {error}") from error
    return read


def _role(message: Mapping[str, Any]) -> str:
    role = message.get("role")
    if role not in ROLES:
        raise HarmonyError(f"unknown role {show(role)}; Harmony has {', '.join(ROLES)}")
    return str(role)


def _texts(message: Mapping[str, Any], role: str, function_tools: bool) -> Iterator[str]:
    contents = message.get("content")
    if isinstance(contents, str):
        yield contents
        return
    if not isinstance(contents, list):
        raise HarmonyError(
            f"`content` must be a text or a list of contents, found {show(contents)}"
        )
    for content in contents:
        kind = content.get("type") if isinstance(content, dict) else None
        if kind == "text":
            check_keys(content, ("type", "text"))
            yield field(content, "text", str, required=True)
        elif kind == "system_content":
            if role != "system":
                raise HarmonyError(f"system_content may appear in a system message, not in {role}")
            yield _utf8(system_text(content, function_tools))
        elif kind == "developer_content":
            if role != "developer":
                raise HarmonyError(
                    f"developer_content may appear in a developer message, not in {role}"
                )
            yield _utf8(developer_text(content))
        else:
            raise HarmonyError(
                f"unknown content {show(content)}; Harmony has text, system_content, "
                "developer_content"
            )


def _utf8(text: str) -> str:
    """Refuses lone surrogates, which openai-harmony's JSON cannot spell."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise HarmonyError(
            f"lone surrogate U+{ord(text[error.start]):04X} in {show(text)}"
        ) from error
    return text
