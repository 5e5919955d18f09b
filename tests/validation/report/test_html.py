"""The HTML page: complete without a network, safe against what a trace says, right in a browser."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from validation.gate.verdict import CheckResult, Verdict
from validation.report.evidence import CaseEvidence, EventEvidence, State, TableEvidence
from validation.report.html import render_report
from validation.report.pictures import MAX_HEAT_ROWS, heat_map, mask_pictures

from .checks import (
    DIVERGENCE,
    FAILED,
    INVALID,
    NEAR,
    PASSED,
    SAME,
    SKIPPED,
    check,
    curve,
    moe_evidence,
    window,
)

RUN = Path("runs/20260101T000000-cpu-abc")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("style", "script"):
            self.text += data

    def count(self, tag: str, css: str = "") -> int:
        return sum(
            (t == tag and css in (a.get("class") or "").split()) or (t == tag and not css)
            for t, a in self.tags
        )


def report(result: CheckResult, evidence: dict[str, CaseEvidence] | None = None) -> Page:
    return Page(render_report(result, evidence or {}, RUN))


def test_a_failure_shows_everything_that_led_to_it() -> None:
    page = report(
        check(Verdict.FAIL, PASSED, FAILED, SKIPPED),
        {"moe_loss": moe_evidence(), "dense_loss": CaseEvidence([curve("lm_loss")])},
    )
    for text in (
        "FAIL",
        "1 of 2 cases moved.",
        "decoder.layers.1.self_attention › output",
        "1.2850193401",
        "first outside: step 4",
        "it caught the planted fault attention_scale",
        "needs a CUDA device",
        "golden bisect GOOD HEAD moe_loss",
        "flags.deterministic",
        "d8ab5d8c",
    ):
        assert text in page.text
    assert page.count("figure", "chart") == 3
    assert page.count("figure", "mask") == 2
    assert page.count("td", "first") == 1


@pytest.mark.parametrize(
    ("result", "phrase"),
    [
        (check(Verdict.PASS, PASSED), "1 case ran and matched the goldens"),
        (check(Verdict.INVALID, PASSED, INVALID), "resume: goldens/cpu/resume: digest differs"),
        (check(Verdict.INVALID, PASSED, canary=False), "its canary was not caught"),
        (check(Verdict.INVALID, SKIPPED, canary=None), "Nothing was compared"),
        (
            check(Verdict.UNFIT, replace(PASSED, verdict=Verdict.UNFIT, message="throttled")),
            "could not serve: throttled",
        ),
    ],
    ids=["pass", "invalid", "canary", "skipped", "unfit"],
)
def test_every_verdict_says_why(result: CheckResult, phrase: str) -> None:
    page = report(result)
    assert phrase in page.text
    assert f"{result.verdict} · cpu · golden check" in page.text


def test_a_pass_says_which_pass_how_near_and_where() -> None:
    page = report(check(Verdict.PASS, SAME, NEAR))
    for text in (
        "WITHIN TOLERANCE: 2 cases ran and matched the goldens",
        "largest ratio 0.43 at step 7, optimizer, training, update_rms/norm",
        "Largest error / tolerance",
        "Nobody calibrated near_loss on this type of machine",
    ):
        assert text in page.text
    assert page.text.count("IDENTICAL") == 1
    assert "IDENTICAL: 1 case ran" in report(check(Verdict.PASS, SAME)).text


HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\"><svg onload=document.title='owned'>",
    "</script><script>document.title='owned'</script>",
    "' onmouseover='document.title=1",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:document.title='owned'",
    "</style><script>document.title='owned'</script>",
)


def hostile_page(text: str) -> str:
    evidence = moe_evidence()
    names = [replace(c, metric=text) for c in evidence.curves]
    events = [replace(e, module=text, tensor=text) for e in evidence.events]
    tables = [replace(t, name=text) for t in evidence.tables]
    case = replace(
        FAILED,
        case=text,
        message=text,
        first_divergence=replace(
            DIVERGENCE, module=text, tensor=text, phase=text, expected=text, actual=[text]
        ),
        largest_ratio=3.0,
        largest_at=replace(DIVERGENCE, module=text),
    )
    result = replace(
        check(Verdict.FAIL, case, replace(SKIPPED, case=text, skipped_because=text)),
        environment={text: text},
        message=f"{text}\n{text}",
    )
    return render_report(
        result, {text: CaseEvidence(names, events, tables, {text: text})}, RUN / text
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_a_trace_says_becomes_markup(text: str) -> None:
    page = Page(hostile_page(text))
    assert [t for t, _ in page.tags if t in ("script", "style", "img", "iframe", "object")] == [
        "style",
        "script",
        "script",
    ]
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("href", "src", "action"):
            target = attributes.get(name)
            assert target is None or target.startswith("#case-") or target == "data:,"
    assert html.unescape(text) in page.text
    assert "49" not in re.findall(r"\b49\b", page.text)


def test_the_page_asks_for_nothing_and_allows_no_foreign_script() -> None:
    text = render_report(check(Verdict.FAIL, FAILED), {"moe_loss": moe_evidence()}, RUN)
    assert not re.search(r"https?://|@import|url\(", text)
    policy = next(
        a["content"] for t, a in Page(text).tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/]{43}='", policy)


def test_a_large_check_stays_small() -> None:
    events = [
        EventEvidence(step, "forward", f"decoder.layers.{m}", "output", State.WITHIN, 0.1)
        for step in range(20)
        for m in range(1000)
    ]
    curves = [curve(f"parameter_grad_norm/layer.{i}", steps=5000) for i in range(300)]
    tables = [
        TableEvidence(f"layer {i}", 4096, window(4096, 128), window(4096, 128 + i % 3))
        for i in range(6)
    ]
    evidence = CaseEvidence(curves, events, tables)
    text = render_report(check(Verdict.FAIL, FAILED), {"moe_loss": evidence}, RUN)
    assert len(text) < 2_000_000


def test_values_json_lacks_reach_the_tooltip_as_text() -> None:
    bad = replace(curve("lm_loss", steps=3), actual=[1.0, float("nan"), float("inf")])
    text = render_report(check(Verdict.FAIL, FAILED), {"moe_loss": CaseEvidence([bad])}, RUN)
    match = re.search(r'id="series">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    assert json.loads(match[1])[0]["actual"] == [1.0, "nan", "inf"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_the_script_runs_and_hostile_text_does_not(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(hostile_page("".join(HOSTILE)), "utf-8")
    assert CHROMIUM is not None
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=1000")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    dumped = subprocess.run(
        [
            CHROMIUM,
            *flags,
            profile,
            "--blink-settings=preferredColorScheme=0",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
    ).stdout
    title = re.search(r"<title>(.*?)</title>", dumped)
    assert title is not None
    assert title[1] == "FAIL · cpu · golden check"
    assert 'data-theme="dark"' in dumped


def test_heat_shows_the_worst_of_a_cell_and_outlines_the_first() -> None:
    events = [
        EventEvidence(1, "forward", "a", "output", State.IDENTICAL, 0.0),
        EventEvidence(1, "backward", "a", "weight.grad", State.OUTSIDE, 50.0),
        EventEvidence(1, "forward", "b", "output", State.WITHIN, 0.005),
        EventEvidence(2, "forward", "b", "output", State.MISSING),
    ]
    heat = heat_map(events, (1, "a"))
    assert heat is not None
    assert [[c.css for c in row.cells] for row in heat.rows] == [["h5", "hn"], ["h1", "hx"]]
    assert heat.rows[0].cells[0].first
    assert "backward weight.grad" in heat.rows[0].cells[0].title
    assert sum(c.first for row in heat.rows for c in row.cells) == 1


def test_heat_of_many_modules_keeps_what_moved() -> None:
    events = [
        EventEvidence(
            1, "forward", f"m{i}", "output", State.OUTSIDE if i == 777 else State.IDENTICAL, 3.0
        )
        for i in range(2 * MAX_HEAT_ROWS + 1000)
    ]
    heat = heat_map(events, None)
    assert heat is not None
    assert [row.name for row in heat.rows] == ["m777"]


def test_masks_show_what_only_one_side_allows() -> None:
    tables = [
        TableEvidence("same 0", 8, window(8, 3), window(8, 3)),
        TableEvidence("wide", 8, window(8, 3), window(8, 4)),
        TableEvidence("same 1", 8, window(8, 3), window(8, 3)),
        TableEvidence("gone", 8, window(8, 2), None),
    ]
    wide, gone, same = sorted(mask_pictures(tables), key=lambda m: m.name != "wide")[:3]
    assert wide.name == "wide"
    assert (wide.gone, wide.new.count("M")) == ("", 5)
    assert "first difference at query 3, key 0" in wide.note
    assert (gone.state, same.name, same.state) == ("missing", "same 0, same 1", "equal")


def test_a_large_mask_is_cropped_around_its_first_difference() -> None:
    golden = window(4096, 128)
    actual = [list(row) for row in golden]
    actual[3000] = [(3000 - 128, 3001)]
    (picture,) = mask_pictures([TableEvidence("layer 0", 4096, golden, actual)])
    assert "query 3000, key 2872" in picture.note
    assert picture.new
    assert len(picture.both) < 20_000


def test_what_is_long_is_folded_and_needs_no_script_to_open(tmp_path: Path) -> None:
    evidence = moe_evidence()
    many = [*evidence.curves, *(curve(f"norm_{n}", bad_from=4) for n in range(8))]
    result = check(Verdict.FAIL, FAILED, PASSED)
    page = render_report(result, {FAILED.case: replace(evidence, curves=many)}, tmp_path)
    seen = re.sub(r"<details class=\"more\">.*?</details>", "", page, flags=re.DOTALL)
    assert seen.count('<figure class="chart') == 4
    assert page.count('<figure class="chart') == 10
    assert 'class="heat"' in page
    assert 'class="heat"' not in seen
    assert page.count('<details class="card case') == 2
    assert len(re.findall(r"<details class=\"card case[^>]* open>", page)) == 1
