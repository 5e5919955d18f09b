"""Profiles: the system and developer messages that rows without messages of their own get."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Profile:
    """What stands before the user's query.

    Attributes:
        name: as `--profile` takes it.
        messages: Harmony messages, system and developer.
    """

    name: str
    messages: tuple[Mapping[str, Any], ...]

    @property
    def sha256(self) -> str:
        """Digest of the messages."""
        canonical = json.dumps(self.messages, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def _message(role: str, content: str | Mapping[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": content if isinstance(content, str) else [content]}


_SHORT = Profile(
    "short", (_message("system", "You are vpMoE."), _message("developer", "Think, then answer."))
)

# The text of the published SYNTH smoke set.
_SYNTH_KD_V1 = Profile(
    "synth_kd_v1",
    (
        _message(
            "system",
            {
                "type": "system_content",
                "model_identity": "You are vpMoE, a large language model trained by Veer Pareek.",
                "knowledge_cutoff": "2024-06",
                "conversation_start_date": "2026-01-01",
                "reasoning_effort": "High",
                "channel_config": {
                    "valid_channels": ["analysis", "commentary", "final"],
                    "channel_required": True,
                },
            },
        ),
        _message(
            "developer",
            {
                "type": "developer_content",
                "instructions": "Follow the user's request. When you provide an answer, produce "
                "both:\n- reasoning in the analysis channel\n- the user-facing answer in the final "
                "channel",
            },
        ),
    ),
)

PROFILES = {profile.name: profile for profile in (_SHORT, _SYNTH_KD_V1)}
DEFAULT_PROFILE = _SHORT.name


def get_profile(name: str) -> Profile:
    """Looks up a profile.

    Args:
        name: of the profile.

    Returns:
        The profile.

    Raises:
        ValueError: no such profile; the message lists them.
    """
    if name not in PROFILES:
        raise ValueError(
            f"--profile {name}: unknown profile; choose from {', '.join(sorted(PROFILES))}"
        )
    return PROFILES[name]
