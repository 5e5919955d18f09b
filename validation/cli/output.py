"""Lets `golden` go on quietly when the reader of its output has closed the pipe.

`golden check --json | head -1` closes the pipe while the command still has work to do: to publish
the run, and to return its verdict. So a closed pipe ends the printing alone.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

OUTPUT = "output"
"""The file that an error of printing names."""


class _Output(io.FileIO):
    """A file descriptor that swallows what is written once its reader has gone away."""

    def write(self, data: object, /) -> int:
        """As `FileIO.write`, but a broken pipe takes everything.

        Args:
            data: bytes to write.

        Returns:
            How many bytes were written.

        Raises:
            OSError: it cannot be written, such as to a full disk; once, not again at exit.
        """
        try:
            return super().write(data)  # type: ignore[arg-type]  # a buffer, as the base has it
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if not isinstance(error, BrokenPipeError):
                raise OSError(error.errno, error.strerror, OUTPUT) from error
            return memoryview(data).nbytes  # type: ignore[arg-type]


def outlive_readers() -> None:
    """Lets this process's standard output and errors outlive whoever reads them.

    A stream that somebody has replaced (a test, an embedding program) stays; one that was closed
    before the start writes nowhere.
    """
    sys.stdout = _patient(sys.stdout, sys.__stdout__)
    sys.stderr = _patient(sys.stderr, sys.__stderr__)


def _patient(stream: TextIO | None, original: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123
    if stream is not original or not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    output = _Output(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        # As Python itself does it: nothing is held back under `-u` and PYTHONUNBUFFERED.
        output if stream.write_through else io.BufferedWriter(output),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
