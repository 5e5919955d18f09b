"""O200kHarmonyTokenizer, with Megatron's tokenizer interface.

Importing it needs neither torch nor Megatron; `vpmoe.tokenizer.megatron` makes it known there.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from vpmoe.tokenizer import special
from vpmoe.tokenizer.asset import ASSET_SHA256, default_path, read_asset
from vpmoe.tokenizer.encoder import Ids, replace_surrogates, shared_encoder

AllowedSpecial = Literal["all"] | Collection[str]


class O200kHarmonyTokenizer:
    """o200k Harmony: 199,998 ranks and special tokens up to id 201087.

    Plain text never yields a control token: `<|end|>` in a text is encoded as text, unless the
    caller names it in `allowed_special`.

    Args:
        path: the vocabulary `o200k_base.tiktoken`; `asset.default_path()` when None.

    Attributes:
        library: Megatron's name for the kind of tokenizer.
        eos_id: as `eos`.
        bos_id: as `bos`.
        pad_id: as `pad`.

    Raises:
        AssetError: the file is missing or of another hash.
    """

    library = "o200k_harmony"

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = str(path if path is not None else default_path())
        self._encoder = shared_encoder(read_asset(Path(self.path)))
        self._token_bytes = self._encoder.token_bytes

    # Encoding

    def tokenize(self, text: str) -> list[int]:
        """Ids of ordinary text."""
        return self._encoder.encode(text)

    def encode(self, text: str, *, allowed_special: AllowedSpecial = ()) -> list[int]:
        """Encodes a text, in which the special tokens named are honoured.

        Args:
            text: the text; lone surrogates become U+FFFD, as in tiktoken.
            allowed_special: names of special tokens, or "all".

        Returns:
            The ids.

        Raises:
            ValueError: a name that is no special token.
        """
        allowed = self._allowed(allowed_special)
        if not allowed or "<|" not in text:
            return self._encoder.encode(text)
        ids: list[int] = []
        start = 0
        for match in special.SPECIAL_PATTERN.finditer(text):
            if match.group() in allowed:
                if match.start() > start:
                    ids += self._encoder.encode(text[start : match.start()])
                ids.append(special.SPECIAL_TOKENS[match.group()])
                start = match.end()
        if start < len(text):
            ids += self._encoder.encode(text[start:])
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int = 0) -> list[Ids]:
        """Ids of many ordinary texts, int32 arrays in order; `threads=0` takes every core."""
        return self._encoder.encode_batch(texts, threads)

    # Decoding

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Decodes ids to their exact bytes; special tokens give their names.

        Args:
            ids: of tokens.

        Returns:
            The bytes.

        Raises:
            ValueError: an id outside 0..201087, with its position.
        """
        return b"".join(self.ids_to_tokens(ids))

    def detokenize(self, ids: Iterable[int], skip_special_tokens: bool | None = None) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD (`decode_bytes` is lossless)."""
        if skip_special_tokens:
            ids = (token for token in ids if int(token) < special.BASE_SIZE)
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def ids_to_tokens(self, ids: Iterable[int]) -> list[bytes]:
        """Decodes every id by itself.

        Args:
            ids: of tokens.

        Returns:
            Bytes of each token.

        Raises:
            ValueError: an id outside 0..201087, with its position.
        """
        tokens = []
        for position, token in enumerate(ids):
            token = int(token)
            if 0 <= token < special.BASE_SIZE:
                tokens.append(self._token_bytes[token])
            elif token in special.SPECIAL_NAMES:
                tokens.append(special.SPECIAL_NAMES[token].encode())
            else:
                raise ValueError(
                    f"id {token} at position {position} is outside the vocabulary "
                    f"0..{special.PADDED_VOCAB_SIZE - 1}"
                )
        return tokens

    def tokens_to_ids(self, tokens: Iterable[bytes | str]) -> list[int]:
        """Finds the ids of tokens; the inverse of `ids_to_tokens`.

        Args:
            tokens: each as bytes or text.

        Returns:
            The ids.

        Raises:
            ValueError: something that is not one token.
        """
        vocab = self.vocab
        ids = []
        for token in tokens:
            name = token.encode() if isinstance(token, str) else token
            if name not in vocab:
                raise ValueError(f"{name!r} is not a token of o200k Harmony")
            ids.append(vocab[name])
        return ids

    def offsets(self, ids: Sequence[int], text: str) -> list[int]:
        """Finds the character of a text that every token begins in.

        Args:
            ids: of all tokens of the text.
            text: the text.

        Returns:
            Index in `text` for each token.

        Raises:
            ValueError: the ids are not those of the text.
        """
        tokens = self.ids_to_tokens(ids)
        if b"".join(tokens) != replace_surrogates(text).encode():
            raise ValueError("offsets: the ids do not decode to the text")
        result, characters = [], 0
        for token in tokens:
            inside = 0x80 <= token[0] < 0xC0
            result.append(max(0, characters - inside))
            characters += sum(1 for byte in token if not 0x80 <= byte < 0xC0)
        return result

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        chat_template: str | None = None,
        tokenize: bool = True,
    ) -> list[int] | str:
        """Renders a conversation in Harmony format.

        Args:
            conversation: messages as openai-harmony's JSON has them: `role`, `content`, and
                optionally `channel`, `recipient`, `content_type`, `name`.
            chat_template: must be None: Harmony is the only format.
            tokenize: ids when True, else their text.

        Returns:
            Ids, or their text.

        Raises:
            ValueError: another template, or a message that Harmony refuses.
        """
        from vpmoe.tokenizer.harmony import HarmonyRenderer

        if chat_template is not None:
            raise ValueError("o200k Harmony renders its own format; leave chat_template out")
        ids = HarmonyRenderer(self).render_conversation(conversation).tokens
        return ids if tokenize else self.detokenize(ids)

    # Vocabulary

    @property
    def vocab_size(self) -> int:
        """201088: every id has a row of the embedding."""
        return special.PADDED_VOCAB_SIZE

    @cached_property
    def vocab(self) -> dict[bytes, int]:
        """Bytes to id; both names of 200018 are in it."""
        vocab = {token: rank for rank, token in enumerate(self._token_bytes)}
        return vocab | {name.encode(): n for name, n in special.SPECIAL_TOKENS.items()}

    @cached_property
    def inv_vocab(self) -> dict[int, bytes]:
        """Id to bytes."""
        inverse = dict(enumerate(self._token_bytes))
        return inverse | {n: name.encode() for n, name in special.SPECIAL_NAMES.items()}

    @property
    def special_tokens(self) -> dict[str, int]:
        """Names of special tokens and their ids."""
        return dict(special.SPECIAL_TOKENS)

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        """Ids of all special tokens, ascending."""
        return sorted(special.SPECIAL_NAMES)

    @property
    def eod(self) -> int:
        """`<|endoftext|>`, the end of a document."""
        return special.ENDOFTEXT

    @property
    def eos(self) -> int:
        """`<|endoftext|>`."""
        return special.ENDOFTEXT

    @property
    def bos(self) -> int:
        """`<|startoftext|>`."""
        return special.STARTOFTEXT

    @property
    def pad(self) -> int:
        """`<|reserved_200000|>`: not EOD, or Megatron would mask every EOD label."""
        return special.PAD

    eos_id = eos
    bos_id = bos
    pad_id = pad

    # Provenance

    @property
    def provenance(self) -> dict[str, str | int]:
        """What the ids depend on, for manifests, checkpoints and traces; no path."""
        return {
            "name": self.library,
            "asset_sha256": ASSET_SHA256,
            "pattern_sha256": self._encoder.pattern_sha256,
            "special_tokens_sha256": _digest_special_tokens(),
            "vocab_size": special.PADDED_VOCAB_SIZE,
        }

    @property
    def encoder_library(self) -> str:
        """Name and version of the library behind `tokenize`; ids do not depend on it."""
        return self._encoder.library

    @property
    def unique_identifiers(self) -> OrderedDict[str, str]:
        """Megatron's key of dataset caches."""
        return OrderedDict((name, str(value)) for name, value in self.provenance.items())

    @staticmethod
    def _allowed(allowed_special: AllowedSpecial) -> Collection[str]:
        if allowed_special == "all":
            return special.SPECIAL_TOKENS
        unknown = sorted(set(allowed_special) - special.SPECIAL_TOKENS.keys())
        if unknown:
            raise ValueError(f"allowed_special: {unknown} are no special tokens")
        return set(allowed_special)


def _digest_special_tokens() -> str:
    lines = (f"{name} {n}\n" for name, n in sorted(special.SPECIAL_TOKENS.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
