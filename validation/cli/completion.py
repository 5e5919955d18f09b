"""`golden completion`, and the names that a shell completes: cases, lanes, faults."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from typing import Any

from validation.cases import discover_cases, discover_faults, discover_throughput_faults
from validation.config import declaration_of
from validation.running.source import find_root

_ASKED_BY_SHELL = "_ARGCOMPLETE"


def add_commands(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "completion",
        help="teach your shell to complete commands, options, cases, lanes and faults",
        description="Prints what a shell has to evaluate, once in each session or in its start-up "
        "file.",
        epilog='examples:\n  eval "$(golden completion bash)"     (in ~/.bashrc)\n'
        '  eval "$(golden completion zsh)"      (in ~/.zshrc)\n'
        "  golden completion fish | source      (in ~/.config/fish/config.fish)\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="bash|zsh|fish")
    parser.set_defaults(func=completion)


def completion(options: argparse.Namespace) -> int:
    """Prints the shell's code; returns 0."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["golden"], shell=options.shell))
    return 0


def answer_shell(parser: argparse.ArgumentParser) -> None:
    """Answers and ends the process where it is a shell that asks what could come next."""
    if _ASKED_BY_SHELL in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def completed_by(action: argparse.Action, names: Callable[[], Iterable[str]]) -> None:
    """Has the shell complete an argument's value by these names."""

    def completer(**_: object) -> list[str]:
        try:
            return sorted(names())
        except Exception:  # the command itself says what is wrong; a prompt is no place for it
            return []

    action.completer = completer  # type: ignore[attr-defined]  # how argcomplete is told


def cases() -> Iterable[str]:
    """Names of the repository's cases."""
    return discover_cases(find_root())


def lanes() -> Iterable[str]:
    """Names of the repository's lanes."""
    return declaration_of(find_root()).lanes


def faults() -> Iterable[str]:
    """Names of the repository's faults."""
    return discover_faults(find_root())


def slowdowns() -> Iterable[str]:
    """Names of the slowdowns that `golden bench` can plant."""
    return discover_throughput_faults(find_root())
