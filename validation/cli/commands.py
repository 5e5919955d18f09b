"""The commands of `golden` as its help shows them, and its message for one that does not exist."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from validation.cli.suggest import did_you_mean, unknown

# In the order in which somebody comes to need them; a command of no group is shown last.
_GROUPS = {
    "set up": ("init", "setup", "completion"),
    "look": ("list", "show", "diff"),
    "every day": ("check", "explain", "update"),
    "measure the gate": ("calibrate", "faults", "coverage", "mutate", "health"),
    "when it has moved": ("bisect", "rebase"),
    "speed": ("bench",),
    "earlier runs": ("dashboard", "publish", "prune"),
}
_OTHERS = "more"


class Commands:
    """The sub-parsers of `golden`.

    Args:
        parser: of the program.
    """

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._program = parser
        self._parsers = parser.add_subparsers(
            prog=parser.prog, dest="command", required=True, help=argparse.SUPPRESS
        )
        self._known: dict[str, argparse.ArgumentParser] = {}
        self._help: dict[str, str] = {}

    def add_parser(self, name: str, *, help: str = "", **more: Any) -> argparse.ArgumentParser:  # noqa: A002
        """Adds a command, as `argparse` does; one without `help` is for programs and not shown."""
        parser: argparse.ArgumentParser = self._parsers.add_parser(name, **more)
        self._known[name] = parser
        if help:
            self._help[name] = help
        return parser

    def described(self) -> str:
        """Every command with its help, in groups."""
        grouped = {name for names in _GROUPS.values() for name in names}
        groups = {**_GROUPS, _OTHERS: tuple(n for n in self._help if n not in grouped)}
        width = max(len(name) for name in self._help)
        lines = []
        for group, names in groups.items():
            shown = [f"  {n.ljust(width)}  {self._help[n]}" for n in names if n in self._help]
            lines += [f"{group}:", *shown] if shown else []
        return "\n".join(lines)

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """Ends the program (exit 2) at a command or an option that does not exist.

        `argparse` would list every command, and complain of what is missing before it looks at an
        option that was misspelt.
        """
        if not words or words[0].startswith("-"):
            return
        parser = self._known.get(words[0])
        if parser is None:
            self._program.error(unknown("command", words[0], self._help))
        # argparse has no other list with the options that its help does not show.
        options = [option for option in parser._option_string_actions if option.startswith("--")]
        for word in words[1:]:
            if word == "--":
                return
            name = word.partition("=")[0]
            # A value may begin with dashes where it holds a space.
            if not name.startswith("--") or " " in name or any(o.startswith(name) for o in options):
                continue
            shown = [option for option in options if option in parser.format_usage()]
            hint = did_you_mean(name, shown) or f"options: {', '.join(shown)}"
            parser.error(f"there is no option {name}; {hint.rstrip()}")
