"""The HTML page's content as plain values, and its rendering into one self-contained file.

Everything a trace can name (modules, metrics, text) reaches the page through jinja's
autoescaping or as escaped JSON; the page's policy allows no script but its own and no request.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from validation.report.charts import CurveChart

# Two rows on a wide screen; a page is to be read, not scrolled.
_LEADING_CURVES = 4
TONES = {
    "PASS": "pass",
    "FAIL": "fail",
    "INVALID": "invalid",
    "HARDWARE": "unfit",
    "NONDETERMINISTIC": "invalid",
    "UNFIT": "unfit",
    "SKIPPED": "skipped",
}


@dataclass(frozen=True)
class Item:
    """A named value; `mono` sets it in a fixed-width face."""

    name: str
    value: str
    mono: bool = False
    note: str = ""


@dataclass(frozen=True)
class Decoded:
    """Text around a differing token: before it, the token, after it."""

    name: str
    before: str
    token: str
    after: str


@dataclass(frozen=True)
class DivergenceView:
    """The first divergence: where it is in one line, its numbers, its decoded text."""

    where: str
    fields: Sequence[Item]
    decoded: Sequence[Decoded] = ()


@dataclass(frozen=True)
class CurveView:
    """One metric: its drawing, its state, and a note of the worst deviation."""

    metric: str
    state: str
    tone: str
    note: str
    marker_label: str
    series: int
    chart: CurveChart


@dataclass(frozen=True)
class HeatCell:
    """A module at a step: colour class, text on hover, and whether the first divergence is here."""

    css: str
    title: str
    first: bool = False


@dataclass(frozen=True)
class HeatRow:
    """A module's cells in the order of the steps."""

    name: str
    cells: Sequence[HeatCell]


@dataclass(frozen=True)
class LegendEntry:
    """A colour and what it means."""

    css: str
    text: str


@dataclass(frozen=True)
class HeatView:
    """Divergence by module (rows, in execution order) and step."""

    steps: Sequence[str]
    rows: Sequence[HeatRow]
    legend: Sequence[LegendEntry]
    note: str


@dataclass(frozen=True)
class MaskView:
    """A table as a picture: paths of the cells both have, only the golden, only the run."""

    name: str
    state: str
    tone: str
    note: str
    width: int
    height: int
    both: str
    gone: str
    new: str


@dataclass(frozen=True)
class Change:
    """What of the environment is not as it was when the golden was recorded."""

    name: str
    golden: str
    actual: str


@dataclass(frozen=True)
class CaseView:
    """A case that ran."""

    name: str
    anchor: str
    verdict: str
    kind: str
    summary: str
    compared: str
    identical: str
    identical_percent: float | None
    ratio: str
    seconds: str
    count_note: str
    message: str
    message_title: str
    open: bool
    divergence: DivergenceView | None = None
    curves: Sequence[CurveView] = ()
    hidden_curves: Sequence[CurveView] = ()
    heat: HeatView | None = None
    masks: Sequence[MaskView] = ()
    changes: Sequence[Change] = ()
    provenance: Sequence[Item] = ()
    detects: Sequence[Item] = ()

    @property
    def tone(self) -> str:
        """Colour name of the verdict."""
        return TONES.get(self.verdict, "skipped")

    @property
    def leading_curves(self) -> Sequence[CurveView]:
        """The curves that are seen at once."""
        return self.curves[:_LEADING_CURVES]

    @property
    def folded_curves(self) -> Sequence[CurveView]:
        """The curves that a click shows."""
        return self.curves[_LEADING_CURVES:]

    @property
    def masks_differ(self) -> bool:
        """Whether any table needs the legend of differences."""
        return any(m.gone or m.new for m in self.masks)


@dataclass(frozen=True)
class SkippedView:
    """A case that did not run, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class MissedView:
    """A file with lines that no case runs: how many of how many, and which."""

    name: str
    share: str
    lines: str


@dataclass(frozen=True)
class CoverageView:
    """What the lane's cases run of the gated code, in one line, and what they do not."""

    headline: str
    note: str
    files: Sequence[MissedView]
    fields: Sequence[Item]


@dataclass(frozen=True)
class PageView:
    """The whole page."""

    title: str
    lane: str
    verdict: str
    headline: str
    details: Sequence[str]
    facts: Sequence[Item]
    cases: Sequence[CaseView]
    skipped: Sequence[SkippedView]
    environment: Sequence[Item]
    next_text: str
    next_steps: Sequence[str]
    footer: str
    series: Sequence[Mapping[str, Any]]
    coverage: CoverageView | None = None

    @property
    def tone(self) -> str:
        """Colour name of the verdict."""
        return TONES.get(self.verdict, "skipped")

    @property
    def shows_charts(self) -> bool:
        """Whether the legend of the curves is needed."""
        return any(case.curves for case in self.cases)


def render(page: PageView) -> str:
    """Returns the page as HTML text, complete in itself."""
    folder = files("validation.report")
    script = folder.joinpath("page.js").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(folder.joinpath("page.html.j2").read_text("utf-8"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template.render(
        page=page,
        css=Markup(folder.joinpath("page.css").read_text("utf-8")),  # noqa: S704 our own file
        script=Markup(script),  # noqa: S704 our own file
        script_hash=digest,
    )
