"""O200kHarmonyTokenizer: the o200k Harmony vocabulary, offline, exact, locked by hash."""

from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer

__all__ = ["O200kHarmonyTokenizer"]
