"""`vpmoe`: train, tokenize, build data, count parameters, export and look at weights."""

import sys

# The rest is imported when Ctrl-C is provided for.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_EXAMPLES = """\
examples:
  vpmoe tokenizer install
  vpmoe data build --input data/sample/conversations.jsonl --output runs/data
  vpmoe pretrain --config configs/vpmoe-tiny.toml --synth-kd-data runs/data --train-iters 20
  torchrun --nproc-per-node 2 -m vpmoe.pretrain --config configs/vpmoe-dev.toml ...
  vpmoe params --config configs/vpmoe-6b.toml
  vpmoe export runs/train runs/exported
  vpmoe generate runs/exported --prompt 'Once upon a time' --tokens 20
"""


def main(argv: "Sequence[str] | None" = None) -> int:
    """Runs one sub-command.

    Args:
        argv: words of the command line; this process's own when None.

    Returns:
        Its exit code: 2 for wrong usage or broken input, 130 where Ctrl-C ended it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        if argv is None:
            _end_undisturbed()
    except KeyboardInterrupt:
        print(" ".join(["vpmoe", *words[:1]]) + ": interrupted", file=sys.stderr)
        return 130
    return code


def _end_undisturbed() -> None:
    """Has Ctrl-C ignored: the work is done, and Python would print where it came."""
    import signal
    import threading

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(words: list[str]) -> int:
    if words[:1] == ["pretrain"]:
        # Megatron's parser takes it from here: its flags are not declared twice.
        from vpmoe.pretrain import main as pretrain

        return pretrain(words[1:])
    options = _parser().parse_args(words)
    try:
        code = int(options.func(options) or 0)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser() -> "argparse.ArgumentParser":
    import argparse

    from vpmoe.data.cli import add_commands as add_data_commands
    from vpmoe.export.cli import add_commands as add_export_commands
    from vpmoe.model.params import add_commands as add_params_commands
    from vpmoe.tokenizer.cli import add_commands as add_tokenizer_commands

    parser = argparse.ArgumentParser(
        prog="vpmoe",
        description="Train a sparse mixture-of-experts language model on Megatron-core.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "pretrain",
        help="train; flags are Megatron's and vpMoE's (vpmoe pretrain --help lists them all)",
    )
    add_tokenizer_commands(commands)
    add_data_commands(commands)
    add_params_commands(commands)
    add_export_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
