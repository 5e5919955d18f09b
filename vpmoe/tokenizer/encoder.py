"""The encoder behind the tokenizer: text to o200k_base ids, exactly tiktoken's, faster.

quicktok is the fastest of the encoders with o200k (`benchmarks/README.md`). It differs from
tiktoken, and from openai-harmony, in two things: the pattern's case-insensitive `'s` also matches
U+017F (long s), and letters that Unicode 17 added are unassigned to tiktoken. Texts with those
code points, and with lone surrogates, are encoded by tiktoken itself. `benchmarks/data_encoders.py`
compares the two on every code point, `tests/tokenizer` on adversarial text.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tiktoken import Encoding

# o200k's split pattern, as tiktoken's openai_public.py has it.
SPLIT_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
# Where quicktok 0.4 and tiktoken differ, first and last code point; surrogates are no text at all.
_DIFFERING = (
    (0x17F, 0x17F),
    (0x88F, 0x88F),
    (0xC5C, 0xC5C),
    (0xCDC, 0xCDC),
    (0x1ACF, 0x1ADD),
    (0x1AE0, 0x1AEB),
    (0xA7CE, 0xA7CF),
    (0xA7D2, 0xA7D2),
    (0xA7D4, 0xA7D4),
    (0xA7F1, 0xA7F1),
    (0xD800, 0xDFFF),
    (0x10940, 0x10959),
    (0x10EC5, 0x10EC7),
    (0x10EFA, 0x10EFB),
    (0x11B60, 0x11B67),
    (0x11DB0, 0x11DDB),
    (0x11DE0, 0x11DE9),
    (0x16EA0, 0x16EB8),
    (0x16EBB, 0x16ED3),
    (0x16FF2, 0x16FF6),
    (0x187F8, 0x187FF),
    (0x18D09, 0x18D1E),
    (0x18D80, 0x18DF2),
    (0x1E6C0, 0x1E6DE),
    (0x1E6E0, 0x1E6F5),
    (0x1E6FE, 0x1E6FF),
    (0x2B73A, 0x2B73F),
    (0x2CEA2, 0x2CEAD),
    (0x323B0, 0x33479),
)

# The pattern's `\s` without line ends: Rust's White_Space, which Python's `\s` is not.
_BLANK = r"[\t\v\f \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
# A run of blanks that no line end follows, whole: from its first blank on, so that a run that has
# no match is passed over once.
_LONG_BLANKS = re.compile(rf"(?<!{_BLANK}){_BLANK}{{1000,}}+(?![\r\n])")

Ids = npt.NDArray[np.int32]


class Encoder:
    """Ordinary text to ids: control-token look-alikes stay text.

    Args:
        asset: the verified content of `o200k_base.tiktoken`.

    Raises:
        ValueError: quicktok has another vocabulary.
    """

    def __init__(self, asset: bytes) -> None:
        import quicktok

        lines = (line.split() for line in asset.splitlines() if line)
        self.token_bytes: list[bytes] = [base64.b64decode(token) for token, _ in lines]
        self._fast = quicktok.get_encoding("o200k_base")
        token_of = self._fast.decode_single_token_bytes
        if any(token_of(n) != token for n, token in enumerate(self.token_bytes)):
            raise ValueError("quicktok's vocabulary is not the verified o200k_base.tiktoken")
        self._slow: Encoding | None = None
        self._differs = np.zeros(0x110000, bool)
        for first, last in _DIFFERING:
            self._differs[first : last + 1] = True

    @property
    def library(self) -> str:
        """Name and version of the library that encodes."""
        return f"quicktok-v1 {version('quicktok-v1')}"

    @property
    def pattern_sha256(self) -> str:
        """Digest of the split pattern."""
        return hashlib.sha256(SPLIT_PATTERN.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of one text.

        Lone surrogates become U+FFFD, as in tiktoken.
        """
        if self._needs_exact(text):
            return self._encode_exactly(text)
        ids: list[int] = self._fast.encode_ordinary(text)
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int = 0) -> list[Ids]:
        """Encodes many texts.

        Args:
            texts: any texts.
            threads: how many; 0 takes every core.

        Returns:
            An int32 array of ids for each text, in order.
        """
        if not texts:
            return []
        exact: set[int] = set()
        if self._needs_exact("".join(texts)):
            exact = {i for i, text in enumerate(texts) if self._needs_exact(text)}
        fast = ["" if i in exact else text for i, text in enumerate(texts)] if exact else texts
        tokens, offsets = self._fast.encode_batch(fast, threads)
        # Ids fit 18 bits, so the view is exact.
        parts = np.split(tokens.view(np.int32), offsets[1:-1])
        for i in exact:
            parts[i] = np.array(self._encode_exactly(texts[i]), np.int32)
        return parts

    def _encode_exactly(self, text: str) -> list[int]:
        r"""Ids of a text by tiktoken, but for its long runs of blanks.

        tiktoken's regex engine takes a stack entry for every blank of `\s+(?!\S)`, and panics on
        some hundred thousand (https://github.com/openai/tiktoken/issues/15).
        """
        ids: list[int] = []
        for part, blanks in _split_at_long_blanks(text):
            ids += (self._fast if blanks else self._exact()).encode_ordinary(part)
        return ids

    def _needs_exact(self, text: str) -> bool:
        if text.isascii():
            return False
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        return bool(self._differs[points].any())

    def _exact(self) -> Encoding:
        if self._slow is None:
            self._slow = reference_encoding(self.token_bytes)
        return self._slow


def _split_at_long_blanks(text: str) -> Iterator[tuple[str, bool]]:
    """Parts of a text whose ids, one after the other, are the text's; and whether it is blanks.

    The pattern takes a run of blanks that no line end follows as one piece, without the last blank
    when something follows. It looks back at nothing, and no piece before the run reaches into it:
    the parts are split as they are within the text.
    """
    start = 0
    for run in _LONG_BLANKS.finditer(text):
        end = run.end() if run.end() == len(text) else run.end() - 1
        yield text[start : run.start()], False
        yield text[run.start() : end], True
        start = end
    yield text[start:], False


@lru_cache(maxsize=1)
def shared_encoder(asset: bytes) -> Encoder:
    """The process's encoder: there is one vocabulary, and loading it takes most of a second."""
    return Encoder(asset)


def reference_encoding(token_bytes: Sequence[bytes]) -> Encoding:
    """tiktoken's own encoder over the same ranks, without special tokens."""
    import tiktoken

    return tiktoken.Encoding(
        "o200k_base",
        pat_str=SPLIT_PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(token_bytes)},
        special_tokens={},
    )


def replace_surrogates(text: str) -> str:
    """The text with paired surrogates joined and lone ones replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
