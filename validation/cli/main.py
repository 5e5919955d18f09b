"""The parser of `golden` and its exit codes; each command's work is in a module of its own."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from validation.cases import CaseError
from validation.cli import accept, bench, check, explain, faults, inspect, track, upkeep
from validation.files import DamagedFileError
from validation.goldens.acceptance import RefusedError
from validation.source import RepositoryError
from validation.verdict import EXIT_CODES, USAGE_EXIT_CODE, Verdict

_DESCRIPTION = """\
Run training cases, compare every recorded number with the accepted (golden) one, and say what
moved first. Lanes are kinds of machine: cpu, and those that the repository declares.
"""
_EPILOG = """\
a first day:
  golden list                          what is recorded, and what it can detect
  golden check                         run and compare everything that this machine can
  golden check tiny_moe --report out   one case, with an HTML report in out/
  golden diff tiny_moe HEAD~1          what changed in the golden since a commit
  golden update tiny_moe --reason "..." --expect tiny_moe:lm_loss:down
                                       accept an intended change
  golden dashboard                     earlier runs, in MLflow

exit codes: 0 PASS, 1 FAIL (behaviour moved), 2 wrong usage, refused or broken input, 3 INVALID (the
gate could not prove itself), 4 UNFIT (the machine could not serve)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = build_parser().parse_args(argv)
    try:
        return int(options.func(options))
    except (CaseError, RefusedError, RepositoryError, DamagedFileError) as error:
        print(f"golden {options.command}: {error}", file=sys.stderr)
        return USAGE_EXIT_CODE
    except KeyboardInterrupt:
        print(f"golden {options.command}: interrupted", file=sys.stderr)
        return 130
    except Exception:  # the gate itself is broken: neither a PASS nor a FAIL of the code
        traceback.print_exc()
        return EXIT_CODES[Verdict.INVALID] if options.command == "check" else USAGE_EXIT_CODE


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = argparse.ArgumentParser(
        prog="golden",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for room in (inspect, check, explain, accept, faults, bench, upkeep, track):
        room.add_commands(commands)
    return parser
