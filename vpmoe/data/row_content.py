"""What a row holds: a SYNTH row's three texts, or a conversation, checked; and the row's id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vpmoe.data.encode import ROW_FIELDS, ConversationRow, SynthRow, check_conversation
from vpmoe.data.errors import DataError
from vpmoe.data.json_text import parse_json
from vpmoe.data.openai_chat import CHAT_KEYS, harmony_messages
from vpmoe.tokenizer.harmony_values import HarmonyError, holds_something, read_value, show

CHAT_FORMATS = ("harmony", "openai")
CONVERSATION_FIELDS = ("messages", "messages_json")
# Beside the conversation: ids, and what SYNTH's own columns say about a row.
METADATA_FIELDS = (
    "synth_id",
    "metadata",
    "metadata_json",
    "language",
    "exercise",
    "model",
    "constraints",
    "script",
    "words",
    "seed_license",
    "query_seed_url",
    "query_seed_text",
    "additional_seed_url",
)
ID_FIELDS = ("synth_id", "metadata", "metadata_json")


@dataclass(frozen=True)
class ChatOptions:
    """How rows with messages are taken.

    Attributes:
        form: `harmony`, or `openai` to convert messages of OpenAI's chat form.
        ignored: columns beside the messages that hold nothing to train on.
    """

    form: str = CHAT_FORMATS[0]
    ignored: tuple[str, ...] = ()


HARMONY_CHAT = ChatOptions()


def parse_row(value: Mapping[str, Any], chat: ChatOptions) -> SynthRow | ConversationRow | None:
    """Reads the content of a row.

    Args:
        value: the row's keys and values.
        chat: how rows with messages are taken.

    Returns:
        The content, or None when a field is empty.

    Raises:
        DataError: something that cannot be trained on, or would be lost.
    """
    held = [name for name in CONVERSATION_FIELDS if value.get(name) is not None]
    if held:
        return _conversation(value, held, chat)
    texts = []
    for name in ROW_FIELDS:
        if name not in value:
            raise DataError(
                f"no field `{name}`; a row has {', '.join(ROW_FIELDS)}, or "
                f"{' or '.join(f'`{field}`' for field in CONVERSATION_FIELDS)}"
            )
        text = value[name]
        if text is None or _is_blank(text):
            return None
        if not isinstance(text, str):
            raise DataError(f"`{name}` must be a text, found {show(text)}")
        _check_text(text)
        texts.append(text)
    return SynthRow(*texts)


def row_id(value: Mapping[str, Any]) -> str | None:
    """Reads the id that a row gives itself: `synth_id`, its own or its metadata's.

    Args:
        value: the row's keys and values.

    Returns:
        The id, or None where the row has none.

    Raises:
        DataError: an id that is neither text nor integer, or metadata that cannot be read.
    """
    found = value.get("synth_id")
    if found is None or found == "":
        metadata = value.get("metadata")
        if metadata is None and value.get("metadata_json") is not None:
            metadata = _parse_text(value, "metadata_json")
        found = metadata.get("synth_id") if isinstance(metadata, Mapping) else None
    if not isinstance(found, str | int | None) or isinstance(found, bool):
        raise DataError(f"`synth_id` must be a text, found {show(found)}")
    if found is None or found == "":
        return None
    text = str(found)
    _check_text(text)
    return text


def _conversation(
    value: Mapping[str, Any], held: Sequence[str], chat: ChatOptions
) -> ConversationRow | None:
    if len(held) > 1:
        raise DataError(f"both {' and '.join(f'`{name}`' for name in held)} hold a conversation")
    openai = chat.form == "openai"
    known = {*held, *METADATA_FIELDS, *chat.ignored, *(("tools",) if openai else ())}
    for name, item in value.items():
        if name not in known and holds_something(item):
            remedy = (
                "--chat-format openai puts it into the developer message"
                if name == "tools"
                else "move it into a message or `metadata`, or name it in --ignore-columns"
            )
            raise DataError(
                f"unknown key `{name}` beside the conversation, which holds {show(item)} and would "
                f"be lost; {remedy}"
            )
    messages = _messages(value, held[0])
    _check_text(messages)
    tools = value.get("tools") if openai else None
    if openai:
        if tools is not None and not isinstance(tools, list):
            raise DataError(f"`tools` must be a list, found {show(tools)}")
        messages = harmony_messages(messages, _plain(tools))
    else:
        _refuse_chat_keys(messages)
    row = ConversationRow(messages, converted=openai)
    check_conversation(row)
    return None if any(_says_nothing(message) for message in messages) else row


def _messages(value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    messages = value[name]
    if name == "messages_json":
        messages = _parse_text(value, name)
        if isinstance(messages, dict):
            for key, item in messages.items():
                if key != "messages" and holds_something(item):
                    raise DataError(f"`{name}`: unknown key `{key}`, which would be lost")
            messages = messages.get("messages")
    if not isinstance(messages, list | tuple):
        raise DataError(f"`messages` must be a list, found {show(messages)}")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise DataError(f"message {number} is no object: {show(message)}")
    read: list[dict[str, Any]] = _plain(messages)
    return read


def _parse_text(value: Mapping[str, Any], name: str) -> Any:
    text = value[name]
    if not isinstance(text, str):
        raise DataError(f"`{name}` must be a JSON text, found {show(text)}")
    try:
        return parse_json(text)
    except DataError as error:
        raise DataError(f"`{name}`: {error}") from error


def _plain(value: Any) -> Any:
    try:
        return read_value(value, 1)
    except HarmonyError as error:
        raise DataError(str(error)) from error


def _refuse_chat_keys(messages: Sequence[Mapping[str, Any]]) -> None:
    for number, message in enumerate(messages):
        for key in CHAT_KEYS:
            if holds_something(message.get(key)):
                raise DataError(
                    f"message {number}: unknown key `{key}`, which would be lost: Harmony has "
                    "messages of channels analysis and commentary for it; --chat-format openai "
                    "converts it"
                )


def _says_nothing(message: Mapping[str, Any]) -> bool:
    """An assistant's message without text: nothing but its wrappers would be trained on."""
    if message.get("role") != "assistant" or message.get("recipient") is not None:
        return False
    if "content" not in message:
        return False  # rendering refuses it
    content = message["content"]
    if isinstance(content, list):
        return all(
            isinstance(part, dict) and part.get("type") == "text" and _is_blank(part.get("text"))
            for part in content
        )
    return content is None or _is_blank(content)


def _is_blank(text: Any) -> bool:
    return isinstance(text, str) and (text == "" or text.isspace())


def _check_text(value: Any) -> None:
    """Refuses lone surrogates, which JSON can spell and UTF-8 cannot."""
    if isinstance(value, str):
        if value.isascii():
            return
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"lone surrogate U+{ord(value[error.start]):04X} at character {error.start}"
            ) from error
    elif isinstance(value, Mapping):
        for name, item in value.items():
            _check_text(name)
            _check_text(item)
    elif isinstance(value, Sequence):
        for item in value:
            _check_text(item)
