"""Evidence of a case: gathered from its comparison, kept in the run folder, read back from it.

Goldens move on while a run folder stays, so what the run was compared with is kept beside its
traces, in `evidence/<case>.json`; reports, explanations and MLflow read it later.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from validation.compare import Comparison, CurveComparison, Outcome
from validation.files import (
    SCHEMA,
    DamagedFileError,
    check_schema,
    decode_json,
    encode_json,
    read_file,
    safe_name,
    to_float,
    write_atomically,
)
from validation.gate.verdict import CaseResult, CheckResult
from validation.report.evidence import (
    CaseEvidence,
    CurveEvidence,
    DecodedEvidence,
    EventEvidence,
    Intervals,
    State,
    TableEvidence,
)
from validation.report.wording import flat
from validation.run_folder import EVIDENCE
from validation.trace import CurveKey, Event, RecordKind, TableKey, Trace

_MASK_NAME = re.compile(r"(^|[/._-])(window|mask|attention)", re.IGNORECASE)
_STATES = list(State)


def evidence_of(case: CaseResult) -> CaseEvidence:
    """Returns what a report can show of `case`; nothing when it was not compared."""
    decoded = [DecodedEvidence(side, *texts) for side, texts in case.decoded.items()]
    comparison = case.comparison
    if comparison is None:
        return CaseEvidence(decoded=decoded)
    outcomes = {
        (CurveKey(str(o.place.tensor), o.place.rank or 0), o.place.step): o
        for o in comparison.outcomes
        if o.place.kind is RecordKind.CURVE
    }
    return CaseEvidence(
        curves=[_curve(curve, outcomes) for curve in comparison.curves],
        events=_events(comparison),
        tables=_tables(comparison.golden, comparison.actual),
        golden=dict(flat(comparison.golden.provenance)),
        decoded=decoded,
        detects=dict(case.detects),
        first_kind=None if case.first_divergence is None else case.first_divergence.kind,
    )


def _curve(
    curve: CurveComparison, outcomes: Mapping[tuple[CurveKey, int | None], Outcome]
) -> CurveEvidence:
    states: list[State] = []
    rooms: list[float | None] = []
    rows = zip(curve.steps, curve.golden, curve.actual, curve.tolerance, strict=True)
    for step, golden, actual, tolerance in rows:
        outcome = outcomes.get((curve.key, step))
        states.append(_one_sided(golden, actual) if outcome is None else _state(outcome))
        if golden is None or not math.isfinite(golden):
            rooms.append(None)
            continue
        reference = abs(golden)
        if outcome is not None and actual is not None and 0 < outcome.error < math.inf:
            # What the comparator held the deviation against (a floor applies near zero).
            reference = abs(actual - golden) / outcome.error
        rooms.append(tolerance * reference)
    return CurveEvidence(str(curve.key), curve.steps, curve.golden, curve.actual, rooms, states)


def _one_sided(golden: object, actual: object) -> State:
    if golden is None:
        return State.EXTRA
    return State.MISSING if actual is None else State.DIFFERS


def _state(outcome: Outcome) -> State:
    if math.isnan(outcome.error):
        return State.NAN
    if outcome.error == 0.0:
        return State.IDENTICAL
    return State.WITHIN if outcome.error <= outcome.tolerance else State.OUTSIDE


_Place = tuple[object, ...]


def _place(where: Any) -> _Place:
    return where.step, where.micro_batch, where.phase, where.module, where.tensor, where.rank


def _events(comparison: Comparison) -> list[EventEvidence]:
    """Returns the events of both traces in execution order, at steps whose tensors were kept."""
    # A place reached several times in a step (a shared module) is drawn once, by its worst.
    ranked = sorted(comparison.outcomes, key=lambda o: (math.isnan(o.error), o.error))
    outcomes = {_place(o.place): o for o in ranked if o.place.kind is RecordKind.TENSOR}
    diverged = {
        _place(d)
        for d in comparison.divergences
        if d.kind not in (RecordKind.CURVE, RecordKind.TABLE)
    }
    ours = {event.key for event in comparison.actual.events}
    theirs = {event.key for event in comparison.golden.events}
    extra = [event for event in comparison.actual.events if event.key not in theirs]
    found: list[EventEvidence] = []
    for event in [*comparison.golden.events, *extra]:
        key, place = event.key, _place(event.key)
        outcome = outcomes.get(place)
        ratio = None
        if key not in ours:
            state = State.MISSING
        elif key not in theirs:
            state = State.EXTRA
        elif outcome is not None:
            state = _state(outcome)
            ratio = outcome.error / outcome.tolerance if outcome.tolerance else None
        else:
            state = State.DIFFERS if place in diverged else State.IDENTICAL
        found.append(EventEvidence(key.step, key.phase, key.module, key.tensor, state, ratio))
    steps = _interesting_steps(comparison.golden.events, found)
    return [event for event in found if event.step in steps]


def _interesting_steps(golden: Sequence[Event], found: Sequence[EventEvidence]) -> set[int]:
    """Returns steps with tensors or a divergence: batches alone are recorded at every step."""
    tensors = {event.key.step for event in golden if event.floating}
    return tensors | {event.step for event in found if not event.state.passes}


def _tables(golden: Trace, actual: Trace) -> list[TableEvidence]:
    """Returns the tables of allowed keys; others are told by their first differing row."""
    keys = [*golden.tables, *(key for key in actual.tables if key not in golden.tables)]
    keys = [key for key in keys if _MASK_NAME.search(key.name)]
    pairs = [(key, _intervals(golden, key), _intervals(actual, key)) for key in keys]
    return [
        TableEvidence(str(key), max(_columns(one), _columns(other)), one, other)
        for key, one, other in pairs
        if one or other
    ]


def _intervals(trace: Trace, key: TableKey) -> Intervals | None:
    rows = trace.tables.get(key)
    if not rows:
        return None
    intervals = []
    for index, entry in enumerate(rows):
        # A row may begin with its own number.
        row = entry[1:] if len(entry) % 2 and entry[0] == index else entry
        numbers = [n for n in row if isinstance(n, int) and not isinstance(n, bool)]
        if len(numbers) != len(row) or len(row) % 2 or sorted(numbers) != numbers:
            return None
        intervals.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return intervals


def _columns(rows: Intervals | None) -> int:
    return max((stop for row in rows or () for _, stop in row), default=0)


def save_evidence(result: CheckResult, run_dir: Path) -> None:
    """Keeps the evidence of every compared case in the run folder."""
    for case in result.cases:
        if case.comparison is not None:
            path = _path(run_dir, case.case)
            write_atomically(path, encode_json(_to_json(case.case, evidence_of(case))))


def load_evidence(run_dir: Path, case: str) -> CaseEvidence | None:
    """Reads back what `save_evidence` kept of a case.

    Args:
        run_dir: the run folder.
        case: name of the case.

    Returns:
        The evidence, or None when the case was not compared.

    Raises:
        DamagedFileError: the file is malformed or of another schema; its path comes first.
    """
    path = _path(run_dir, case)
    if not path.exists():
        return None
    document = decode_json(read_file(path), path)
    check_schema(document, path)
    try:
        return _from_json(document, path)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DamagedFileError(f"{path}: not evidence of a case: {error!r}") from error


def _path(run_dir: Path, case: str) -> Path:
    if not safe_name(case):
        raise DamagedFileError(f"{run_dir}: {case!r} is no name of a case")
    return run_dir / EVIDENCE / f"{case}.json"


def _to_json(case: str, evidence: CaseEvidence) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "case": case,
        "curves": [
            {
                "metric": c.metric,
                "steps": list(c.steps),
                "golden": list(c.golden),
                "actual": list(c.actual),
                "tolerance": list(c.tolerance),
                "states": [_STATES.index(s) for s in c.states],
            }
            for c in evidence.curves
        ],
        "events": [
            [e.step, e.phase, e.module, e.tensor, _STATES.index(e.state), e.ratio]
            for e in evidence.events
        ],
        "tables": [[t.name, t.columns, t.golden, t.actual] for t in evidence.tables],
        "golden": dict(evidence.golden),
        "decoded": [[d.side, d.before, d.token, d.after] for d in evidence.decoded],
        "detects": dict(evidence.detects),
        "first_kind": evidence.first_kind,
    }


def _from_json(document: Mapping[str, Any], path: Path) -> CaseEvidence:
    def number(value: Any) -> float | None:
        return None if value is None else to_float(value, path)

    def intervals(rows: Any) -> Intervals | None:
        return None if rows is None else [[(int(a), int(b)) for a, b in row] for row in rows]

    kind = document.get("first_kind")
    return CaseEvidence(
        curves=[
            CurveEvidence(
                metric=str(c["metric"]),
                steps=[int(s) for s in c["steps"]],
                golden=[number(v) for v in c["golden"]],
                actual=[number(v) for v in c["actual"]],
                tolerance=[number(v) for v in c["tolerance"]],
                states=[_STATES[i] for i in c["states"]],
            )
            for c in document["curves"]
        ],
        events=[
            EventEvidence(
                int(step), str(phase), str(module), str(tensor), _STATES[state], number(ratio)
            )
            for step, phase, module, tensor, state, ratio in document["events"]
        ],
        tables=[
            TableEvidence(str(name), int(columns), intervals(golden), intervals(actual))
            for name, columns, golden, actual in document["tables"]
        ],
        golden={str(k): str(v) for k, v in document["golden"].items()},
        decoded=[DecodedEvidence(*map(str, entry)) for entry in document["decoded"]],
        detects={str(k): to_float(v, path) for k, v in document.get("detects", {}).items()},
        first_kind=None if kind is None else RecordKind(kind),
    )
