"""Conversations in OpenAI's Harmony format, as token ids with the place of every message.

Ids equal openai-harmony's `render_conversation_for_training` without dropping analysis messages
(https://github.com/openai/harmony, `docs/format.md`); the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vpmoe.tokenizer import special
from vpmoe.tokenizer.harmony_content import developer_text, has_function_tools, system_text

if TYPE_CHECKING:
    from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer

ROLES = ("system", "developer", "user", "assistant", "tool")
_CONSTRAIN_NAME = "<|constrain|>"


class HarmonyError(ValueError):
    """A conversation that is not Harmony; the message says which message and what to do."""


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

    tokens: list[int] = field(default_factory=list)
    messages: list[MessageSpan] = field(default_factory=list)


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
            messages: as openai-harmony's JSON has them: `role`, `content` (a
                text, or a list of `{"type": "text" | "system_content" | "developer_content"}`),
                and optionally `name`, `channel`, `recipient`, `content_type`.

        Returns:
            The ids, in which a last message of assistant/final ends with `<|return|>` and all
            others keep their `<|end|>` or `<|call|>`, and the span of every message.

        Raises:
            HarmonyError: a message that Harmony has no form for.
        """
        function_tools = has_function_tools(messages)
        rendering = Rendering()
        for number, message in enumerate(messages):
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
        for key in ("name", "recipient", "channel", "content_type"):
            if not isinstance(message.get(key), str | None):
                raise HarmonyError(f"`{key}` must be a text, found {message[key]!r}")
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


def _role(message: Mapping[str, Any]) -> str:
    role = message.get("role")
    if role not in ROLES:
        raise HarmonyError(f"unknown role {role!r}; Harmony has {', '.join(ROLES)}")
    return str(role)


def _texts(message: Mapping[str, Any], role: str, function_tools: bool) -> Iterator[str]:
    contents = message.get("content")
    if isinstance(contents, str):
        yield contents
        return
    if not isinstance(contents, Sequence):
        raise HarmonyError(f"`content` must be a text or a list of contents, found {contents!r}")
    for content in contents:
        kind = content.get("type") if isinstance(content, Mapping) else None
        if kind == "text" and isinstance(content.get("text"), str):
            yield content["text"]
        elif kind == "system_content":
            if role != "system":
                raise HarmonyError(f"system_content may appear in a system message, not in {role}")
            yield _structured(system_text, content, function_tools)
        elif kind == "developer_content":
            if role != "developer":
                raise HarmonyError(
                    f"developer_content may appear in a developer message, not in {role}"
                )
            yield _structured(developer_text, content)
        else:
            raise HarmonyError(
                f"unknown content {content!r}; Harmony has text, system_content, developer_content"
            )


def _structured(text_of: Callable[..., str], content: Mapping[str, Any], *options: bool) -> str:
    try:
        text = text_of(content, *options)
        text.encode()
        return text
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise HarmonyError(f"malformed {content['type']}: {error!r}") from error
