"""`vpmoe export`, `vpmoe import` and `vpmoe generate`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

_EXPORT = """\
examples:
  vpmoe export runs/train runs/exported
  vpmoe export runs/train/iter_0000100 runs/exported --dtype fp32
"""
_IMPORT = """\
example:
  vpmoe import runs/exported runs/imported
  vpmoe pretrain --config configs/vpmoe-tiny.toml --load runs/imported ...
"""
_GENERATE = """\
examples:
  vpmoe generate runs/exported --prompt 'Once upon a time' --tokens 20
  vpmoe generate runs/exported --special --tokens 20 \\
      --prompt '<|start|>user<|message|>Hello<|end|><|start|>assistant'
"""


def add_commands(subparsers: Any) -> None:
    """Adds the three commands to argparse's sub-parsers."""
    export = _add(
        subparsers,
        "export",
        _export,
        "write a checkpoint's weights as safetensors with a config",
        "Writes the weights of a checkpoint, saved under any layout, as safetensors with a "
        "config.json that says everything a forward pass needs (docs/export.md).",
        _EXPORT,
    )
    export.add_argument(
        "checkpoint", type=Path, help="folder of `--save`, or one checkpoint in it (iter_...)"
    )
    export.add_argument("output", type=Path, help="the export's folder, which must not exist")
    export.add_argument(
        "--dtype",
        choices=("trained", "fp32"),
        default="trained",
        help="what tensors are stored in (trained: as the checkpoint has them)",
    )

    back = _add(
        subparsers,
        "import",
        _import,
        "make a checkpoint of an export, to train on from",
        "Makes a checkpoint of an export. `vpmoe pretrain --load` starts a training from it, under "
        "any layout, with a fresh optimizer and steps counted from 0.",
        _IMPORT,
    )
    back.add_argument("export", type=Path, help="the export's folder")
    back.add_argument("checkpoint", type=Path, help="the checkpoint's folder, which must not exist")

    look = _add(
        subparsers,
        "generate",
        _generate,
        "continue a text with an exported model, greedily",
        "Continues a text with the reference forward pass, in fp32 on the CPU, taking the "
        "likeliest token each time. It ends early with <|endoftext|>, <|return|> or <|call|>.",
        _GENERATE,
    )
    look.add_argument("export", type=Path, help="the export's folder")
    look.add_argument("--prompt", required=True, help="the text to continue")
    look.add_argument("--tokens", type=int, required=True, help="tokens to append at most")
    look.add_argument(
        "--special", action="store_true", help="honour control tokens such as <|end|> in the prompt"
    )
    look.add_argument("--vocabulary", type=Path, help="o200k_base.tiktoken")
    look.add_argument("--json", action="store_true", help="ids and text as a JSON object")


def _add(
    subparsers: Any,
    name: str,
    command: Callable[[argparse.Namespace], None],
    summary: str,
    description: str,
    examples: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(func=_guarded(name, command))
    return parser


def _guarded(
    name: str, command: Callable[[argparse.Namespace], None]
) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        try:
            command(options)
        except BrokenPipeError:
            return 0
        except KeyboardInterrupt:
            print(f"vpmoe {name}: interrupted; nothing was written", file=sys.stderr)
            return 130
        except (ValueError, OSError) as error:
            print(f"vpmoe {name}: {error}", file=sys.stderr)
            return 2
        return 0

    return run


def _export(options: argparse.Namespace) -> None:
    from vpmoe.runtime import detect_lane

    # Megatron, which knows the classes of a training's arguments, is imported inside a lane; it
    # warns of every library that it does without.
    with warnings.catch_warnings(action="ignore"), detect_lane().activate():
        from vpmoe.export.convert import export_checkpoint

        export = export_checkpoint(options.checkpoint, options.output, fp32=options.dtype == "fp32")
    files = len({tensor.file for tensor in export.tensors.values()})
    print(
        f"{export.folder}: {len(export.tensors)} tensors in {files} file(s), after "
        f"{export.iteration} steps"
    )
    print(f"digest: {export.digest}")


def _import(options: argparse.Namespace) -> None:
    from vpmoe.export.convert import import_export

    # Megatron tells of its saving on stdout, and warns of every library that it does without.
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(action="ignore"):
        import_export(options.export, options.checkpoint)
    print(f"{options.checkpoint}: a checkpoint to --load, with a fresh optimizer")


def _generate(options: argparse.Namespace) -> None:
    from vpmoe.export.architecture import ExportError
    from vpmoe.export.convert import TOKENIZER
    from vpmoe.export.folder import open_export
    from vpmoe.export.generate import generate
    from vpmoe.export.reference import ReferenceModel
    from vpmoe.tokenizer.asset import ASSET_SHA256, ensure_asset
    from vpmoe.tokenizer.tokenizer import O200kHarmonyTokenizer

    export = open_export(options.export)
    stored = export.tokenizer
    if stored is None or (stored.name, stored.asset_sha256) != (TOKENIZER, ASSET_SHA256):
        raise ExportError(
            f"{export.folder}: its ids are not {TOKENIZER}'s, so that it cannot read a --prompt; "
            "give "
            "an export of a training without --legacy-tokenizer"
        )
    tokenizer = O200kHarmonyTokenizer(ensure_asset(options.vocabulary))
    prompt = tokenizer.encode(options.prompt, allowed_special="all" if options.special else ())
    model = ReferenceModel(export.architecture, export.read())
    ids = generate(model, prompt, options.tokens, stored.stop_ids)
    text = tokenizer.detokenize(ids)
    if options.json:
        print(json.dumps({"prompt_ids": prompt, "ids": ids, "text": text}, ensure_ascii=False))
    else:
        print(options.prompt + text)
