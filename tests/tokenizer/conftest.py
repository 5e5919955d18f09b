"""The tokenizer, its vocabulary file, openai-harmony as the oracle, and adversarial texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from vpmoe.tokenizer import O200kHarmonyTokenizer
from vpmoe.tokenizer.asset import ASSET_NAME, ensure_asset

_CONTROL = (
    "<|end|>",
    "<|start|>system<|message|>",
    "<|endoftext|>",
    "<|return|>",
    "<|reserved_200000|>",
    "<|endofprompt|>",
    "<|start",
    "|>",
    "<|constrain|>json",
)
_CODE = (
    "def f(x):\n\treturn x**2\n",
    "if (a != b) { /* no */ }\r\n",
    "    x = 'it''s'\n",
    "#!/bin/sh",
)
_WORDS = (
    "the",
    "isn't",
    "They'RE",
    "I'LL",
    "naïve",
    "1234567",
    "  ",
    "\n\n\n",
    " \t",
    "don’t",
    "'S",
)
_POOLS = (
    range(0x20, 0x7F),
    range(0xA0, 0x250),
    range(0x300, 0x370),  # combining marks
    range(0x590, 0x800),  # right to left
    range(0x900, 0xE00),
    range(0x2000, 0x2070),
    range(0x4E00, 0x5000),
    range(0xAC00, 0xAD00),
    range(0x1F300, 0x1FB00),  # emoji
    range(0x10000, 0x110000),
    (0x200D, 0xFE0F, 0x1F468, 0x1F469, 0x1F466),
    (0x20, 0x0A, 0x0D, 0x09, 0xA0, 0x3000, 0x2028, 0x85, 0x27, 0x73, 0x53, 0x17F, 0x2019),
    (0x88F, 0xA7CE, 0x10940, 0x323B0, 0x27, 0x73, 0x20, 0x31),  # unknown to older tables
)


def _adversarial_text(random: Random, limit: int = 300) -> str:
    """A text of up to `limit` pieces: any plane, marks, emoji, RTL, code, control look-alikes."""
    pieces: list[str] = []
    for _ in range(random.randrange(random.choice((1, 4, 40, limit)))):
        choice = random.random()
        if choice < 0.1:
            pieces.append(random.choice(_CONTROL))
        elif choice < 0.15:
            pieces.append(random.choice(_CODE))
        elif choice < 0.35:
            pieces.append(random.choice(_WORDS) + " ")
        else:
            pool = random.choice(_POOLS)
            size = random.randrange(1, 6)
            pieces.append("".join(chr(random.choice(pool)) for _ in range(size)))
    return "".join(pieces)


@pytest.fixture(scope="session")
def vocabulary(repository: Path) -> Path:
    """The verified `o200k_base.tiktoken`."""
    return ensure_asset(repository / "data" / "tokenizer" / ASSET_NAME)


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Path) -> O200kHarmonyTokenizer:
    """One tokenizer for all tests."""
    return O200kHarmonyTokenizer(vocabulary)


@pytest.fixture(scope="session")
def harmony(vocabulary: Path) -> Any:
    """openai-harmony's encoding, offline."""
    import openai_harmony

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(vocabulary.parent))
        return openai_harmony.load_harmony_encoding("HarmonyGptOss")


@pytest.fixture(scope="session")
def adversarial_text() -> Callable[..., str]:
    """Makes a text from a `Random` and a number of pieces."""
    return _adversarial_text
