"""Bugs between a row and a micro-batch: texts, templates, files, shards, workers, samples."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from vpmoe.cases.faults.planting import (
    Planted,
    arguments,
    fault,
    patched,
    result,
    skipped,
    together,
)

_ENCODER = "vpmoe.tokenizer.encoder"


def _texts(change: Any) -> Planted:
    """Every text is changed before it is encoded."""
    return together(
        arguments(_ENCODER, "Encoder.encode", lambda encoder, text: (encoder, change(text))),
        arguments(
            _ENCODER,
            "Encoder.encode_batch",
            lambda encoder, texts, *rest: (encoder, [change(text) for text in texts], *rest),
        ),
    )


@fault(
    "texts-composed",
    "tokenizer",
    "text",
    "a normalizer that the vocabulary was not made with",
    case="data",
    steps=None,
    canary=False,
)
def texts_composed() -> Planted:
    """Letters and their combining marks are composed."""
    return _texts(lambda text: unicodedata.normalize("NFC", text))


@fault(
    "zero-width-removed",
    "tokenizer",
    "text",
    "a cleaning step that takes joiners out of emoji and Indic text",
    case="data",
    steps=None,
    canary=False,
)
def zero_width_removed() -> Planted:
    """Zero-width joiners are removed."""
    return _texts(lambda text: text.replace("\u200d", ""))


@fault(
    "rare-code-points-by-the-fast-encoder",
    "tokenizer",
    "text/",
    "two libraries of one vocabulary with different versions of Unicode",
    case="data",
    steps=None,
    canary=False,
)
def rare_code_points_by_the_fast_encoder() -> Planted:
    """Texts with letters of newer Unicode are split as the faster library splits them."""

    def wrap(original: Any) -> Any:
        del original
        return lambda encoder, text: any("\ud800" <= letter <= "\udfff" for letter in text)

    return patched(_ENCODER, "Encoder._needs_exact", wrap)


@fault(
    "special-tokens-in-text",
    "tokenizer",
    "text/looks",
    "parse_special left on",
    case="data",
    steps=None,
    canary=False,
)
def special_tokens_in_text() -> Planted:
    """Look-alikes in a text become control tokens."""

    def wrap(original: Any) -> Any:
        del original
        return lambda tokenizer, text: tokenizer.encode(text, allowed_special="all")

    return patched("vpmoe.tokenizer.tokenizer", "O200kHarmonyTokenizer.tokenize", wrap)


@fault(
    "offsets-in-bytes",
    "tokenizer",
    "offsets",
    "byte offsets taken for characters",
    case="data",
    steps=None,
    canary=False,
)
def offsets_in_bytes() -> Planted:
    """A token's place counts bytes."""

    def wrap(original: Any) -> Any:
        def offsets(tokenizer: Any, ids: Sequence[int], text: str) -> list[int]:
            original(tokenizer, ids, text)
            places, place = [], 0
            for token in tokenizer.ids_to_tokens(ids):
                places.append(place)
                place += len(token)
            return places

        return offsets

    return patched("vpmoe.tokenizer.tokenizer", "O200kHarmonyTokenizer.offsets", wrap)


@fault(
    "numbers-as-python-writes-them",
    "template",
    "value",
    "a template's `tojson` of another language",
    case="data",
    steps=None,
    canary=False,
)
def numbers_as_python_writes_them() -> Planted:
    """Defaults of tools are spelt by Python."""
    return patched("vpmoe.tokenizer.harmony_values", "_write_float", lambda original: repr)


@fault(
    "tool-message-supervised",
    "masks",
    "rows/harmony/tools",
    "a mask of everything that is no prompt",
    case="data",
    steps=None,
    canary=False,
)
def tool_message_supervised() -> Planted:
    """What a tool answers is trained as the model's final words."""

    def wrap(original: Any) -> Any:
        return lambda message: 2 if message.role == "tool" else original(message)

    return patched("vpmoe.data.encode", "_span_of", wrap)


@fault(
    "channel-header-missing",
    "template",
    "rows/harmony/tools",
    "a template that leaves a call's channel out",
    case="data",
    steps=None,
    canary=False,
)
def channel_header_missing() -> Planted:
    """Messages to a tool have no channel."""

    def change(renderer: Any, message: Any, *rest: Any) -> tuple[Any, ...]:
        if message.get("recipient") in (None, "all"):
            return renderer, message, *rest
        return renderer, {**message, "channel": None}, *rest

    return arguments("vpmoe.tokenizer.harmony", "HarmonyRenderer._render_message", change)


@fault(
    "result-of-another-call",
    "template",
    "rows/openai/calls",
    "results matched to calls by their order",
    case="data",
    steps=None,
    canary=False,
)
def result_of_another_call() -> Planted:
    """Every result is of the first tool that was called."""

    def change(message: Any, called: Any) -> tuple[Any, ...]:
        first = next(iter(called.values()), None)
        return message, dict.fromkeys(called, first)

    return arguments("vpmoe.data.openai_chat", "_result", change)


@fault(
    "integers-declared-as-such",
    "template",
    "rows/harmony/tools",
    "JSON schema's names of types in a declaration of TypeScript",
    case="data",
    steps=None,
    canary=False,
)
def integers_declared_as_such() -> Planted:
    """A tool's integers are declared as `integer`."""
    return patched(
        "vpmoe.tokenizer.harmony_tools", "_scalar_name", lambda original: lambda name: name
    )


@fault(
    "thinking-after-the-answer",
    "template",
    "rows/openai",
    "reasoning that is put behind the answer that it led to",
    case="data",
    steps=None,
    canary=False,
)
def thinking_after_the_answer() -> Planted:
    """Converted messages of one turn come in the opposite order."""
    return result("vpmoe.data.openai_chat", "_assistant", lambda made: reversed(list(made)))


@fault(
    "span-off-by-one",
    "spans",
    "span",
    "a span that begins behind the token that opens it",
    case="data",
    steps=None,
    canary=False,
)
def span_off_by_one() -> Planted:
    """An answer's first token belongs to the reasoning before it."""

    def change(documents: Any) -> Any:
        span = documents.span.copy()
        border = (span[1:] == 2) & (span[:-1] == 1)
        span[1:][border] = 1
        return dataclasses.replace(documents, span=span)

    return result("vpmoe.data.encode", "_assemble", change)


@fault(
    "unknown-keys-dropped",
    "refusals",
    "refused",
    "a key that a library drops in silence",
    case="data",
    steps=None,
    canary=False,
)
def unknown_keys_dropped() -> Planted:
    """A message's unknown keys are left out."""
    return skipped("vpmoe.tokenizer.harmony", "check_keys")


@fault(
    "lines-counted-from-the-block",
    "refusals",
    "refused",
    "a line number that starts again where reading does",
    case="data",
    steps=None,
    canary=False,
)
def lines_counted_from_the_block() -> Planted:
    """Blank lines are not counted."""

    def change(block: Any) -> tuple[Any, ...]:
        rows = [line for line in block.payload.split(b"\n") if line.strip()]
        return (dataclasses.replace(block, payload=b"\n".join(rows)),)

    return arguments("vpmoe.data.rows", "_json_rows", change)


@fault(
    "columns-by-position",
    "files",
    "parquet",
    "columns of Parquet read by position, not by name",
    case="data",
    steps=None,
    canary=False,
)
def columns_by_position() -> Planted:
    """A Parquet file's texts go to the fields in the order of its columns."""
    fields = ("query", "synthetic_reasoning", "synthetic_answer")

    def change(rows: Iterator[Any]) -> Iterator[Any]:
        for line, value in rows:
            texts = [item for name, item in value.items() if name in fields]
            yield line, {**value, **dict(zip(fields, texts, strict=False))}

    return result("vpmoe.data.rows", "_arrow_rows", change)


@fault(
    "workers-out-of-order",
    "files",
    "two_workers",
    "results taken as they are ready",
    case="data",
    steps=None,
    canary=False,
)
def workers_out_of_order() -> Planted:
    """Blocks of two workers are written in pairs, the later one first."""

    def change(blocks: Iterator[Any]) -> Iterator[Any]:
        waiting = list(blocks)
        for first in range(0, len(waiting), 2):
            yield from reversed(waiting[first : first + 2])

    return result("vpmoe.data.encode_pool", "_in_order", change)


def _at_border(times: int) -> Planted:
    """Documents behind a shard's border are written so many times."""

    def change(writer: Any, documents: Any, records: Any) -> tuple[Any, ...]:
        import numpy as np

        limit = writer._rows_per_shard
        border = 0 if limit is None else limit - writer.rows % limit
        if not 0 < border < len(records):
            return writer, documents, records
        counts = np.ones(len(records), np.int64)
        counts[border] = times
        where = np.repeat(np.arange(len(records)), counts)
        ends = np.cumsum(documents.lengths)
        parts = [
            slice(end - length, end) for end, length in zip(ends, documents.lengths, strict=True)
        ]
        changed = dataclasses.replace(
            documents,
            **{
                name: np.concatenate([getattr(documents, name)[parts[n]] for n in where])
                for name in ("tokens", "loss_mask", "span")
            },
            lengths=documents.lengths[where],
        )
        return writer, changed, records[where]

    return arguments("vpmoe.data.shard_writer", "ShardWriter.append", change)


@fault(
    "border-document-lost",
    "files",
    "build",
    "a document between two shards that neither holds",
    case="data",
    steps=None,
    canary=False,
)
def border_document_lost() -> Planted:
    """The first document of a new shard is left out."""
    return _at_border(0)


@fault(
    "border-document-doubled",
    "files",
    "build",
    "a document between two shards that both hold",
    case="data",
    steps=None,
    canary=False,
)
def border_document_doubled() -> Planted:
    """The first document of a new shard is written twice."""
    return _at_border(2)


@fault(
    "duplicates-kept",
    "files",
    "duplicates",
    "an id that is compared after it was added",
    case="data",
    steps=None,
    canary=False,
)
def duplicates_kept() -> Planted:
    """Rows that should be skipped are counted and written."""
    return result("vpmoe.data.build", "_Build._check_ids", lambda keep: keep | True)


@fault(
    "resumed-behind-the-checkpoint",
    "files",
    "interrupted",
    "files that are not cut back to the checkpoint",
    case="data",
    steps=None,
    canary=False,
)
def resumed_behind_the_checkpoint() -> Planted:
    """A resumed build goes on behind the block after its checkpoint."""

    def change(file: Any, start: Any) -> tuple[Any, ...]:
        from vpmoe.data.rows import Position, read_blocks

        if not start.offset:
            return file, start
        block = next(iter(read_blocks(file, start)), None)
        return file, start if block is None else Position(block.after.offset, block.after.line)

    return arguments("vpmoe.data.build", "read_blocks", change)


@fault(
    "split-by-other-bytes",
    "files",
    "build",
    "a hash read in the machine's byte order",
    case="data",
    steps=None,
    canary=False,
)
def split_by_other_bytes() -> Planted:
    """Rows go to the valid split by the digest's bytes from the other end."""

    def wrap(original: Any) -> Any:
        del original

        def is_valid(encoder: Any, row_id: bytes) -> bool:
            import hashlib

            digest = hashlib.blake2b(row_id, digest_size=8).digest()
            return int.from_bytes(digest, "little") < encoder._threshold

        return is_valid

    return patched("vpmoe.data.encode_block", "BlockEncoder._is_valid", wrap)


@fault(
    "documents-not-verified",
    "refusals",
    "damage",
    "digests that nobody compares",
    case="data",
    steps=None,
    canary=False,
)
def documents_not_verified() -> Planted:
    """A document's bytes are taken as they are."""
    return skipped("vpmoe.data.dataset_files", "Shard.verify_document")


@fault(
    "sample-at-the-epochs-end",
    "packing",
    "samples",
    "an index one beyond the end, clipped",
    case="samples",
    steps=None,
    canary=False,
)
def sample_at_the_epochs_end() -> Planted:
    """The last sample is the one before it."""

    def change(dataset: Any, index: int) -> tuple[Any, ...]:
        if dataset.shuffle_index is None:  # mapped late
            return dataset, index
        last = len(dataset.shuffle_index) - 1
        if int(dataset.shuffle_index[index]) != last:
            return dataset, index
        return dataset, int((dataset.shuffle_index == last - 1).argmax())

    return arguments("vpmoe.data.dataset", "pieces_of_sample", change)


@fault(
    "second-epoch-in-order",
    "packing",
    "epoch",
    "a sampler that shuffles the first epoch alone",
    case="samples",
    steps=None,
    canary=False,
)
def second_epoch_in_order() -> Planted:
    """Where there are several epochs, the later half of the samples is not shuffled."""

    def wrap(original: Any) -> Any:
        def build(dataset: Any) -> Any:
            import numpy as np

            document, sample, shuffle = original(dataset)
            if document is not None and len(document) > len(dataset.indices):
                half = len(shuffle) // 2
                shuffle = np.concatenate((shuffle[:half], np.sort(shuffle[half:])))
            return document, sample, shuffle

        return build

    return patched(
        "vpmoe.data.dataset", "SynthKDDataset._build_document_sample_shuffle_indices", wrap
    )


@fault(
    "positions-restart-late",
    "packing",
    "position_ids",
    "a position that counts the token before",
    case="samples",
    steps=None,
    canary=False,
)
def positions_restart_late() -> Planted:
    """Positions restart at a document's second token."""

    def change(dataset: Any, lengths: Any) -> tuple[Any, ...]:
        longer = list(lengths)
        if len(longer) > 1 and longer[1] > 1:
            longer[0], longer[1] = longer[0] + 1, longer[1] - 1
        return dataset, longer

    return arguments("vpmoe.data.dataset", "SynthKDDataset._positions", change)


@fault(
    "plain-documents-begin-at-eod",
    "packing",
    "plain",
    "a boundary before the token that ends a document",
    case="samples",
    steps=None,
    canary=False,
)
def plain_documents_begin_at_eod() -> Planted:
    """A document's end token is counted to the next one."""

    def wrap(original: Any) -> Any:
        def read(dataset: Any, index: Any) -> Any:
            sample = original(dataset, index)
            if "document_ids" in sample:
                ends = sample["tokens"] == dataset.config.tokenizer.eod
                sample["document_ids"] = sample["document_ids"] + ends.int()
            return sample

        return read

    return patched("vpmoe.data.plain", "PlainDataset.__getitem__", wrap)


@fault(
    "padding-trained",
    "masks",
    "plain/filling",
    "a filler of the last batch that counts",
    case="samples",
    steps=None,
    canary=False,
)
def padding_trained() -> Planted:
    """The sample that fills up a batch is trained on."""

    def change(sample: Any) -> Any:
        import torch

        if sample["sample_id"] < 0:
            sample["span_id"] = torch.ones_like(sample["span_id"])
        return sample

    return result("vpmoe.data.plain", "PlainDataset.__getitem__", change)


@fault(
    "evaluation-divided-by-the-step",
    "loss",
    "span_loss",
    "a mean over another batch's number of tokens",
    case="samples",
    steps=None,
    canary=False,
)
def evaluation_divided_by_the_step() -> Planted:
    """A span's mean is over all tokens of the micro-batch."""

    def change(found: Any) -> Any:
        import torch

        divisors, parts = found
        return torch.full_like(divisors, int(divisors.sum())), parts

    return result("vpmoe.data.loss", "_divisors", change)


@fault(
    "header-weighed-as-reasoning",
    "loss",
    "grad",
    "a span's weight on the header of the next one",
    case="tiny_spans",
    canary=False,
)
def header_weighed_as_reasoning() -> Planted:
    """The header of an answer weighs as the reasoning before it."""

    def change(losses: Any, batch: Any, weights: Any) -> tuple[Any, ...]:
        from vpmoe.tokenizer import special

        opened = (batch.labels == special.START).cumsum(-1)
        closed = (batch.labels == special.MESSAGE).cumsum(-1)
        inside = (opened > closed) | (batch.labels == special.MESSAGE)
        span = batch.span_id.where(~(inside & (batch.span_id == 2)), 1)
        return losses, dataclasses.replace(batch, span_id=span), weights

    return arguments("vpmoe.data.loss", "span_loss", change)
