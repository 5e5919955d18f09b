"""Takes a mode of torch's dispatcher to every thread and process that starts inside of it.

Such a mode belongs to one thread. A forked process inherits its parent's; new threads, and
processes that start afresh (`spawn`, `forkserver`), do not. Loaders of data use all three.
"""

from __future__ import annotations

import contextlib
import multiprocessing.process
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

Mode = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class _Inside:
    """A function that runs inside of a mode; it can be sent to another process."""

    mode: Mode
    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.mode():
            return self.function(*args, **kwargs)


@contextlib.contextmanager
def everywhere(mode: Mode) -> Iterator[None]:
    """Enters a mode here, and in threads and processes that are started from now on.

    Args:
        mode: makes a context, one for each thread; importable by its name, so that a process which
            starts afresh can make its own.

    Raises:
        RuntimeError: of `start()`, for a process that starts afresh and overrides `run`.
    """
    start_thread, start_process = threading.Thread.start, multiprocessing.process.BaseProcess.start

    def start(thread: threading.Thread) -> None:
        thread.run = _Inside(mode, thread.run)  # type: ignore[method-assign]
        start_thread(thread)

    def start_inside(process: Any) -> None:
        # A process of no context of its own has the default one's method.
        method = process._start_method or multiprocessing.get_start_method()
        if method != "fork":
            if type(process).run is not multiprocessing.process.BaseProcess.run:
                raise RuntimeError(
                    f"{type(process).__qualname__} overrides run() and starts as a fresh process, "
                    'which this arithmetic cannot reach: start it with the method "fork"'
                )
            process._target = _Inside(mode, process._target)
        start_process(process)

    threading.Thread.start = start  # type: ignore[method-assign,assignment]
    multiprocessing.process.BaseProcess.start = start_inside  # type: ignore[method-assign,assignment]
    try:
        with mode():
            yield
    finally:
        threading.Thread.start = start_thread  # type: ignore[method-assign]
        multiprocessing.process.BaseProcess.start = start_process  # type: ignore[method-assign]
