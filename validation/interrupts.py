"""Work that a signal shall not cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Lets a Ctrl-C or SIGTERM take effect at the end, so that what belongs together is done.

    Keep what is inside short. In other threads than the main one it does nothing: signals are not
    theirs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    former = {
        # None of a handler that C has installed, which Python cannot put back.
        number: signal.signal(number, lambda came, _: received.append(came)) or signal.SIG_DFL
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
