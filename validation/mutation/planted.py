"""An instrument that has Python import a file as a mutant of it.

The file itself stays as it is: the import system compiles the mutant's text in its place, before
anything has imported the module, in every process of the run. What reads its own source (Triton,
TorchScript, tracebacks) is given the mutant's, too. It imports nothing of the harness, see
`validation.running.instruments`.
"""

from __future__ import annotations

import importlib.machinery
import linecache
import os
from pathlib import Path
from types import CodeType

FILE = "GOLDEN_MUTATED_FILE"
"""Variable: the file that is imported otherwise."""
TEXT = "GOLDEN_MUTANT"
"""Variable: a file with the mutant's text."""


def begin() -> None:
    """Puts the mutant in the place of its file, for this process."""
    file = Path(os.environ[FILE]).resolve()
    text = Path(os.environ[TEXT]).read_bytes()
    original = importlib.machinery.SourceFileLoader.get_code

    def get_code(loader: importlib.machinery.SourceFileLoader, fullname: str) -> CodeType | None:
        if Path(loader.path).resolve() != file:
            return original(loader, fullname)
        lines = text.decode().splitlines(keepends=True)
        # Without a time of change, so that nobody looks whether the file has another.
        linecache.cache[str(loader.path)] = (len(text), None, lines, str(loader.path))
        code: CodeType = compile(text, str(loader.path), "exec", dont_inherit=True)
        return code

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign,assignment]
