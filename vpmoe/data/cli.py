"""`vpmoe data build|render|inspect|verify`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vpmoe.data.profiles import DEFAULT_PROFILE, PROFILES
from vpmoe.shipped import shipped

_EXAMPLES = """\
examples:
  vpmoe data build --input data/sample/conversations.jsonl --output runs/data
  vpmoe data build --input a.parquet b.jsonl --output runs/synth --workers 8 \\
      --valid-fraction 0.01 --rows-per-shard 100000 --profile synth_kd_v1
  vpmoe data verify runs/data
  vpmoe data inspect runs/data --split train --document 3
  vpmoe data render --input data/sample/conversations.jsonl --row 1
"""


def add_commands(subparsers: Any) -> None:
    """Adds `data` and its sub-commands to argparse's sub-parsers."""
    data = subparsers.add_parser(
        "data",
        help="build, verify and look at token files with loss masks and spans",
        description="Rows of query, reasoning and answer to Megatron token files, and a look at "
        "them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _add_build(commands)

    verify = commands.add_parser("verify", help="prove a dataset against its manifest and itself")
    verify.add_argument("dataset", type=Path, help="the dataset's folder")
    verify.set_defaults(func=_guarded(_verify))

    inspect = commands.add_parser(
        "inspect", help="show a document; analysis and final spans are coloured"
    )
    inspect.add_argument("dataset", type=Path, help="the dataset's folder")
    inspect.add_argument("--split", choices=("train", "valid"), default="train")
    inspect.add_argument("--document", type=int, default=0, help="number in the split, from 0")
    inspect.add_argument("--json", action="store_true", help="ids, masks and spans as JSON")
    inspect.add_argument("--vocabulary", type=Path, help="o200k_base.tiktoken")
    inspect.set_defaults(func=_guarded(_inspect))

    render = commands.add_parser("render", help="show how a row is rendered, without building")
    render.add_argument("--input", type=shipped, required=True, help="rows, JSONL or Parquet")
    render.add_argument("--row", type=int, default=1, help="number among usable rows, from 1")
    render.add_argument("--profile", choices=sorted(PROFILES), default=DEFAULT_PROFILE)
    _add_chat_options(render)
    render.add_argument("--json", action="store_true", help="ids, masks and spans as JSON")
    render.add_argument("--vocabulary", type=Path, help="o200k_base.tiktoken")
    render.set_defaults(func=_guarded(_render))


def _add_build(commands: Any) -> None:
    build = commands.add_parser(
        "build",
        help="rows to a dataset; an interrupted build goes on when started again",
        description="Rows are JSON objects (or Parquet rows) with `query`, `synthetic_reasoning`, "
        "`synthetic_answer` and an optional `synth_id`, or with `messages` in Harmony's form, or "
        "with `messages_json` as synth_harmony_v1 has it. Rows with an empty field are skipped and "
        "counted. The bytes written depend on the input and the settings alone.",
    )
    build.add_argument("--input", type=shipped, nargs="+", required=True, help="JSONL or Parquet")
    build.add_argument("--output", type=Path, required=True, help="the dataset's folder")
    build.add_argument("--workers", type=int, default=1, help="processes that encode (1)")
    build.add_argument(
        "--valid-fraction", default="0", help="share of rows in the valid split, by id (0)"
    )
    build.add_argument(
        "--rows-per-shard", type=int, help="documents of a shard; default: one shard a split"
    )
    build.add_argument(
        "--profile",
        choices=sorted(PROFILES),
        default=DEFAULT_PROFILE,
        help=f"system and developer messages of rows ({DEFAULT_PROFILE})",
    )
    build.add_argument(
        "--duplicates",
        choices=("error", "skip"),
        default="error",
        help="what to do with a row whose id occurred before (error)",
    )
    build.add_argument(
        "--supervise-eod",
        action="store_true",
        help="also train the prediction of <|endoftext|>; the schema's name says so",
    )
    _add_chat_options(build)
    build.add_argument("--vocabulary", type=Path, help="o200k_base.tiktoken")
    build.set_defaults(func=_guarded(_build))


def _add_chat_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--chat-format",
        choices=("harmony", "openai"),
        default="harmony",
        help="form of `messages`: harmony refuses keys that it does not have; openai makes "
        "`thinking` an analysis message and `tool_calls` commentary messages, and content without "
        "a channel final (harmony)",
    )
    command.add_argument(
        "--ignore-columns",
        nargs="+",
        default=(),
        metavar="NAME",
        help="keys beside a row's messages that hold nothing to train on; others are refused",
    )


def _guarded(command: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        try:
            command(options)
        except BrokenPipeError:
            return 0
        except KeyboardInterrupt:
            print(
                "vpmoe data: interrupted; the same command goes on where it stopped",
                file=sys.stderr,
            )
            return 130
        except OSError as error:
            where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            print(f"vpmoe data: {where}", file=sys.stderr)
            return 2
        except ValueError as error:
            print(f"vpmoe data: {error}", file=sys.stderr)
            return 2
        return 0

    return run


def _build(options: argparse.Namespace) -> None:
    from vpmoe.data.build import build_dataset
    from vpmoe.data.progress import ProgressDisplay

    with ProgressDisplay() as progress:
        result = build_dataset(
            options.input,
            options.output,
            workers=options.workers,
            valid_fraction=options.valid_fraction,
            rows_per_shard=options.rows_per_shard,
            profile=options.profile,
            duplicates=options.duplicates,
            supervise_eod=options.supervise_eod,
            chat_format=options.chat_format,
            ignore_columns=options.ignore_columns,
            vocabulary=options.vocabulary,
            progress=progress,
        )
    manifest = result.manifest
    if result.existed:
        print(f"{options.output}: the same dataset is there already", file=sys.stderr)
    for split, facts in manifest["splits"].items():
        print(
            f"{split}: {facts['rows']:,} documents, {facts['tokens']:,} tokens, "
            f"{len(facts['shards'])} shards"
        )
    skipped = manifest["skipped"]
    print(f"skipped: {skipped['empty']} with an empty field, {skipped['duplicate']} duplicates")
    print(f"digest: {manifest['digest']}")


def _verify(options: argparse.Namespace) -> None:
    from vpmoe.data.dataset_files import verify_dataset

    rows = tokens = 0
    for shard in verify_dataset(options.dataset):
        rows += shard.rows
        tokens += shard.tokens
        print(f"{shard.folder / shard.name}: {shard.rows:,} documents", file=sys.stderr)
    print(f"{options.dataset}: whole; {rows:,} documents, {tokens:,} tokens")


def _inspect(options: argparse.Namespace) -> None:
    from vpmoe.data.dataset_files import open_shards, read_manifest
    from vpmoe.data.errors import DataError

    number = options.document
    for shard in open_shards(options.dataset, read_manifest(options.dataset), (options.split,)):
        if 0 <= number < shard.rows:
            shard.verify_sizes()
            shard.verify_document(number)
            start = int(shard.starts[number])
            part = slice(start, start + int(shard.lengths[number]))
            arrays = shard.arrays
            _show(options, arrays["tokens"][part], arrays["lossmask"][part], arrays["span"][part])
            return
        number -= shard.rows
    raise DataError(
        f"--document {options.document}: {options.dataset}: {options.split} has no document "
        f"{options.document}; give a smaller number, counted from 0"
    )


def _render(options: argparse.Namespace) -> None:
    from vpmoe.data.encode import DocumentEncoder
    from vpmoe.data.encode_block import encode_rows
    from vpmoe.data.errors import DataError
    from vpmoe.data.profiles import get_profile
    from vpmoe.data.row_content import ChatOptions
    from vpmoe.data.rows import Position, open_input, parse_block, read_blocks
    from vpmoe.tokenizer.asset import ensure_asset
    from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer

    chat = ChatOptions(options.chat_format, tuple(options.ignore_columns))
    seen = 0
    for block in read_blocks(open_input(options.input), Position()):
        rows, _ = parse_block(block, chat)
        if 0 < options.row - seen <= len(rows):
            tokenizer = O200kHarmonyTokenizer(ensure_asset(options.vocabulary))
            encoder = DocumentEncoder(tokenizer, get_profile(options.profile))
            document = encode_rows(encoder, block.path, [rows[options.row - seen - 1]])
            _show(options, document.tokens, document.loss_mask, document.span)
            return
        seen += len(rows)
    raise DataError(
        f"--row {options.row}: {options.input}: no usable row {options.row}; it has {seen}; give a "
        "smaller number, counted from 1"
    )


def _show(options: argparse.Namespace, tokens: Any, mask: Any, span: Any) -> None:
    from vpmoe.data.display import document_text
    from vpmoe.tokenizer.asset import ensure_asset
    from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer

    if options.json:
        arrays = {"tokens": tokens, "lossmask": mask, "span": span}
        print(json.dumps({name: array.tolist() for name, array in arrays.items()}))
        return
    from rich.console import Console

    tokenizer = O200kHarmonyTokenizer(ensure_asset(options.vocabulary))
    console = Console(highlight=False, soft_wrap=True)
    # rich would end the process with 1 where the reader has seen enough.
    with console.capture() as shown:
        console.print(document_text(tokenizer, tokens, mask, span))
    print(shown.get(), end="")
