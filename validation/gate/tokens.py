"""The text around a token id that differs, which a reader understands better than its number."""

from __future__ import annotations

from collections.abc import Sequence

from validation.cases import Case
from validation.compare import Comparison
from validation.running.worker import resolve

# Tokens shown before and after a differing one.
_CONTEXT = 12


def decoded_tokens(case: Case, comparison: Comparison) -> dict[str, tuple[str, str, str]]:
    """The text around the first differing token, on both sides: (before, token, after).

    Empty where no list of token ids differs, or the case does not say how to decode.
    """
    differing = (d for d in comparison.divergences if d.tensor == "tokens" and d.offset is not None)
    place = next(differing, None)
    if case.decode is None or place is None:
        return {}
    decode, at = resolve(case.decode), place.offset or 0
    texts: dict[str, tuple[str, str, str]] = {}
    for side, trace in (("golden", comparison.golden), ("actual", comparison.actual)):
        for event in trace.events:
            key, ids = event.key, event.value
            if isinstance(ids, Sequence) and (
                key.step,
                key.micro_batch,
                key.module,
                key.tensor,
                key.rank,
            ) == (place.step, place.micro_batch, place.module, place.tensor, place.rank):
                texts[side] = (
                    decode(ids[max(0, at - _CONTEXT) : at]),
                    decode(ids[at : at + 1]),
                    decode(ids[at + 1 : at + 1 + _CONTEXT]),
                )
    return texts
