"""Texts of Harmony's structured contents: the system and the developer message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vpmoe.tokenizer.harmony_tools import tools_section


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
    """The text of a system content: identity, dates, reasoning effort, tools, channels.

    Args:
        content: openai-harmony's fields; one that is absent or None is left out.
        function_tools: the conversation has function tools, which belong to `commentary`.
    """
    top = []
    if content.get("model_identity") is not None:
        top.append(content["model_identity"])
    if content.get("knowledge_cutoff") is not None:
        top.append(f"Knowledge cutoff: {content['knowledge_cutoff']}")
    if content.get("conversation_start_date") is not None:
        top.append(f"Current date: {content['conversation_start_date']}")
    sections = ["\n".join(top)] if top else []
    if content.get("reasoning_effort") is not None:
        sections.append(f"Reasoning: {content['reasoning_effort'].lower()}")
    if content.get("tools"):
        sections.append(tools_section(content["tools"]))
    channels = content.get("channel_config") or {}
    if channels.get("valid_channels"):
        line = f"# Valid channels: {', '.join(channels['valid_channels'])}."
        if channels.get("channel_required"):
            line += " Channel must be included for every message."
        if function_tools:
            line += "\nCalls to these tools must go to the commentary channel: 'functions'."
        sections.append(line)
    return "\n\n".join(sections)


def developer_text(content: Mapping[str, Any]) -> str:
    """The text of a developer content: instructions and tools."""
    sections = []
    if content.get("instructions") is not None:
        sections.append(f"# Instructions\n\n{content['instructions']}")
    if content.get("tools"):
        sections.append(tools_section(content["tools"]))
    return "\n\n".join(sections)
