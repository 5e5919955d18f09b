"""Ways to break the gate, each planted into its real functions when a Python process starts.

The tests copy this file as `sitecustomize.py` in front of the module search path of `golden`, so
that the command and the processes of its runs are sabotaged as `$SABOTAGE` names it.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any


def always_equal() -> None:
    """Nothing ever differs."""
    _after_compare(lambda found: replace(found, divergences=[]))


def inverted_rule() -> None:
    """What is within tolerance is reported, what is beyond it passes."""

    def inverted(found: Any) -> Any:
        within = [o.place for o in found.outcomes if o.error <= o.tolerance]
        return replace(found, divergences=within)

    _after_compare(inverted)


def inverted_rule_quietly() -> None:
    """As Megatron-LM's rule was: one right record is enough for the rest to pass."""

    def one_is_enough(found: Any) -> Any:
        right = any(o.error <= o.tolerance for o in found.outcomes)
        return replace(found, divergences=[] if right else found.divergences)

    _after_compare(one_is_enough)


def no_cases() -> None:
    """No case is chosen."""
    import validation.cli.check as command

    command.chosen_cases = lambda *_: []


def no_cases_found() -> None:
    """No case is discovered."""
    import validation.cli.check as command

    command.discover_cases = lambda *_: {}


def nothing_compared() -> None:
    """Every trace is compared without its records."""

    def without_records(compare: Any) -> Any:
        return lambda golden, actual, *more, **named: compare(
            replace(golden, events=(), curves={}, tables={}),
            replace(actual, events=(), curves={}, tables={}),
            *more,
            **named,
        )

    _around_compare(without_records)


def misspelt_in_comparison() -> None:
    """The loss is looked up under a name that neither trace has, and so is never compared."""
    _without_loss(both=True)


def misspelt_in_golden() -> None:
    """The golden's loss is looked up under another name than the run's."""
    _without_loss(both=False)


def misspelt_in_recorder() -> None:
    """The run records its loss under another name."""
    from validation.running.recorder import Recorder

    record = Recorder.curve

    def curve(self: Any, step: int, metric: str, *more: Any, **named: Any) -> None:
        record(self, step, metric.replace("lm_loss", "lm_losss"), *more, **named)

    Recorder.curve = curve


def canary_not_planted() -> None:
    """Faults are accepted and never planted."""
    import validation.gate.canary as canary

    run = canary.run_case
    canary.run_case = lambda case, options, *more: run(case, replace(options, fault=None), *more)


def infinite_tolerance() -> None:
    """Every tolerance is without end."""
    from validation.compare import Tolerances

    Tolerances.of = lambda self, name, step: math.inf


def tensors_ignored() -> None:
    """Tensors are looked up in neither trace."""
    import importlib

    module: Any = importlib.import_module("validation.compare.compare")
    original = module._events

    def discrete_alone(golden: Any, actual: Any, *more: Any) -> Iterator[Any]:
        traces = (
            replace(t, events=[e for e in t.events if not e.floating]) for t in (golden, actual)
        )
        return original(*traces, *more)

    module._events = discrete_alone


def _after_compare(change: Callable[[Any], Any]) -> None:
    def changed(compare: Any) -> Any:
        return lambda *words, **named: change(compare(*words, **named))

    _around_compare(changed)


def _around_compare(wrap: Callable[[Any], Any]) -> None:
    import validation.gate.canary
    import validation.gate.check

    for module in (validation.gate.canary, validation.gate.check):
        module.compare = wrap(module.compare)


def _without_loss(*, both: bool) -> None:
    # `validation.compare.compare` is both a module and the function that the package exports.
    import importlib

    module: Any = importlib.import_module("validation.compare.compare")
    original = module._curve_values

    def lost(trace: Any) -> Any:
        return replace(
            trace, curves={k: s for k, s in trace.curves.items() if k.metric != "lm_loss"}
        )

    def values(golden: Any, actual: Any, *more: Any) -> Iterator[Any]:
        return original(lost(golden), lost(actual) if both else actual, *more)

    module._curve_values = values


if "SABOTAGE" in os.environ:
    globals()[os.environ["SABOTAGE"]]()
