"""Sliding windows: W counts the current token.

Query i of a window W sees the keys [max(0, i - (W - 1)), i]: at most W, of which W - 1 are past.
Megatron, Transformer Engine and FlashAttention count *extra* tokens, (left, right): W is
(W - 1, 0). This module holds the only conversion between the two.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vpmoe.model.config import VpmoeConfig


def window_to_left_right(window: int) -> tuple[int, int]:
    """Converts W, the tokens seen with the current one, to Megatron's (left, right) extra tokens.

    Args:
        window: W.

    Returns:
        (W - 1, 0).

    Raises:
        ValueError: W is not positive.
    """
    if window < 1:
        raise ValueError(f"a window of {window} tokens leaves nothing to attend to; at least 1")
    return window - 1, 0


def parse_window_size(text: str) -> tuple[int, int]:
    """Parses `--window-size`: one integer is W, `left,right` is Megatron's tuple.

    Args:
        text: value of the flag.

    Returns:
        (left, right) in Megatron's sense: "128" gives (127, 0) and so does "127,0".

    Raises:
        argparse.ArgumentTypeError: neither form, a negative side, or a window into the future.
    """
    try:
        numbers = [int(part) for part in text.strip().strip("()").split(",") if part.strip()]
    except ValueError:
        numbers = []
    try:
        match numbers:
            case [window]:
                return window_to_left_right(window)
            case [left, 0] if left >= 0:
                return left, 0
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    raise argparse.ArgumentTypeError(
        f"expected a window W such as 128, or Megatron's (left, 0) such as 127,0; found {text!r}"
    )


def layer_window(config: VpmoeConfig, layer_number: int) -> int | None:
    """Computes the window W of a layer, in tokens with the current one.

    Args:
        config: `window_size` is Megatron's (left, right); `window_attn_skip_freq` n makes every
            n-th layer global, None makes none of them global, a list says 1 for a local layer.
        layer_number: counted from 1 over the whole model.

    Returns:
        The window, or None for a global layer.
    """
    from vpmoe.megatron.helpers import is_layer_window_attention

    if config.window_size is None or not is_layer_window_attention(
        config.window_size, config.window_attn_skip_freq, layer_number
    ):
        return None
    return int(config.window_size[0]) + 1
