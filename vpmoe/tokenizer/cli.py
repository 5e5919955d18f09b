"""`vpmoe tokenizer install|verify|encode|decode`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpmoe.tokenizer.asset import ensure_asset, read_asset

if TYPE_CHECKING:
    from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer

_EXAMPLES = """\
examples:
  vpmoe tokenizer install
  vpmoe tokenizer verify
  vpmoe tokenizer encode 'hello <|end|>'          # a look-alike stays text
  vpmoe tokenizer encode --special '<|end|>'      # the control token
  vpmoe tokenizer decode 24912 2375
"""


def add_commands(subparsers: Any) -> None:
    """Adds `tokenizer` and its sub-commands to argparse's sub-parsers."""
    tokenizer = subparsers.add_parser(
        "tokenizer",
        help="install and verify the vocabulary; encode and decode",
        description="The o200k Harmony tokenizer: its vocabulary file, text to ids and back.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = tokenizer.add_subparsers(dest="tokenizer_command", required=True, metavar="COMMAND")

    install = commands.add_parser("install", help="write the verified vocabulary, no network")
    install.add_argument("--path", type=Path, help="the file (data/tokenizer/o200k_base.tiktoken)")
    install.add_argument(
        "--source", type=Path, help="a copy to install, plain or .gz; default: from bpe-openai"
    )
    install.set_defaults(func=_guarded(_install))

    verify = commands.add_parser("verify", help="check the vocabulary's hash and the encoder")
    verify.add_argument("--path", type=Path, help="the vocabulary file")
    verify.set_defaults(func=_guarded(_verify))

    encode = commands.add_parser("encode", help="text to ids, one line of ids")
    encode.add_argument("text", nargs="?", help="the text; standard input when left out")
    encode.add_argument(
        "--special", action="store_true", help="honour control tokens such as <|end|> in the text"
    )
    encode.add_argument("--json", action="store_true", help="a JSON object with ids and tokens")
    encode.add_argument("--path", type=Path, help="the vocabulary file")
    encode.set_defaults(func=_guarded(_encode))

    decode = commands.add_parser("decode", help="ids to text, byte for byte")
    decode.add_argument("ids", nargs="*", help="ids; from standard input when left out")
    decode.add_argument("--path", type=Path, help="the vocabulary file")
    decode.set_defaults(func=_guarded(_decode))


def _guarded(command: Any) -> Any:
    def run(options: argparse.Namespace) -> int:
        try:
            return int(command(options))
        except BrokenPipeError:
            return 0
        except (ValueError, OSError) as error:
            print(f"vpmoe tokenizer: {error}", file=sys.stderr)
            return 2

    return run


def _load(path: Path | None) -> O200kHarmonyTokenizer:
    from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer

    return O200kHarmonyTokenizer(ensure_asset(path))


def _install(options: argparse.Namespace) -> int:
    print(ensure_asset(options.path, options.source))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from vpmoe.tokenizer.asset import default_path
    from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer

    path = options.path or default_path()
    read_asset(path)
    tokenizer = O200kHarmonyTokenizer(path)
    for name, value in tokenizer.provenance.items():
        print(f"{name}: {value}")
    print(f"encoder: {tokenizer.encoder_library}")
    return 0


def _encode(options: argparse.Namespace) -> int:
    text = options.text
    if text is None:
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"standard input: invalid UTF-8 at byte {error.start}; give UTF-8"
            ) from error
    tokenizer = _load(options.path)
    ids = tokenizer.encode(text, allowed_special="all" if options.special else ())
    if options.json:
        tokens = [t.decode("utf-8", "backslashreplace") for t in tokenizer.ids_to_tokens(ids)]
        print(json.dumps({"ids": ids, "tokens": tokens}, ensure_ascii=False))
    else:
        print(*ids)
    return 0


def _decode(options: argparse.Namespace) -> int:
    where = "the ids" if options.ids else "standard input"
    words = options.ids or sys.stdin.read().replace(",", " ").strip("[] \n").split()
    try:
        ids = [int(word) for word in words]
    except ValueError as error:
        raise ValueError(f"{where}: no integer ids: {error}; give whole numbers") from error
    sys.stdout.buffer.write(_load(options.path).decode_bytes(ids))
    sys.stdout.flush()
    return 0
