"""A TCP port for the processes of a run, which no other run of this machine takes meanwhile.

A port that was merely found free may be gone when the first rank listens on it: to another run, or
to an outgoing connection, for which the system takes any port of its own range. So the port comes
from below that range, and a lock holds it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_FIRST = 20000
_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Where the system does not say: what RFC 6335 leaves to outgoing connections.
_USUAL_START = 49152
_TRIES = 200


@contextlib.contextmanager
def reserved_port(host: str = "127.0.0.1") -> Iterator[int]:
    """Finds a free port, and reserves it among the user's runs inside of the context.

    Args:
        host: where the port must be free.

    Yields:
        The port.

    Raises:
        OSError: none is free.
    """
    folder = Path(tempfile.gettempdir()) / f"golden-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # Not of torch's or Python's shared generator: a seeded program would try the same ports.
    chosen = random.SystemRandom()
    for _ in range(_TRIES):
        port = chosen.randrange(_FIRST, _end())
        lock = FileLock(folder / str(port), timeout=0)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(lock)
            except Timeout:
                continue
            if _is_free(host, port):
                yield port
                return
    raise OSError(errno.EADDRINUSE, f"no free port of {host} between {_FIRST} and {_end()}")


def _end() -> int:
    """Where the system's range of outgoing connections begins."""
    try:
        start = int(_RANGE_FILE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _USUAL_START
    return start if start > _FIRST + _TRIES else _USUAL_START


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
