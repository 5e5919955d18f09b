"""What the case `printed` records of a line of Megatron's log, and its law of means."""

from __future__ import annotations

import pytest

from validation.running.recorder import Recorder
from vpmoe.cases.printed import _Log, last_digit

LINE = (
    " [2026-01-05 10:00:00.000000] iteration {:8d}/       4 | consumed samples:            4 |"
    " elapsed time per iteration (ms): 3267.8 | learning rate: 2.997336E-03 |"
    " global batch size:     2 | lm loss: {:.6E} | loss scale: 1.0 | grad norm: 6.984 |"
    " number of nan iterations:   0 |"
)


def log_of(losses: list[float], printed: list[tuple[int, float]], interval: int) -> Recorder:
    """A recorder of a run with these losses of steps 1, 2, ... and printed (step, loss)."""
    recorder = Recorder()
    log = _Log(recorder, "start", interval)
    shown: list[str] = []
    hear = log._heard(shown.append)
    for step, loss in enumerate(losses, start=1):
        log.add_scalar("lm loss", loss, step)
        log.add_scalar("lm loss vs samples", loss, 2 * step)
        for _, value in (entry for entry in printed if entry[0] == step):
            hear(LINE.format(step, value))
    hear("saved checkpoint of iteration 2")
    assert log.lines == len(printed) == len(shown) - 1
    return recorder


def laws(recorder: Recorder) -> list[bool]:
    """Whether each line's law holds."""
    events = recorder.trace("printed", {}).events
    return [event.value.holds for event in events if event.key.tensor == "lm loss"]


def test_numbers_of_a_line_and_scalars_are_curves_and_times_are_not() -> None:
    curves = log_of([12.25, 12.0], [(1, 12.25), (2, 12.0)], 1).trace("printed", {}).curves
    curves = {str(key): series for key, series in curves.items()}
    assert curves["printed_lm_loss/start"] == {1: 12.25, 2: 12.0}
    assert curves["logged_lm_loss/start"] == {1: 12.25, 2: 12.0}
    assert curves["logged_lm_loss_vs_samples/start"] == {2: 12.25, 4: 12.0}
    assert curves["printed_grad_norm/start"] == {1: 6.984, 2: 6.984}
    assert curves["printed_consumed_samples/start"] == {1: 4.0, 2: 4.0}
    assert not [name for name in curves if "elapsed" in name]


@pytest.mark.parametrize(
    ("printed", "interval", "holds"),
    [
        ([(1, 12.25), (2, 12.0), (3, 11.0)], 1, [True, True, True]),
        ([(1, 12.25), (2, 12.125), (3, 11.0)], 1, [True, False, True]),  # Megatron 0.19.2
        ([(1, 12.25), (2, 12.125)], 2, [True, True]),
        ([(1, 12.25), (2, 12.0)], 2, [True, False]),
        ([(1, 12.2501), (3, 11.75)], 3, [False, True]),
    ],
)
def test_the_law_of_means(
    printed: list[tuple[int, float]], interval: int, holds: list[bool]
) -> None:
    assert laws(log_of([12.25, 12.0, 11.0], printed, interval)) == holds


@pytest.mark.parametrize(
    ("text", "unit"),
    [("1.224588E+01", 1e-5), ("6.984", 1e-3), ("4", 1.0), ("2.997336E-03", 1e-9), ("nan", 0.0)],
)
def test_the_last_printed_digit(text: str, unit: float) -> None:
    assert last_digit(text) == pytest.approx(unit)
