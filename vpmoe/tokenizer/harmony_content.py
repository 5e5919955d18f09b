"""Texts of Harmony's structured contents: the system and the developer message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vpmoe.tokenizer.harmony_tools import tools_section
from vpmoe.tokenizer.harmony_values import HarmonyError, check_keys, field, show

_SYSTEM_KEYS = (
    "type",
    "model_identity",
    "knowledge_cutoff",
    "conversation_start_date",
    "reasoning_effort",
    "tools",
    "channel_config",
)
_EFFORTS = ("Low", "Medium", "High")


def has_function_tools(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a developer content of the conversation has tools in the namespace `functions`."""
    for message in messages:
        contents = message.get("content")
        for content in contents if isinstance(contents, list) else ():
            if isinstance(content, Mapping) and content.get("type") == "developer_content":
                tools = content.get("tools")
                functions = tools.get("functions") if isinstance(tools, Mapping) else None
                if isinstance(functions, Mapping) and functions.get("tools"):
                    return True
    return False


def system_text(content: Mapping[str, Any], function_tools: bool) -> str:
    """Renders a system content: identity, dates, reasoning effort, tools, channels.

    Args:
        content: openai-harmony's fields; one that is absent or None is left out.
        function_tools: the conversation has function tools, which belong to `commentary`.

    Returns:
        The text.

    Raises:
        HarmonyError: a field of another kind, or one that openai-harmony does not have.
    """
    check_keys(content, _SYSTEM_KEYS)
    identity = field(content, "model_identity", str)
    cutoff = field(content, "knowledge_cutoff", str)
    date = field(content, "conversation_start_date", str)
    top = [] if identity is None else [identity]
    if cutoff is not None:
        top.append(f"Knowledge cutoff: {cutoff}")
    if date is not None:
        top.append(f"Current date: {date}")
    sections = ["\n".join(top)] if top else []
    effort = content.get("reasoning_effort")
    if effort is not None:
        if effort not in _EFFORTS:
            raise HarmonyError(
                f"`reasoning_effort` must be {', '.join(_EFFORTS)}, found {show(effort)}"
            )
        sections.append(f"Reasoning: {effort.lower()}")
    if tools := field(content, "tools", dict):
        sections.append(tools_section(tools))
    channels = field(content, "channel_config", dict)
    if channels is not None and (line := _channels(channels, function_tools)):
        sections.append(line)
    return "\n\n".join(sections)


def _channels(config: Mapping[str, Any], function_tools: bool) -> str:
    check_keys(config, ("valid_channels", "channel_required"))
    channels = field(config, "valid_channels", list, required=True)
    required = field(config, "channel_required", bool, required=True)
    if not all(isinstance(channel, str) for channel in channels):
        raise HarmonyError(f"`valid_channels` must be a list of texts, found {show(channels)}")
    if not channels:
        return ""
    line = f"# Valid channels: {', '.join(channels)}."
    if required:
        line += " Channel must be included for every message."
    if function_tools:
        line += "\nCalls to these tools must go to the commentary channel: 'functions'."
    return line


def developer_text(content: Mapping[str, Any]) -> str:
    """Renders a developer content: instructions and tools.

    Args:
        content: openai-harmony's fields.

    Returns:
        The text.

    Raises:
        HarmonyError: a field of another kind, or one that openai-harmony does not have.
    """
    check_keys(content, ("type", "instructions", "tools"))
    instructions = field(content, "instructions", str)
    sections = [] if instructions is None else [f"# Instructions\n\n{instructions}"]
    if tools := field(content, "tools", dict):
        sections.append(tools_section(tools))
    return "\n\n".join(sections)
