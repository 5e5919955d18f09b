"""Tools in a Harmony system or developer message, as TypeScript-like declarations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def tools_section(tools: Mapping[str, Any]) -> str:
    """The `# Tools` section."""
    raise NotImplementedError
