"""The work of a layer's attention, by which paced trainings count their operations."""

from types import SimpleNamespace

import pytest

from vpmoe.cases.pace import mean_keys


@pytest.mark.parametrize(("window", "skip"), [(None, None), ((15, 0), 4), ((15, 0), None)])
def test_mean_keys_of_a_layer(window: tuple[int, int] | None, skip: int | None) -> None:
    args = SimpleNamespace(seq_length=64, window_size=window, window_attn_skip_freq=skip)
    for layer in range(1, 9):
        is_local = window is not None and not (skip and layer % skip == 0)
        reach = 16 if is_local else 64
        seen = sum(min(position, reach) for position in range(1, 65)) / 64
        assert mean_keys(args, layer) == pytest.approx(seen)
