"""Special tokens of o200k Harmony: names, ids, and the locked sizes of the vocabulary.

Ids: OpenAI's `o200k_harmony` encoding (tiktoken `openai_public.py`).
"""

from __future__ import annotations

import re

BASE_SIZE = 199_998  # mergeable ranks, ids 0..199997
PADDED_VOCAB_SIZE = 201_088  # ids 0..201087 = 2^7 * 1571

STARTOFTEXT = 199_998
ENDOFTEXT = 199_999
PAD = 200_000  # <|reserved_200000|>: rendering never produces it
RETURN = 200_002
CONSTRAIN = 200_003
CHANNEL = 200_005
START = 200_006
END = 200_007
MESSAGE = 200_008
CALL = 200_012
ENDOFPROMPT = 200_018

_NAMED = {
    "<|startoftext|>": STARTOFTEXT,
    "<|endoftext|>": ENDOFTEXT,
    "<|return|>": RETURN,
    "<|constrain|>": CONSTRAIN,
    "<|channel|>": CHANNEL,
    "<|start|>": START,
    "<|end|>": END,
    "<|message|>": MESSAGE,
    "<|call|>": CALL,
    "<|endofprompt|>": ENDOFPROMPT,
}
_RESERVED = (200_000, 200_001, 200_004, *range(200_009, 200_012), *range(200_013, 201_088))

# 200018 has two names; `<|endofprompt|>` is the one it decodes to.
SPECIAL_TOKENS: dict[str, int] = _NAMED | {f"<|reserved_{n}|>": n for n in _RESERVED}
SPECIAL_NAMES: dict[int, str] = {n: f"<|reserved_{n}|>" for n in _RESERVED} | {
    n: name for name, n in _NAMED.items()
}
SPECIAL_PATTERN = re.compile(
    "|".join(re.escape(name) for name in _NAMED) + r"|<\|reserved_\d{6}\|>"
)
