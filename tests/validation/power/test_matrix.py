"""The matrix's figures: what counts as killed, right, early and equivalent."""

from __future__ import annotations

from validation.cases import Fault
from validation.compare import Divergence
from validation.power.matrix import Kill, Matrix, Pass, Sighting, scores
from validation.power.page import render_html, render_markdown
from validation.trace import RecordKind


def fault(name: str, component: str = "window", equivalent: str | None = None) -> Fault:
    return Fault(
        id=name,
        category="c",
        component=component,
        imitates="a | b <script>",
        plant="m:f",
        case="case",
        equivalent=equivalent,
    )


def seen(step: int = 0, module: str = "window/layer", phase: str = "forward") -> Sighting:
    first = Divergence(step=step, phase=phase, module=module, tensor="table", kind=RecordKind.TABLE)
    return Sighting("case", first)


MATRIX = Matrix(
    [
        Kill(fault("survivor"), tried="case", note="nothing differs", differs=False),
        Kill(fault("bits"), tried="case", differs=True),
        Kill(fault("same", equivalent="it is the same"), tried="case", differs=False),
        Kill(fault("liar", equivalent="it is not the same"), tried="case", differs=True),
        Kill(fault("killed"), [seen()]),
        Kill(fault("late"), [seen(step=9)]),
        Kill(fault("elsewhere", "router"), [seen()]),
        Kill(fault("phase", "optimizer"), [seen(module="layer", phase="optimizer")]),
    ],
    [Pass("twin/killed", True), Pass("b", False, "x | y"), Pass("unchanged/case", True)],
)


def test_survivors_and_equivalents() -> None:
    assert [kill.fault.id for kill in MATRIX.survivors] == ["survivor", "bits", "liar"]
    assert [kill.fault.id for kill in MATRIX.equivalents] == ["same"]
    assert [kill.fault.id for kill in MATRIX.killed if not kill.localised_right] == ["elsewhere"]
    assert MATRIX.to_json()["total"] == 8
    assert MATRIX.to_json()["killed"] == 4
    assert MATRIX.to_json()["false_alarms"] == 1


def test_scores_are_said_with_and_without_equivalents_and_bits() -> None:
    figures = scores(MATRIX)
    assert figures["killed, of all"].startswith("4 of 8 (50.0%, at least 19.3%)")
    assert figures["killed, equivalents left out"].startswith("4 of 7")
    assert figures["killed if bits counted"].startswith("6 of 8")
    assert figures["first divergence in the right place"].startswith("3 of 4")
    assert figures["killed within 3 steps"].startswith("3 of 4")
    assert figures["harmless changes passed"].startswith("0 of 1")


def test_pages_hold_everything_and_nothing_runs_in_them() -> None:
    page, document = render_html(MATRIX, "where"), render_markdown(MATRIX, "where")
    assert "<script" not in page
    for kill in MATRIX.kills:
        assert f"<code>{kill.fault.id}</code>" in page
        assert f"`{kill.fault.id}`" in document
    assert page.index("survivor") < page.index("<code>killed</code>")
    assert "a \\| b <script>" in document
    assert "it is the same" in document


def test_a_no_op_control_is_called_so_for_readers_and_keeps_its_stored_name() -> None:
    control = MATRIX.passes[0]
    assert (control.label, control.subject) == ("no-op control of killed", "killed")
    assert "no-op controls passed" in scores(MATRIX)
    stored = MATRIX.details()
    assert stored["scores"]["twins passed"] == scores(MATRIX)["no-op controls passed"]
    assert stored["benign"][0]["id"] == "twin/killed"
    for text in (render_html(MATRIX, "here"), render_markdown(MATRIX, "here")):
        assert "No-op controls" in text
        assert "twin" not in text.lower()
