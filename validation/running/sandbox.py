"""Where a change's code runs while another revision judges it: bubblewrap, if the machine has it.

Inside, every file can be read and none written, but for one scratch folder and the device nodes;
the goldens are empty folders; no process outside can be seen, and none survives the sandbox. The
network stays: ranks talk through it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = "bwrap"
_TRIAL_SECONDS = 20.0
# What compilers of kernels write, unless the user has said where: a cache that a change can fill
# must not be one that others use.
_CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH", "XDG_CACHE_HOME")


@dataclass(frozen=True)
class Sandbox:
    """Confines the processes of runs.

    Attributes:
        scratch: the one folder that they can write to.
        hidden: folders that they see empty.
    """

    scratch: Path
    hidden: tuple[Path, ...] = ()

    def command(self, words: Sequence[str], environment: Mapping[str, str]) -> list[str]:
        """Builds the command that runs another one inside of the sandbox.

        Args:
            words: the command.
            environment: of the process; caches that it names can be written to.

        Returns:
            The command in words.
        """
        found = [_PROGRAM, "--ro-bind", "/", "/", "--dev-bind", "/dev", "/dev", "--proc", "/proc"]
        found += ["--unshare-pid", "--die-with-parent"]
        for folder in self.hidden:
            if folder.is_dir():
                found += ["--tmpfs", str(folder)]
        for name in _CACHES:
            if environment.get(name) and Path(environment[name]).is_dir():
                found += ["--bind", environment[name], environment[name]]
        return [*found, "--bind", str(self.scratch), str(self.scratch), "--", *words]

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """Variables of a process inside, with places that it can write to."""
        temporary = self.scratch / "tmp"
        temporary.mkdir(exist_ok=True)
        places = {name: str(self.scratch / name.lower()) for name in _CACHES}
        return {**places, **given, "TMPDIR": str(temporary)}


def why_no_sandbox() -> str:
    """Why this machine has no sandbox; empty where it has one."""
    if shutil.which(_PROGRAM) is None:
        return "bubblewrap (`bwrap`) is not installed"
    trial = Sandbox(Path("/tmp")).command(["true"], {})  # noqa: S108 nothing is written there
    try:
        done = subprocess.run(
            trial, capture_output=True, text=True, timeout=_TRIAL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap cannot be started: {error}"
    if done.returncode:
        return f"bubblewrap is not allowed here: {done.stderr.strip()}"
    return ""
