"""Encoders of o200k on PyPI: speed on one core, and whether their ids are tiktoken's.

Times are the process's own CPU time, which neighbours on the machine disturb less.

    pip install riptoken toktok-rs; python benchmarks/data_encoders.py [--every-code-point]

`--every-code-point` compares tiktoken, our encoder and quicktok alone on each code point of Unicode
in contexts where its class decides the split: quicktok alone differs exactly where
`vpmoe/tokenizer/encoder.py` says, ours nowhere.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared" / "data" / "synth_rows_valid.jsonl"
SAMPLE = REPOSITORY / "data" / "sample" / "conversations.jsonl"
# Texts on which encoders that are exact on prose have been seen to differ.
TRAPS = [" " * 100_000, "!?" * 50_000, "a'ſb", "\U0001093f\U00010940's", "\u200d's", "\r\n \r\n"]
CONTEXT = "{0}'s '{0} '{0}'sa {0}123 1{0}234  {0}\n{0}!\n a'{0}b A'{0}B {0}{0}'re\t{0} 1 {0} "


def main() -> None:
    """Prints the table, or the ranges of code points that differ."""
    import bpe_openai
    import quicktok

    from vpmoe.tokenizer.asset import ensure_asset, read_asset
    from vpmoe.tokenizer.encoder import SPLIT_PATTERN, Encoder, reference_encoding

    asset = read_asset(ensure_asset(REPOSITORY / "data" / "tokenizer" / "o200k_base.tiktoken"))
    encoder = Encoder(asset)
    reference = reference_encoding(encoder.token_bytes)
    if "--every-code-point" in sys.argv:
        for name, encode in (
            ("vpmoe", encoder.encode),
            ("quicktok alone", quicktok.get_encoding("o200k_base").encode_ordinary),
        ):
            print(name, _ranges(reference.encode_ordinary, encode))
        return
    candidates: dict[str, Callable[[str], Any]] = {
        "tiktoken": reference.encode_ordinary,
        "vpmoe": encoder.encode,
        "quicktok-v1": quicktok.get_encoding("o200k_base").encode_ordinary,
        "bpe-openai": bpe_openai.get_encoding("o200k_base").encode,
    }
    try:
        import riptoken

        ranks = {token: n for n, token in enumerate(encoder.token_bytes)}
        candidates["riptoken"] = riptoken.CoreBPE(ranks, {}, SPLIT_PATTERN).encode_ordinary
    except ImportError:
        pass
    try:
        import toktok

        candidates["toktok-rs"] = toktok._encoding("o200k_base").encode
    except (ImportError, AttributeError):
        pass
    source = SHARED if SHARED.exists() else SAMPLE
    rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
    fields = ("query", "synthetic_reasoning", "synthetic_answer")
    texts = [row[field] for row in rows for field in fields]
    expected = [reference.encode_ordinary(text) for text in texts]
    tokens = sum(map(len, expected))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(11):
        for name, encode in candidates.items():
            began = time.process_time()
            for text in texts:
                encode(text)
            seconds[name].append(time.process_time() - began)
    print("| encoder | M tokens per CPU second | spread of 11 | exact |\n| --- | --- | --- | --- |")
    for name, encode in candidates.items():
        median = statistics.median(seconds[name])
        spread = 100 * (max(seconds[name]) - min(seconds[name])) / median
        wrong = sum(
            list(encode(text)) != reference.encode_ordinary(text) for text in [*texts, *TRAPS]
        )
        try:
            label = f"{name} {version(name)}"
        except PackageNotFoundError:
            label = name
        exact = "yes" if not wrong else f"no, {wrong} texts"
        print(f"| {label} | {tokens / median / 1e6:.2f} | {spread:.0f} % | {exact} |")


def _ranges(reference: Callable[[str], Any], encode: Callable[[str], Any]) -> list[str]:
    found: list[list[int]] = []
    for point in range(0x110000):
        if 0xD800 <= point < 0xE000:
            continue
        text = CONTEXT.replace("{0}", chr(point))
        if reference(text) == list(encode(text)):
            continue
        if found and found[-1][1] == point - 1:
            found[-1][1] = point
        else:
            found.append([point, point])
    return [f"{first:#x}-{last:#x}" for first, last in found]


if __name__ == "__main__":
    main()
