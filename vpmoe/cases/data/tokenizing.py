"""Records of the tokenizer: ids of texts, the way back, its vocabulary, and what it refuses."""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from validation.running.recorder import Recorder
from vpmoe.cases.data.refusing import record_refusal
from vpmoe.cases.data.texts import ALLOWED, SURROGATES, TEXTS
from vpmoe.runtime.patches import replaced
from vpmoe.tokenizer import asset, special
from vpmoe.tokenizer.arguments import TOKENIZER_TYPE, validate_tokenizer_args
from vpmoe.tokenizer.encoder import Encoder, reference_encoding
from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer


def record_texts(recorder: Recorder, tokenizer: O200kHarmonyTokenizer) -> None:
    """Records the ids of every text, and the laws that hold of them.

    Laws: the ids decode to the text; a batch gives what single calls give; tiktoken, which the
    fast encoder stands for, gives the same.

    Args:
        recorder: of this process.
        tokenizer: the tokenizer.
    """
    texts = TEXTS | {f"surrogate_{name}": text for name, text in SURROGATES.items()}
    batch = tokenizer.encode_batch(list(texts.values()), threads=2)
    truth = reference_encoding(tokenizer.ids_to_tokens(range(special.BASE_SIZE)))
    for (name, text), together in zip(texts.items(), batch, strict=True):
        ids, place = tokenizer.tokenize(text), f"text/{name}"
        recorder.discrete(place, ids, tensor="ids", phase="data")
        back = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        for law, tensor, other, expected in (
            ("the ids decode to the text", "round_trip", tokenizer.detokenize(ids), back),
            ("a batch gives the same ids", "batch", together.tolist(), ids),
            ("tiktoken gives the same ids", "tiktoken", truth.encode_ordinary(text), ids),
        ):
            _law(recorder, place, law, other == expected, tensor)
        # Other ids have no places in the text; the laws above say so.
        offsets = tokenizer.offsets(ids, text) if tokenizer.detokenize(ids) == back else None
        recorder.discrete(place, offsets, tensor="offsets", phase="data")
    for name in ("looks_special", "looks_reserved", "looks_split", "words"):
        for named, allowed in ALLOWED.items():
            ids = tokenizer.encode(TEXTS[name], allowed_special=allowed)
            recorder.discrete(f"text/{name}", ids, tensor=f"special/{named}", phase="data")
    _law(
        recorder,
        "text/looks_special",
        "`all` names every special token",
        tokenizer.encode(TEXTS["looks_special"], allowed_special="all")
        == tokenizer.encode(TEXTS["looks_special"], allowed_special=ALLOWED["all"]),
        "special",
    )


def record_vocabulary(recorder: Recorder, tokenizer: O200kHarmonyTokenizer) -> None:
    """Records what every id means, and the ids that have a role."""
    tokens = tokenizer.ids_to_tokens(range(special.PADDED_VOCAB_SIZE))
    for start in range(0, special.PADDED_VOCAB_SIZE, 50_272):
        digest = hashlib.blake2b(digest_size=16)
        for token in tokens[start : start + 50_272]:
            digest.update(len(token).to_bytes(4) + token)
        value = {"first": start, "bytes": digest.hexdigest()}
        recorder.discrete("vocabulary", value, tensor="tokens", phase="data")
    for name, fact in tokenizer.provenance.items():
        recorder.discrete("vocabulary", fact, tensor=f"provenance/{name}", phase="data")
    identifiers = dict(tokenizer.unique_identifiers)
    recorder.discrete("vocabulary", identifiers, tensor="identifiers", phase="data")
    library = tokenizer.encoder_library.partition(" ")[0]
    recorder.discrete("vocabulary", library, tensor="library", phase="data")
    roles = ("vocab_size", "eod", "eos", "bos", "pad", "eos_id", "bos_id", "pad_id")
    for role in roles:
        recorder.discrete("vocabulary", getattr(tokenizer, role), tensor=role, phase="data")
    named = {name: n for name, n in tokenizer.special_tokens.items() if "reserved" not in name}
    recorder.discrete("vocabulary", named, tensor="special", phase="data")
    additional = tokenizer.additional_special_tokens_ids
    ends = [len(additional), additional[0], additional[-1]]
    recorder.discrete("vocabulary", ends, tensor="additional", phase="data")
    inverse, vocab = tokenizer.inv_vocab, tokenizer.vocab
    _law(
        recorder,
        "vocabulary",
        "every id is the only one of its bytes",
        len(inverse) == len(set(inverse.values())) == len(vocab) - 1
        and all(vocab[token] == number for number, token in inverse.items()),
        "inverse",
    )
    some = [*range(0, special.PADDED_VOCAB_SIZE, 997), *range(special.BASE_SIZE, 200_020)]
    there = tokenizer.tokens_to_ids(tokenizer.ids_to_tokens(some))
    _law(recorder, "vocabulary", "tokens lead back to their ids", there == some, "tokens_to_ids")
    by_name = tokenizer.tokens_to_ids(["<|end|>", b" the", "<|reserved_200018|>"])
    recorder.discrete("vocabulary", by_name, tensor="by_name", phase="data")
    mixed = [special.START, *tokenizer.tokenize("user"), special.MESSAGE, 0, special.PAD]
    for skip in (None, True):
        shown = tokenizer.detokenize(mixed, skip_special_tokens=skip)
        recorder.discrete("vocabulary", shown, tensor=f"detokenize/{skip}", phase="data")
    half = tokenizer.tokenize("\U00020000")[:1]
    both = [tokenizer.detokenize(half), tokenizer.decode_bytes(half).hex()]
    recorder.discrete("vocabulary", both, tensor="half_a_character", phase="data")


def record_refusals(recorder: Recorder, tokenizer: O200kHarmonyTokenizer, folder: Path) -> None:
    """Records what the tokenizer, its file and its flags refuse, and what they accept.

    Args:
        recorder: of this process.
        tokenizer: the tokenizer.
        folder: an empty one.
    """
    packed = gzip.compress(b"wrong")
    files = {"wrong": b"wrong", "packed": packed, "cut": packed[:-4]}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    whole = Path(tokenizer.path).read_bytes()
    (folder / "whole.gz").write_bytes(gzip.compress(whole, 1))
    refusals: dict[str, Callable[[], Any]] = {
        "id_too_large": lambda: tokenizer.detokenize([1, special.PADDED_VOCAB_SIZE]),
        "id_negative": lambda: tokenizer.decode_bytes([-1]),
        "no_token": lambda: tokenizer.tokens_to_ids(["not one token"]),
        "no_special": lambda: tokenizer.encode("x", allowed_special=["<|no|>", "<|end|>"]),
        "other_text": lambda: tokenizer.offsets([1], "something else"),
        "template": lambda: tokenizer.apply_chat_template([], chat_template="{{ x }}"),
        "no_file": lambda: asset.read_asset(folder / "missing"),
        "other_file": lambda: O200kHarmonyTokenizer(folder / "wrong"),
        "other_file_there": lambda: asset.ensure_asset(folder / "wrong"),
        "other_source": lambda: asset.ensure_asset(folder / "new", folder / "packed"),
        "cut_source": lambda: asset.ensure_asset(folder / "new", folder / "cut"),
        "other_vocabulary": lambda: Encoder(base64.b64encode(b"a") + b" 0\n"),
        "no_source": lambda: asset.ensure_asset(folder / "new", folder / "missing"),
    }
    for name, call in refusals.items():
        record_refusal(recorder, f"tokenizer/refused/{name}", call, folder)
    with replaced(importlib.util, "find_spec", lambda name: None):
        record_refusal(
            recorder, "tokenizer/refused/no_wheel", lambda: asset.ensure_asset(folder / "n"), folder
        )
    installed = asset.ensure_asset(folder / "new", folder / "whole.gz")
    for name, path in (("copy", installed), ("wheel", asset.ensure_asset(folder / "wheel"))):
        law = "the vocabulary is installed as it was"
        _law(recorder, "tokenizer/asset", law, path.read_bytes() == whole, name)
    _record_flags(recorder, folder, str(installed))


def _record_flags(recorder: Recorder, folder: Path, vocabulary: str) -> None:
    given: dict[str, Any] = {
        "tokenizer_type": TOKENIZER_TYPE,
        "tokenizer_model": vocabulary,
        "legacy_tokenizer": False,
        "padded_vocab_size": None,
        "vocab_size": None,
        "tensor_model_parallel_size": 1,
    }
    changes: dict[str, dict[str, Any]] = {
        "plain": {},
        "tensor_parallel": {"tensor_model_parallel_size": 128},
        "same_size": {"padded_vocab_size": special.PADDED_VOCAB_SIZE},
        "padded_size": {"padded_vocab_size": 201_216},
        "other_size": {"vocab_size": 200_019},
        "indivisible": {"tensor_model_parallel_size": 3},
        "other_type": {"tokenizer_type": "GPT2BPETokenizer"},
        "legacy": {"legacy_tokenizer": True, "tokenizer_type": "NullTokenizer", "vocab_size": 500},
        "legacy_same": {"legacy_tokenizer": True},
        "legacy_none": {"legacy_tokenizer": True, "tokenizer_type": None},
    }
    for name, change in changes.items():
        args = argparse.Namespace(**given | change)

        def check(args: argparse.Namespace = args) -> Sequence[int | None]:
            validate_tokenizer_args(args)
            return args.padded_vocab_size, args.vocab_size

        record_refusal(recorder, f"tokenizer/flags/{name}", check, folder)


def _law(recorder: Recorder, place: str, name: str, holds: bool, tensor: str) -> None:
    recorder.invariant(place, name, float(not holds), 0.0, phase="data", tensor=f"law/{tensor}")
