"""The kill matrix as a page and as a document."""

from __future__ import annotations

from importlib.resources import files

import jinja2
from markupsafe import Markup

from validation.power.matrix import NO_OP, Kill, Matrix, Pass, scores

MARGIN_IS = (
    "The margin of a kill is the error over the tolerance of its worst record; inf where a "
    "discrete record, an invariant or a table differs."
)


def render_html(matrix: Matrix, environment: str) -> str:
    """Renders one HTML file that needs no network: scores, survivors first, then what must pass.

    Args:
        matrix: what was found.
        environment: in words, where the bugs were planted.

    Returns:
        The file's text.
    """
    reports = files("validation.report")
    engine = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = engine.from_string(
        files("validation.power").joinpath("matrix.html.j2").read_text("utf-8")
    )
    return template.render(
        matrix=matrix,
        environment=environment,
        margin_is=MARGIN_IS,
        scores=scores(matrix),
        tone="fail" if matrix.survivors or matrix.false_alarms else "pass",
        headline=headline(matrix),
        kinds=[
            (title, _alarms_first(matrix.harmless(kind)))
            for title, kind in (
                ("Harmless changes", "benign"),
                ("Clean runs", "unchanged"),
                ("No-op controls: the same patch without effect", NO_OP),
            )
        ],
        verdict_of=verdict_of,
        margin_of=margin_of,
        css=Markup(reports.joinpath("page.css").read_text("utf-8")),  # noqa: S704 our own file
    )


def render_markdown(matrix: Matrix, environment: str) -> str:
    """The same for a repository's documents."""
    lines = ["# Kill matrix", "", f"{headline(matrix)} {environment}", ""]
    lines += ["| figure | value |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in scores(matrix).items()]
    lines += ["", "## Bugs", ""]
    lines += [
        "| fault | category | verdict | margin | step | by | case | traced to | imitates |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kill in matrix.kills:
        by = kill.sightings[0].comparator if kill.sightings else "-"
        place = f"`{kill.localised}`" if kill.localised else _cell(kill.note) or "-"
        if kill.killed and not kill.localised_right:
            place += f" (is in {kill.fault.component})"
        lines.append(
            f"| `{kill.fault.id}` | {kill.fault.category} | {verdict_of(kill)} | "
            f"{margin_of(kill)} | {'-' if kill.step is None else kill.step} | {by} | "
            f"{_cases(kill)} | {place} | {_cell(kill.fault.imitates)} |"
        )
    lines += ["", "## Smallest margins", "", MARGIN_IS, ""]
    lines += ["| fault | margin | case | traced to |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{kill.fault.id}` | {margin_of(kill)} | {kill.case} | `{kill.localised}` |"
        for kill in matrix.smallest_margins()
    ]
    equivalents = matrix.equivalents
    if equivalents:
        lines += ["", "## Equivalent bugs", "", "Proved by a trace that is equal bit by bit.", ""]
        lines += [f"- `{kill.fault.id}`: {kill.fault.equivalent}" for kill in equivalents]
    lines += ["", "## Harmless changes", "", "| change | verdict | what |", "| --- | --- | --- |"]
    for entry in (*matrix.harmless("benign"), *matrix.harmless("unchanged")):
        verdict = "passes" if entry.passed else f"FALSE ALARM: {_cell(entry.note)}"
        lines.append(f"| `{entry.id}` | {verdict} | {_cell(entry.description) or '-'} |")
    alarms = [entry for entry in matrix.harmless(NO_OP) if not entry.passed]
    lines += ["", "## No-op controls", ""]
    lines += [f"- `{entry.subject}`: FALSE ALARM: {entry.note}" for entry in alarms]
    if not alarms:
        lines.append(f"All {len(matrix.harmless(NO_OP))} pass.")
    return "\n".join(lines) + "\n"


def headline(matrix: Matrix) -> str:
    """The result in a sentence or two."""
    total, left_out = len(matrix.kills), len(matrix.equivalents)
    killed = f"{len(matrix.killed)} of {total} bugs killed"
    if left_out:
        killed += f", {len(matrix.killed)} of {total - left_out} without proved equivalents"
    alarms = len(matrix.false_alarms)
    return f"{killed}; {alarms} false alarm(s) in {len(matrix.passes)} runs that must pass."


def verdict_of(kill: Kill) -> str:
    """A fault's verdict in a word."""
    return "killed" if kill.killed else "equivalent" if kill.equivalent else "SURVIVED"


def margin_of(kill: Kill) -> str:
    """A kill's margin in three digits."""
    return "-" if kill.margin is None else f"{kill.margin:.3g}"


def _cases(kill: Kill) -> str:
    return ", ".join(s.case for s in kill.sightings) or kill.case


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _alarms_first(entries: list[Pass]) -> list[Pass]:
    return sorted(entries, key=lambda entry: (entry.passed, entry.id))
