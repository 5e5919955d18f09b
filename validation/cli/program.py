"""The parser of `golden` and its exit codes; each command's work is in a module of its own."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import platform
import sys
import threading
import traceback
from collections.abc import Sequence

from validation.cases import CaseError
from validation.cli import (
    accept,
    bench,
    check,
    completion,
    coverage,
    diff,
    explain,
    faults,
    inspect,
    listing,
    mutate,
    prune,
    track,
    upkeep,
)
from validation.cli.commands import Commands
from validation.cli.output import OUTPUT, outlive_readers
from validation.files import SCHEMA, DamagedFileError
from validation.gate.verdict import EXIT_CODES, USAGE_EXIT_CODE, Verdict
from validation.goldens.acceptance import RefusedError
from validation.running.source import RepositoryError
from validation.shortage import shortage
from validation.starting import INTERRUPTED, stoppable_work
from validation.version import DISTRIBUTION

_DESCRIPTION = """\
Run training cases, compare every recorded number with the accepted (golden) one, and say what
moved first. Lanes are kinds of machine: cpu, and those that the repository declares.
"""
_EPILOG = """\
a first day:
  golden list                          what is recorded, and what it can detect
  golden check                         run and compare everything that this machine can
  golden check my_case --report out   one case, with an HTML report in out/
  golden explain                       the latest run's first divergence
  golden diff my_case HEAD~1          what changed in the golden since a commit
  golden update my_case --reason "..." --expect my_case:lm_loss:down
                                       accept an intended change
  golden dashboard                     earlier runs, in MLflow

exit codes: 0 PASS, 1 FAIL (behaviour moved), 2 wrong usage, refused or broken input, 3 INVALID (the
gate could not prove itself), 4 UNFIT (the machine could not serve), 5 HARDWARE or NONDETERMINISTIC
(the same code, run again here, did something else), 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    outlive_readers()
    parser, commands = build_parser()
    completion.answer_shell(parser)
    if not words:
        # No exit code 0: a job whose command is an empty variable has proved nothing.
        parser.print_help()
        return USAGE_EXIT_CODE
    commands.refuse_unknown(words)
    options = parser.parse_args(words)
    try:
        if threading.current_thread() is threading.main_thread():
            stoppable_work()
        code = int(options.func(options))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"golden {options.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return _failed(options, error)


def _failed(options: argparse.Namespace, error: Exception) -> int:
    """Says why a command failed; returns its exit code."""
    lacking = shortage(error)
    checking = options.command == "check"
    # Where the output of another command has no room, its reader knows, and nothing else was lost.
    if lacking is not None and (checking or getattr(error, "filename", None) != OUTPUT):
        with contextlib.suppress(OSError):  # its output may be on the same disk
            print(f"golden {options.command}: UNFIT: {lacking}", file=sys.stderr)
            if checking:
                check.print_unfit(options, lacking)
            sys.stdout.flush()
        return EXIT_CODES[Verdict.UNFIT]
    if isinstance(error, (CaseError, RefusedError, RepositoryError, DamagedFileError)):
        print(f"golden {options.command}: {error}", file=sys.stderr)
        return USAGE_EXIT_CODE
    # The gate itself is broken: neither a PASS nor a FAIL of the code.
    if isinstance(error, OSError) and error.filename is not None:
        why = f"{error.filename}: {error.strerror}"
        print(f"golden {options.command}: {why}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    return EXIT_CODES[Verdict.INVALID] if checking else USAGE_EXIT_CODE


def build_parser() -> tuple[argparse.ArgumentParser, Commands]:
    """The parser of every command, and the commands."""
    parser = argparse.ArgumentParser(
        prog="golden",
        usage="golden COMMAND ...",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=_version(), help="show the version and exit"
    )
    commands = Commands(parser)
    for room in (
        inspect,
        listing,
        diff,
        check,
        explain,
        accept,
        faults,
        coverage,
        mutate,
        bench,
        upkeep,
        track,
        prune,
        completion,
    ):
        room.add_commands(commands)
    parser.description = f"{_DESCRIPTION}\n{commands.described()}"
    return parser, commands


def _version() -> str:
    try:
        version = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        version = "of a checkout that is not installed"
    return f"golden {version} (goldens of schema {SCHEMA}, Python {platform.python_version()})"
