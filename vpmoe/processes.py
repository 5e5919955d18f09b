"""Processes that end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Has Linux kill this process when its parent ends, however it ends.

    To be called by the child. The parent's thread that started it must live as long as it.

    Args:
        parent: the parent's id, as the parent knows it; where it has ended already, this process
            ends here.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
