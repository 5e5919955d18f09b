"""Progress of a build on stderr: a bar on a terminal, a line every few seconds otherwise."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from vpmoe.data.build import BuildProgress

_LINE_SECONDS = 10.0
_BAR_SECONDS = 0.2


class ProgressDisplay:
    """Shows rows, tokens, rate and time left; a context manager that is called with progress."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._began = self._shown = time.monotonic()
        self._start: BuildProgress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._tty and self._start is not None:
            print(file=sys.stderr)

    def __call__(self, progress: BuildProgress) -> None:
        """Shows how far the build is, not more often than can be read."""
        now = time.monotonic()
        if self._start is None:
            self._start, self._began = progress, now
        if now - self._shown < (_BAR_SECONDS if self._tty else _LINE_SECONDS):
            return
        self._shown = now
        line = self._line(progress, now - self._began)
        if self._tty:
            filled = 24 * progress.done // max(progress.total, 1)
            bar = "#" * filled + "-" * (24 - filled)
            print(f"\r[{bar}] {line}\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _line(self, progress: BuildProgress, seconds: float) -> str:
        assert self._start is not None
        share = 100 * progress.done / max(progress.total, 1)
        text = f"{share:5.1f} %  {progress.rows:,} rows  {progress.tokens:,} tokens"
        worked = progress.done - self._start.done
        if seconds > 0 and worked > 0:
            rate = (progress.tokens - self._start.tokens) / seconds
            left = (progress.total - progress.done) * seconds / worked
            text += f"  {rate / 1e6:.2f} M tokens/s  {_clock(left)} left"
        return text


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
