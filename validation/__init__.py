"""Golden traces: records what a training computes, and gates changes on it.

What a repository needs to gate a training of its own:

| name | what it is |
| --- | --- |
| `Case` | one thing that is run and traced |
| `Needs` | what a case needs of a machine |
| `Invariant` | a relation between the runs of two cases |
| `Fault` | a known bug that can be planted, to prove that the gate sees it |
| `Benign` | a harmless change that can be planted, which the gate must let pass |
| `Gated`, `Field` | what code the cases stand for, and what they could set |
| `CaseError` | what a repository declares wrongly |
| `Recorder` | what a case's target tells its run to |
| `attach_module` | records the outputs and their gradients of every module of a torch model |
| `Pacer` | what a case's `throughput` function is paced by |
| `Trace`, `load_trace` | what one run left, and how it is read from its folder |
| `Tolerances`, `Comparison`, `Divergence` | the comparison of two traces (`validation.compare`) |
| `Verdict`, `CheckResult`, `CaseResult` | what a check says |

Everything else is internal, and may change in any version.
"""

# Nothing is imported before it is asked for: `golden` provides for Ctrl-C first.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from validation.cases import Benign, Case, CaseError, Fault, Field, Gated, Invariant, Needs
    from validation.compare import Comparison, Divergence, Tolerances
    from validation.gate.verdict import CaseResult, CheckResult, Verdict
    from validation.running.recorder import Recorder, attach_module
    from validation.throughput.pacer import Pacer
    from validation.trace import Trace, load_trace

    __version__: str

__all__ = [
    "Benign",
    "Case",
    "CaseError",
    "CaseResult",
    "CheckResult",
    "Comparison",
    "Divergence",
    "Fault",
    "Field",
    "Gated",
    "Invariant",
    "Needs",
    "Pacer",
    "Recorder",
    "Tolerances",
    "Trace",
    "Verdict",
    "__version__",
    "attach_module",
    "load_trace",
]

_HOMES = {
    "validation.cases": (
        "Benign",
        "Case",
        "CaseError",
        "Fault",
        "Field",
        "Gated",
        "Invariant",
        "Needs",
    ),
    "validation.compare": ("Comparison", "Divergence", "Tolerances"),
    "validation.gate.verdict": ("CaseResult", "CheckResult", "Verdict"),
    "validation.running.recorder": ("Recorder", "attach_module"),
    "validation.throughput.pacer": ("Pacer",),
    "validation.trace": ("Trace", "load_trace"),
}


def __getattr__(name: str) -> "Any":
    """Imports a public name when it is first used: a part of the harness need not load the rest."""
    import importlib
    import importlib.metadata

    if name == "__version__":
        from validation.version import DISTRIBUTION

        return importlib.metadata.version(DISTRIBUTION)
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted(__all__)
