"""Results and evidence that the report tests draw: one of each verdict."""

import math
from collections.abc import Callable

from validation.compare import Divergence
from validation.gate.verdict import Canary, CaseResult, CheckResult, Verdict
from validation.report.evidence import (
    CaseEvidence,
    CurveEvidence,
    EventEvidence,
    State,
    TableEvidence,
)

ENVIRONMENT = {"device": "cpu", "threads": 2, "torch": "2.11.0", "flags": {"deterministic": True}}
DIVERGENCE = Divergence(
    step=3,
    micro_batch=0,
    phase="forward",
    module="decoder.layers.1.self_attention",
    tensor="output",
    rank=0,
    expected=1.2837465142,
    actual=1.2850193401,
    relative_error=9.9e-4,
    tolerance=2.1e-6,
)
PASSED = CaseResult("dense_loss", Verdict.PASS, compared=800, identical=640, seconds=14.1)
FAILED = CaseResult(
    "moe_loss",
    Verdict.FAIL,
    compared=1200,
    identical=311,
    seconds=21.4,
    first_divergence=DIVERGENCE,
    message="attention output moved",
)
INVALID = CaseResult("resume", Verdict.INVALID, message="goldens/cpu/resume: digest differs")
NEAR = CaseResult(
    "near_loss",
    Verdict.PASS,
    compared=900,
    identical=899,
    seconds=3.0,
    largest_ratio=0.43,
    largest_at=Divergence(step=7, phase="optimizer", module="training", tensor="update_rms/norm"),
    calibrated_here=False,
)
SAME = CaseResult("same_loss", Verdict.PASS, 700, 700, seconds=2.0, largest_ratio=0.0)
SKIPPED = CaseResult("h200_loss", Verdict.SKIPPED, skipped_because="needs a CUDA device")


def check(verdict: Verdict, *cases: CaseResult, canary: bool | None = True) -> CheckResult:
    planted = None if canary is None else Canary("attention_scale", canary)
    return CheckResult(verdict, "cpu", 35.5, ENVIRONMENT, planted, cases)


def curve(
    metric: str,
    *,
    steps: int = 20,
    bad_from: int | None = None,
    value: Callable[[int], float] = lambda step: 11 * math.exp(-step / 9) + 2,
) -> CurveEvidence:
    golden = [value(step) for step in range(1, steps + 1)]
    moved = [bad_from is not None and step >= bad_from for step in range(1, steps + 1)]
    return CurveEvidence(
        metric=metric,
        steps=range(1, steps + 1),
        golden=golden,
        actual=[g * 1.01 if bad else g for g, bad in zip(golden, moved, strict=True)],
        tolerance=[abs(g) * 1e-4 for g in golden],
        states=[State.OUTSIDE if bad else State.IDENTICAL for bad in moved],
    )


def window(size: int, width: int) -> list[list[tuple[int, int]]]:
    return [[(max(0, q - width + 1), q + 1)] for q in range(size)]


def moe_evidence() -> CaseEvidence:
    modules = [f"decoder.layers.{layer}.self_attention" for layer in range(3)]
    events = [
        EventEvidence(
            step,
            "forward",
            module,
            "output",
            State.OUTSIDE if (step, layer) >= (3, 1) else State.IDENTICAL,
            471.0 if (step, layer) >= (3, 1) else 0.0,
        )
        for step in (1, 2, 3)
        for layer, module in enumerate(modules)
    ]
    return CaseEvidence(
        curves=[curve("learning_rate"), curve("lm_loss", bad_from=4)],
        events=events,
        tables=[
            TableEvidence("layer 0", 16, window(16, 4), window(16, 4)),
            TableEvidence("layer 1", 16, window(16, 4), window(16, 5)),
            TableEvidence("layer 2", 16, window(16, 4), window(16, 4)),
        ],
        golden={"commit": "d8ab5d8c", "reason": "first"},
        detects={"update_rms/router": 7e-6, "lm_loss": 1.25e-6},
    )
