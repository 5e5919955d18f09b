"""A process ends with its parent, also where the parent has ended before it asks for that."""

from __future__ import annotations

import os
import subprocess
import sys

from vpmoe.processes import die_with_parent


def test_a_process_whose_parent_is_gone_ends() -> None:
    program = "from vpmoe.processes import die_with_parent; die_with_parent(1); print('alive')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")


def test_a_process_whose_parent_lives_goes_on() -> None:
    child = os.fork()
    if child == 0:
        die_with_parent(os.getppid())
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
