"""Signals in the first and the last moments of a command, when it has no work that they could stop.

It imports as little as it can: before `interruptible_start` has been called, Ctrl-C is Python's.
"""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C or SIGTERM has ended."""


_program = "golden"


def interruptible_start(program: str) -> None:
    """Has Ctrl-C and SIGTERM end this process at once, with one line: it has nothing to undo yet.

    As an exception, Ctrl-C would strike in the middle of somebody's import, which may print it,
    swallow it, or call it by another name. `stoppable_work` ends this.

    Args:
        program: whose line it is.
    """
    global _program
    _program = program
    # A command in the background is started with Ctrl-C ignored, which stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)


def stoppable_work() -> None:
    """Has Ctrl-C and SIGTERM raise KeyboardInterrupt, so that runs and worktrees end in order."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def undisturbed_end() -> None:
    """Has both ignored: the work is done, and Python ends what is left within seconds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end(number: int, frame: object) -> None:
    del number, frame
    try:
        os.write(2, f"{_program}: interrupted\n".encode())
    finally:
        os._exit(INTERRUPTED)
