"""`golden` in a process that stops itself at its Nth operation on files and processes.

    python -m benchmarks.chaos.driver SIGNAL N COUNT_FILE WORD...

A signal sent after a random time rarely falls between two renames. Python announces to its audit
hooks what it is about to do, so that every such moment can be chosen, and chosen again. With N = 0
nothing stops the command; COUNT_FILE receives how many moments it has.
"""

import os
import sys
from pathlib import Path

_ALWAYS = frozenset(
    {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.fork", "subprocess.Popen"}
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def main() -> int:
    """Runs the command; returns its exit code."""
    signal_number, wanted, count_file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    seen, pid = 0, os.getpid()

    def listen(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if os.getpid() != pid or not (event in _ALWAYS or _opens_to_write(event, arguments)):
            return
        seen += 1
        if seen == wanted:
            os.kill(pid, signal_number)

    from validation.cli.program import main as golden

    sys.addaudithook(listen)
    code = golden(sys.argv[4:])
    found, seen = seen, wanted + 1
    if not wanted:
        Path(count_file).write_text(str(found))
    return code


def _opens_to_write(event: str, arguments: tuple[object, ...]) -> bool:
    flags = arguments[2] if event == "open" else 0
    return isinstance(flags, int) and bool(flags & _WRITING)


if __name__ == "__main__":
    sys.exit(main())
