"""Runs commands inside this process and records what they print, refuse and write.

Every command has records of its own, `<topic>/<name>`, as discrete values:

| tensor | is |
| --- | --- |
| `command` | its words |
| `exit` | its exit code; the name of the exception where one ended it |
| `stdout` | its lines; a divergence's offset is the first line that differs |
| `stderr` | the same, and an exception's message |
| `files` | what it wrote, name by name: size and digest; None of what it removed |

What a machine, an installation or a moment decides is masked, all of it by `masks`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import re
import runpy
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from validation.running.recorder import Recorder

# What decides how programs print, besides what they are told.
_ENVIRONMENT = {"COLUMNS": "100", "LINES": "24", "NO_COLOR": "1", "TERM": "dumb", "LC_ALL": "C"}
_UNSET = ("FORCE_COLOR", "COLORTERM", "PYTHON_COLORS", "O200K_HARMONY_VOCAB_PATH")


def masks(folder: Path) -> Sequence[tuple[re.Pattern[str], str]]:
    """Everything that is masked in what commands print: pattern and what takes its place.

    Args:
        folder: the session's working folder.

    Returns:
        The masks, in the order in which they apply.
    """
    import vpmoe

    repository = Path(vpmoe.__file__).resolve().parent.parent
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    packages = Path(torch.origin).parent.parent
    return (
        (re.compile(re.escape(str(folder))), "<folder>"),
        (re.compile(re.escape(str(repository))), "<repository>"),
        (re.compile(re.escape(str(packages))), "<packages>"),
        # Versions of what is installed.
        (
            re.compile(r"\b(megatron-core|torch|quicktok-v1|quicktok|tiktoken) \d[\w.+]*"),
            r"\1 <version>",
        ),
        # Why the lane is the CPU's: torch is built without CUDA, or sees no card.
        (re.compile(r"(: lane cpu) \(.*\)"), r"\1 (<why>)"),
        # Cases, which come and go, are among them.
        (re.compile(r"( Used by )`.*`\.$", re.MULTILINE), r"\1<modules>."),
        # Words of another library, which its next version may choose otherwise.
        (re.compile(r"(; give what --[\w-]+ takes: ).*"), r"\1<help>"),
        (re.compile(r"(damaged or unreadable: )(?!names |no index).*"), r"\1<why>"),
        (re.compile(r"(no whole Parquet file: ).*"), r"\1<why>"),
        (re.compile(r"\b0x[0-9a-f]{6,}\b"), "<address>"),
    )


class Session:
    """Commands of one topic, run one after the other in a folder of their own.

    Args:
        recorder: of this process.
        topic: first part of the records' names.
        folder: where the commands run, and where paths in their words begin.
    """

    def __init__(self, recorder: Recorder, topic: str, folder: Path) -> None:
        self.recorder = recorder
        self.topic = topic
        self.folder = folder.resolve()
        self._masks = masks(self.folder)

    def vpmoe(self, name: str, *words: str | Path, **options: Any) -> None:
        """Runs `vpmoe` with these words; see `run`."""
        from vpmoe.cli import main

        self.run(name, main, words, **options)

    def module(self, name: str, module: str, words: Sequence[str | Path], **options: Any) -> None:
        """Runs a module as `python -m` does, with these words; see `run`."""
        from vpmoe.runtime.patches import replaced

        def command(told: list[str]) -> None:
            former = signal.getsignal(signal.SIGINT)
            try:
                with replaced(sys, "argv", [module, *told]):
                    runpy.run_module(module, run_name="__main__")
            finally:
                signal.signal(signal.SIGINT, former)  # a command that ends ignores it

        self.run(name, command, words, **options)

    def run(
        self,
        name: str,
        command: Callable[[list[str]], Any],
        words: Sequence[str | Path],
        *,
        stdin: bytes = b"",
        watch: str | None = None,
        megatron_prints: bool = False,
    ) -> None:
        """Runs a command and records what comes of it.

        Args:
            name: of the records.
            command: called with the words; returns an exit code.
            words: of the command line, after the program's name.
            stdin: what the command reads.
            watch: folder, or file, of which everything that the command writes is recorded.
            megatron_prints: keeps of what is printed the lines that the program itself signs, on
                stderr: the others are Megatron's, and its versions'.
        """
        told = [str(word) for word in words]
        before = {} if watch is None else self._files(watch)
        with _streams(stdin) as (out, err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code, raised = _ended(command, told)
        self._record(name, "command", [self.masked(word) for word in told])
        self._record(name, "exit", code)
        errors = self._lines(err())
        if megatron_prints:
            errors = [line for line in errors if line.startswith("vpmoe ")]
        else:
            self._record(name, "stdout", self._lines(out()))
        self._record(name, "stderr", errors + self._lines(raised))
        if watch is not None:
            after = self._files(watch)
            changed = {
                place: after.get(place)
                for place in sorted(before.keys() | after.keys())
                if before.get(place) != after.get(place)
            }
            self._record(name, "files", changed)

    def call(self, name: str, function: Callable[..., Any], *given: Any) -> None:
        """Records what a function returns, or the exception that it raises, as `result`.

        Args:
            name: of the record.
            function: returns a JSON value.
            *given: what it is called with.
        """
        try:
            found = function(*given)
        except Exception as error:
            found = {type(error).__name__: self._lines(str(error))}
        self._record(name, "result", found)

    def masked(self, text: str) -> str:
        """The text with everything masked that another machine may have otherwise."""
        for pattern, mask in self._masks:
            text = pattern.sub(mask, text)
        return text

    def _record(self, name: str, tensor: str, value: Any) -> None:
        self.recorder.discrete(f"{self.topic}/{name}", value, tensor=tensor)

    def _lines(self, text: str) -> list[str]:
        return self.masked(text).splitlines()

    def _files(self, watched: str) -> dict[str, Mapping[str, Any]]:
        """Each file's size and digest, by its name from the session's folder on."""
        place = self.folder / watched
        paths = [place] if place.is_file() else sorted(place.rglob("*"))
        found: dict[str, Mapping[str, Any]] = {}
        for path in paths:
            if path.is_file():
                content = path.read_bytes()
                digest = hashlib.blake2b(content, digest_size=16).hexdigest()
                name = path.relative_to(self.folder).as_posix()
                found[name] = {"bytes": len(content), "digest": digest}
        return found


@contextlib.contextmanager
def session(recorder: Recorder, topic: str) -> Iterator[Session]:
    """A session in a new folder, which is the working folder meanwhile.

    Args:
        recorder: of this process.
        topic: first part of the records' names.

    Yields:
        The session.
    """
    with (
        tempfile.TemporaryDirectory(prefix="golden-commands-") as name,
        _environment(),
        contextlib.chdir(name),
    ):
        yield Session(recorder, topic, Path(name))


def _ended(command: Callable[[list[str]], Any], words: list[str]) -> tuple[int | str, str]:
    """How a command ended, and the message of the exception that ended it."""
    try:
        return int(command(words) or 0), ""
    except SystemExit as stop:  # argparse's, and Megatron's
        return 0 if stop.code is None else int(stop.code), ""
    except Exception as error:
        return type(error).__name__, str(error)


@contextlib.contextmanager
def _streams(
    stdin: bytes,
) -> Iterator[tuple[Callable[[], str], Callable[[], str]]]:
    """Takes the place of the standard streams; yields what reads the two outputs."""
    given = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in "oe"]

    def reader(stream: io.TextIOWrapper) -> Callable[[], str]:
        def read() -> str:
            buffer = stream.buffer
            assert isinstance(buffer, io.BytesIO)
            return buffer.getvalue().decode("utf-8", "backslashreplace")

        return read

    former, sys.stdin = sys.stdin, given
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            yield reader(streams[0]), reader(streams[1])
    finally:
        sys.stdin = former


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """The variables that decide how programs print, the same everywhere."""
    with patch.dict(os.environ, _ENVIRONMENT):
        for name in _UNSET:
            os.environ.pop(name, None)
        yield
