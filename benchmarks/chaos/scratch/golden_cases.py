"""The cases of the scratch repository, and how an attempt makes their processes misbehave.

`CHAOS_WORKER` names what a worker does wrong, and perhaps the rank that does it: `hang@1`.
"""

import contextlib
import os
import signal
import sys
import time
from unittest.mock import patch

from validation import Case, Fault

STEPS = 6


def run(recorder, settings):
    import loop

    rank = int(os.environ.get("RANK", "0"))
    curve = {"nan": float("nan"), "inf": float("inf"), "denormal": 5e-324, "huge": 1.7e308}

    def on_step(step, positives, loss, norm):
        if step == 3:
            _misbehave(rank)
        recorder.discrete("positives", positives, step=step, phase="data")
        recorder.curve(step, "lm_loss", curve.get(_wrong(rank), loss) if step == 4 else loss)
        recorder.curve(step, "grad_norm", norm, phase="reduction")

    recorder.table("shape", [[loop.ROWS, loop.WIDTH], [rank, STEPS]])
    steps = min(settings.get("stop_after", STEPS), STEPS)
    loop.train(steps, settings["seed"] + rank, settings.get("perturb_seed"), on_step)


def _wrong(rank):
    what, _, where = os.environ.get("CHAOS_WORKER", "").partition("@")
    return what if not where or int(where) == rank else ""


def _misbehave(rank):
    what = _wrong(rank)
    if what == "hang":
        time.sleep(3600)
    elif what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            with contextlib.suppress(Exception):
                time.sleep(3600)
    elif what == "exit-0":
        os._exit(0)
    elif what == "exit-7":
        sys.exit(7)
    elif what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "helper" and os.fork() == 0:
        time.sleep(3600)
    elif what == "flood":
        for _ in range(200):
            os.write(1, b"x" * 99_999 + b"\n")
    elif what == "endless":
        while True:
            os.write(1, b"\xff\0" * 500 + b"\n")
            time.sleep(0.0005)


def without_torch():
    """Nothing here computes with torch, whose import takes longer than all else."""
    sys.modules["torch"] = None


@contextlib.contextmanager
def small_rate():
    import loop

    with patch.object(loop, "RATE", 0.9 * loop.RATE):
        yield


_ONE = {
    "lanes": ["cpu"],
    "target": "golden_cases:run",
    "preload": ["numpy", "golden_cases:without_torch"],
    "timeout": float(os.environ.get("CHAOS_TIMEOUT", "40")),
}
CASES = [
    Case(name="one", description="one process", settings={"seed": 1}, **_ONE),
    Case(name="pair", description="two ranks", settings={"seed": 5}, processes=2, **_ONE),
]
FAULTS = [
    Fault(
        id="small_rate",
        category="optimizer",
        component="lm_loss",
        imitates="a learning rate that is a tenth too small",
        plant="golden_cases:small_rate",
        case="one",
        canary_steps=3,
    ),
]
