"""Pictures of a case: the module x step heat map, and tables of intervals drawn as masks."""

import itertools
import math
from collections.abc import Sequence

from validation.gate.nearness import counted
from validation.report.evidence import EventEvidence, Intervals, State, TableEvidence
from validation.report.page import HeatCell, HeatRow, HeatView, LegendEntry, MaskView
from validation.report.wording import clean, number_text

MAX_HEAT_ROWS = 120
MAX_HEAT_STEPS = 60
MAX_MASKS = 12
MAX_MASK_ROWS = 256
_CROP = 48

# Upper bounds of relative error / tolerance for the classes h1..h7 of the page.
_CLASSES = ((0.01, "h1"), (0.1, "h2"), (1.0, "h3"), (10.0, "h4"), (100.0, "h5"), (1e4, "h6"))
_LEGEND = {
    "h0": "bit-identical",
    "h1": "below 1 % of the tolerance",
    "h2": "below 10 %",
    "h3": "within tolerance",
    "h4": "outside, up to 10x",
    "h5": "up to 100x",
    "h6": "up to 10,000x",
    "h7": "beyond, or a discrete difference",
    "hx": "missing, extra or NaN",
    "hn": "not recorded",
}
_ORDER = {name: i for i, name in enumerate(_LEGEND)}


def heat_map(
    events: Sequence[EventEvidence], first: tuple[int | None, str | None] | None
) -> HeatView | None:
    """Lays out the heat map of events, each cell the worst of a module at a step.

    Args:
        events: compared events in execution order.
        first: step and module of the first divergence, outlined in the map.

    Returns:
        The map, or None where there is nothing to show.
    """
    steps = sorted({event.step for event in events})
    if len(steps) > MAX_HEAT_STEPS:
        at = steps.index(first[0]) if first and first[0] in steps else 0
        start = min(max(0, at - MAX_HEAT_STEPS // 4), len(steps) - MAX_HEAT_STEPS)
        steps = steps[start : start + MAX_HEAT_STEPS]
    # Parameters are recorded by name before training: a module's place is where it first computes.
    computing = [event.module for event in events if event.phase != "init"]
    modules = list(dict.fromkeys([*computing, *(event.module for event in events)]))
    if not steps:
        return None
    worst: dict[tuple[str, int], EventEvidence] = {}
    for event in events:
        key = (event.module, event.step)
        if key not in worst or _severity(event) > _severity(worst[key]):
            worst[key] = event
    moved = {m for (m, _), event in worst.items() if event.state != State.IDENTICAL}
    shown = modules
    if len(modules) > MAX_HEAT_ROWS:
        shown = [m for m in modules if m in moved][:MAX_HEAT_ROWS]
    rows = [
        HeatRow(clean(m) or "(run)", [_cell(m, s, worst.get((m, s)), first) for s in steps])
        for m in shown
    ]
    used = sorted({c.css for row in rows for c in row.cells}, key=_ORDER.__getitem__)
    note = f"{counted(len(modules), 'module')}, {counted(len(moved), 'module')} not bit-identical"
    if len(shown) < len(modules):
        note += f", {len(shown)} shown"
    return HeatView(
        steps=[str(s) if s else "init" for s in steps],
        rows=rows,
        legend=[LegendEntry(css, _LEGEND[css]) for css in used],
        note=note,
    )


def _css(event: EventEvidence) -> str:
    if event.state == State.IDENTICAL:
        return "h0"
    if event.state in (State.MISSING, State.EXTRA, State.NAN):
        return "hx"
    if event.state == State.DIFFERS or event.ratio is None or math.isnan(event.ratio):
        return "h7"
    if event.state == State.WITHIN:
        return next((css for bound, css in _CLASSES[:3] if event.ratio < bound), "h3")
    return next((css for bound, css in _CLASSES[3:] if event.ratio < bound), "h7")


def _severity(event: EventEvidence) -> tuple[int, float]:
    return _ORDER[_css(event)], event.ratio or 0.0


def _cell(
    module: str,
    step: int,
    event: EventEvidence | None,
    first: tuple[int | None, str | None] | None,
) -> HeatCell:
    if event is None:
        return HeatCell("hn", f"step {step}: not recorded")
    text = f"step {step}: {event.state}"
    if event.ratio is not None and event.state != State.IDENTICAL:
        text += f", {number_text(event.ratio)} of the tolerance"
    if event.state != State.IDENTICAL:
        text += f" ({event.phase} {clean(event.tensor)})"
    return HeatCell(_css(event), text, first=first == (step, module))


def mask_pictures(tables: Sequence[TableEvidence]) -> list[MaskView]:
    """Returns pictures of the tables, differing ones first; equal pictures are drawn once."""
    groups: dict[tuple[object, ...], list[TableEvidence]] = {}
    for table in tables:
        groups.setdefault((table.columns, _key(table.golden), _key(table.actual)), []).append(table)
    ordered = sorted(groups.values(), key=lambda g: _key(g[0].golden) == _key(g[0].actual))
    return [_mask(group) for group in ordered[:MAX_MASKS]]


def _key(rows: Intervals | None) -> object:
    return None if rows is None else tuple(tuple(map(tuple, row)) for row in rows)


def _mask(group: Sequence[TableEvidence]) -> MaskView:
    table = group[0]
    golden, actual = table.golden or [], table.actual or []
    count = max(len(golden), len(actual))
    rows = [_split(_row(golden, i), _row(actual, i)) for i in range(count)]
    differing = [i for i, (_, gone, new) in enumerate(rows) if gone or new]
    chosen, left, width, stride = range(count), 0, table.columns, 1
    note = f"{count:,} x {table.columns:,}"
    if differing:
        first = differing[0]
        key = min(start for start, _ in [*rows[first][1], *rows[first][2]])
        note += f"; first difference at query {first}, key {key}"
        if max(count, table.columns) > MAX_MASK_ROWS:
            chosen = range(max(0, first - _CROP), min(count, first + _CROP))
            left, width = max(0, key - _CROP), min(table.columns, 2 * _CROP)
            note += f"; queries {chosen.start}-{chosen.stop - 1} and keys from {left} are shown"
    elif count > MAX_MASK_ROWS:
        stride = math.ceil(count / MAX_MASK_ROWS)
        chosen = range(0, count, stride)
        note += f"; every {stride}. query is drawn"
    state, tone = ("differs", "fail") if differing else ("equal", "pass")
    if table.golden is None or table.actual is None:
        state, tone = ("extra" if table.golden is None else "missing"), "fail"
    names = [clean(t.name) for t in group]
    label = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    both, gone, new = (
        _paths([rows[i][layer] for i in chosen], left, width, stride) for layer in range(3)
    )
    shown_width = max(1, math.ceil(width / stride))
    return MaskView(label, state, tone, note, shown_width, max(1, len(chosen)), both, gone, new)


def _row(rows: Intervals, index: int) -> Sequence[tuple[int, int]]:
    return rows[index] if index < len(rows) else ()


def _split(
    golden: Sequence[tuple[int, int]], actual: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns the intervals in both, only in the golden, only in the run."""
    edges = sorted({edge for interval in (*golden, *actual) for edge in interval})
    parts: tuple[list[tuple[int, int]], ...] = ([], [], [])
    for start, stop in itertools.pairwise(edges):
        in_golden = any(a <= start < b for a, b in golden)
        in_actual = any(a <= start < b for a, b in actual)
        if in_golden or in_actual:
            layer = 0 if in_golden and in_actual else 1 if in_golden else 2
            parts[layer].append((start, stop))
    return parts[0], parts[1], parts[2]


def _paths(rows: Sequence[Sequence[tuple[int, int]]], left: int, width: int, stride: int) -> str:
    drawn = []
    for y, row in enumerate(rows):
        for start, stop in row:
            x0, x1 = max(start, left) - left, min(stop, left + width) - left
            if x1 > x0:
                from_x, to_x = _short(x0 / stride), _short(x1 / stride)
                drawn.append(f"M{from_x} {y}H{to_x}v1H{from_x}Z")
    return "".join(drawn)


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
