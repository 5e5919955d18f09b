"""The target of the case `printed`: what a run prints and logs, from a start and resumed."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from validation.running.recorder import Recorder
from vpmoe.cases.training import build_data, share_cores, train

_ITERATION = re.compile(r"^ *\[[^]]*\] +iteration +(\d+)/")
_NUMBER = re.compile(r"^ *([^|:]+): *([-+\d.E]+|nan|inf|-inf) *$")
# How long the machine took, which no golden can know.
_TIMES = ("elapsed time", "throughput", "energy", "power")


def run(recorder: Recorder, settings: Mapping[str, Any]) -> None:
    """Trains with every interval of the log, twice: from a start, and from its checkpoint.

    Every number of a printed line and every scalar that goes to TensorBoard is recorded, as curves
    `printed_<name>/<run>` and `logged_<name>/<run>`. An invariant of each line: a printed loss is
    the mean of the losses logged since its interval, or its run, began.

    Args:
        recorder: of this process.
        settings: `preset` (file), `conversations` (JSONL file), `flags` (of `vpmoe pretrain`),
            `save_after` (step after which the first of a pair of runs is saved and ends),
            `log_intervals` (of the pairs).

    Raises:
        RuntimeError: a training refused or failed, or printed no line.
    """
    from vpmoe.runtime import detect_lane
    from vpmoe.tokenizer.asset import ensure_asset

    share_cores()
    ensure_asset()
    with tempfile.TemporaryDirectory(prefix="golden-printed-") as folder:
        data = build_data(recorder, settings, Path(folder) / "data")
        flags = ["--config", settings["preset"], "--synth-kd-data", str(data)]
        flags += [str(flag) for flag in settings.get("flags", ())]
        after = str(settings["save_after"])
        for interval in settings["log_intervals"]:
            checkpoint = str(Path(folder) / f"checkpoint-{interval}")
            saving = ["--save", checkpoint, "--save-interval", after, "--exit-interval", after]
            for name, more in (("start", saving), ("resumed", ["--load", checkpoint])):
                log = _Log(recorder, f"{name}_every_{interval}", interval)
                with detect_lane().activate(), log.listening():
                    train([*flags, "--log-interval", str(interval), *more])
                if not log.lines:
                    raise RuntimeError(f"{log.run}: no line of the training log was printed")


class _Log:
    """What one run prints and logs.

    Args:
        recorder: of this process.
        run: its name, in the records.
        interval: its `--log-interval`.
    """

    def __init__(self, recorder: Recorder, run: str, interval: int) -> None:
        self.recorder = recorder
        self.run = run
        self.interval = interval
        self.lines = 0
        self._logged: defaultdict[str, dict[int, float]] = defaultdict(dict)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the place of TensorBoard's writer, and hears what the last rank prints."""
        from vpmoe.megatron.points import PRINT_LAST, TENSORBOARD

        with (
            TENSORBOARD.wrapped(lambda original: lambda: self),
            PRINT_LAST.wrapped(self._heard),
        ):
            yield

    def add_scalar(self, name: str, value: Any, step: int) -> None:
        """TensorBoard's: records a scalar of a step, or number of samples (`... vs samples`)."""
        number = float(value)
        self._logged[name][step] = number
        self.recorder.curve(step, f"logged_{_slug(name)}/{self.run}", number)

    def flush(self) -> None:
        """TensorBoard's: there is no file."""

    def _heard(self, original: Callable[[str], None]) -> Callable[[str], None]:
        def print_rank_last(line: str) -> None:
            original(line)
            iteration = _ITERATION.match(line)
            if iteration:
                self.lines += 1
                self._record_line(int(iteration[1]), line)

        return print_rank_last

    def _record_line(self, step: int, line: str) -> None:
        found = [match for part in line.split("|") if (match := _NUMBER.match(part))]
        names = [match[1].strip() for match in found]
        self.recorder.discrete(f"printed/{self.run}", names, tensor="names", step=step)
        for name, text in zip(names, (match[2] for match in found), strict=True):
            if name.startswith(_TIMES):
                continue
            value, unit = float(text), last_digit(text)
            # What is printed is rounded: a unit of its last digit is no change. Counts and
            # scales are exact.
            grain = unit / abs(value) if value and unit < 0.01 else None
            self.recorder.curve(step, f"printed_{_slug(name)}/{self.run}", value, grain=grain)
            if name.endswith("loss") and name in self._logged:
                self._record_mean(step, name, value, unit)

    def _record_mean(self, step: int, name: str, printed: float, unit: float) -> None:
        began = (step - 1) // self.interval * self.interval
        values = [value for at, value in self._logged[name].items() if began < at <= step]
        self.recorder.invariant(
            f"printed/{self.run}",
            f"{name} is the mean of what was logged since its interval began",
            abs(printed - sum(values) / len(values)),
            unit,
            step=step,
            tensor=name,
        )


def last_digit(text: str) -> float:
    """The size of a unit of a number's last printed digit: 1e-06 of `1.224588E+00`; 0 of nan."""
    exponent = Decimal(text).as_tuple().exponent
    return 10.0**exponent if isinstance(exponent, int) else 0.0


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower())
