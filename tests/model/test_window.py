"""The window counts the current token; one function converts it to Megatron's (left, right)."""

from __future__ import annotations

import argparse
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vpmoe.model.attention.pattern import allowed_keys
from vpmoe.model.window import layer_window, parse_window_size, window_to_left_right


def test_window_of_128_is_127_extra_tokens() -> None:
    assert window_to_left_right(128) == (127, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("128", (127, 0)), ("127,0", (127, 0)), ("(127,0)", (127, 0)), ("1", (0, 0))],
)
def test_flag_takes_w_or_megatrons_tuple(text: str, expected: tuple[int, int]) -> None:
    assert parse_window_size(text) == expected


@pytest.mark.parametrize("text", ["0", "-1", "127,1", "-1,0", "a", "", "1,2,3", "1.5"])
def test_flag_refuses_what_is_no_window(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_window_size(text)


@given(length=st.integers(1, 40), window=st.none() | st.integers(1, 45), first=st.integers(0, 40))
def test_allowed_keys_are_the_definition(length: int, window: int | None, first: int) -> None:
    documents = (torch.arange(length) >= first).int()[None]
    allowed = allowed_keys(length, window, documents, torch.device("cpu"))[0]
    for i in range(length):
        lowest = 0 if window is None else max(0, i - (window - 1))
        same = [j for j in range(lowest, i + 1) if (j >= first) == (i >= first)]
        assert allowed[i].nonzero().flatten().tolist() == same


def test_every_fourth_layer_is_global() -> None:
    config = SimpleNamespace(window_size=(127, 0), window_attn_skip_freq=4)
    windows = [layer_window(config, n) for n in range(1, 9)]  # type: ignore[arg-type]
    assert windows == [128, 128, 128, None] * 2


def test_no_window_makes_every_layer_global() -> None:
    config = SimpleNamespace(window_size=None, window_attn_skip_freq=None)
    assert layer_window(config, 1) is None  # type: ignore[arg-type]
