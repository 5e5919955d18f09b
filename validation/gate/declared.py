"""What a judged change declares, asked of a process of its own, since that runs the change's code.

python -m validation.gate.declared OUTPUT.json    in the checkout
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from validation.cases import CaseError, discover_cases
from validation.compat import module_command
from validation.config import search_path
from validation.config.python_path import python_path
from validation.files import decode_json, encode_json, read_file, write_atomically
from validation.running.sandbox import Sandbox
from validation.running.source import find_root

_SECONDS = 300.0
_TAIL = 12


def names_declared(root: Path, overlay: Path | None, sandbox: Sandbox | None) -> Collection[str]:
    """Lists the names of the cases that a checkout declares.

    Args:
        root: the checkout.
        overlay: folder on PYTHONPATH with modules of the base, which are not the checkout's.
        sandbox: where the process is confined; None confines nothing.

    Returns:
        The names.

    Raises:
        CaseError: its cases cannot be imported, or its declaration is wrong.
    """
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    inherited = os.pathsep.join(part for part in given if part and part != str(overlay))
    environment = {**os.environ, "PYTHONPATH": python_path(inherited, search_path(root))}
    scratch = None if sandbox is None else sandbox.scratch
    with tempfile.TemporaryDirectory(prefix="golden-", dir=scratch) as folder:
        answer = Path(folder) / "declared.json"
        words = module_command("validation.gate.declared", str(answer))
        if sandbox is not None:
            environment = sandbox.environment(environment)
            words = sandbox.command(words, environment)
        try:
            done = subprocess.run(
                words,
                cwd=root,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CaseError(f"{root}: its cases could not be listed in {_SECONDS:g} s") from error
        if done.returncode or not answer.is_file():
            said = "\n".join((done.stdout + done.stderr).splitlines()[-_TAIL:])
            raise CaseError(f"{root}: its cases cannot be listed: {said}")
        found = decode_json(read_file(answer), answer).get("cases")
    if not isinstance(found, list):
        raise CaseError(f"{answer}: no list of cases")
    return {str(name) for name in found}


def main() -> int:
    """Writes the names of the checkout's cases; returns 0, or 1 with the reason on stderr."""
    (output,) = sys.argv[1:]
    try:
        names = sorted(discover_cases(find_root()))
    except CaseError as error:
        print(error, file=sys.stderr)
        return 1
    write_atomically(Path(output), encode_json({"cases": names}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
