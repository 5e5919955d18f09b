"""JUnit and terminal: each verdict is told apart, nothing a trace says can break the format."""

import contextlib
import io
import os
import pty
import re
import threading
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation.gate.verdict import CheckResult, Loosening, Verdict
from validation.report.html import build_page
from validation.report.junit import write_junit
from validation.report.terminal import plain_check, print_check
from validation.report.wording import clean, loosening_lines, share, where

from .checks import DIVERGENCE, FAILED, INVALID, NEAR, PASSED, SAME, SKIPPED, check


def junit(result: CheckResult, tmp_path: Path) -> ET.Element:
    path = tmp_path / "deep" / "junit.xml"
    write_junit(result, path)
    return ET.parse(path).getroot()


def on_terminal(result: CheckResult) -> str:
    """What a terminal receives."""
    ours, theirs = pty.openpty()
    chunks: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the other side closed
            while chunk := os.read(ours, 4096):
                chunks.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as terminal:
        print_check(result, terminal)
    reader.join(timeout=10)
    os.close(ours)
    return b"".join(chunks).decode()


def test_each_verdict_has_its_element(tmp_path: Path) -> None:
    root = junit(check(Verdict.INVALID, PASSED, FAILED, INVALID, SKIPPED), tmp_path)
    (suite,) = root.findall("testsuite")
    assert {k: suite.get(k) for k in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert [child.tag for child in cases["dense_loss"]] == ["system-out"]
    failure = cases["moe_loss"].find("failure")
    assert failure is not None
    assert "step 3, micro-batch 0, forward, decoder.layers.1" in (failure.get("message") or "")
    assert "1.2850193401" in (failure.text or "")
    assert cases["resume"].find("error").get("type") == "INVALID"  # type: ignore[union-attr]
    skipped = cases["h200_loss"].find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "needs a CUDA device"
    properties = {p.get("name"): p.get("value") for p in suite.iter("property")}
    assert properties["flags.deterministic"] == "True"
    assert properties["canary"] == "attention_scale: caught"


@pytest.mark.parametrize(
    "result",
    [
        check(Verdict.INVALID, PASSED, canary=False),
        check(Verdict.INVALID, SKIPPED, canary=None),
        check(Verdict.INVALID, canary=None),
        check(Verdict.UNFIT, PASSED),
    ],
    ids=["canary-missed", "all-skipped", "no-case", "unfit"],
)
def test_a_verdict_no_case_explains_is_an_error_of_its_own(
    result: CheckResult, tmp_path: Path
) -> None:
    (suite,) = junit(result, tmp_path)
    assert suite.get("errors") == "1"
    (gate,) = [c for c in suite.findall("testcase") if c.get("name") == "gate"]
    assert gate.find("error").get("type") == str(result.verdict)  # type: ignore[union-attr]


@settings(deadline=None)  # it writes files, on a disk that may be busy
@given(st.text(), st.text(), st.text())
def test_any_text_gives_well_formed_xml_without_control_characters(
    tmp_path_factory: pytest.TempPathFactory, name: str, module: str, message: str
) -> None:
    case = replace(
        FAILED, case=name, message=message, first_divergence=replace(DIVERGENCE, module=module)
    )
    root = junit(check(Verdict.FAIL, case), tmp_path_factory.mktemp("junit"))
    assert len(root.findall("testsuite/testcase/failure")) == 1


def test_plain_text_names_the_first_divergence_and_what_was_identical() -> None:
    text = plain_check(check(Verdict.FAIL, PASSED, FAILED, SKIPPED))
    assert "\x1b" not in text
    row = r"^dense_loss +PASS WITHIN TOLERANCE +800 +640 \(80 %\) +- +14\.1$"
    assert re.search(row, text, re.MULTILINE)
    assert "h200_loss  SKIPPED: needs a CUDA device" in text
    assert "first divergence: step 3, micro-batch 0, forward, decoder.layers.1" in text
    assert "canary: attention_scale caught" in text
    assert "FAIL  lane cpu: 2,000 records compared, 951 (47.5 %) bit-identical, 35.5 s" in text


def test_a_quiet_case_is_one_line_that_says_which_pass() -> None:
    text = plain_check(check(Verdict.PASS, SAME, NEAR))
    lines = text.splitlines()
    assert re.match(r"same_loss +PASS IDENTICAL +700 +700 \(100 %\) +0 +2\.0$", lines[1])
    assert re.match(
        r"near_loss +PASS WITHIN TOLERANCE +900 +899 \(99\.8 %\) +0\.43 +3\.0$", lines[2]
    )
    assert len(lines) == 8
    drawn = on_terminal(check(Verdict.PASS, SAME, NEAR))
    for shown in (text, " ".join(drawn.split())):
        assert "update_rms/norm" in shown
        assert "Nobody calibrated near_loss" in shown
    assert "IDENTICAL: 1 case ran" in plain_check(check(Verdict.PASS, SAME))


def test_junit_says_which_pass_and_how_near(tmp_path: Path) -> None:
    (suite,) = junit(check(Verdict.PASS, SAME, NEAR), tmp_path)
    output = {c.get("name"): c.findtext("system-out") or "" for c in suite.findall("testcase")}
    assert output["same_loss"].startswith("IDENTICAL; 700 records compared")
    assert output["near_loss"].startswith("WITHIN TOLERANCE; 900 records")
    assert "largest ratio 0.43 at step 7, optimizer, training, update_rms/norm" in str(output)
    properties = {p.get("name"): p.get("value") for p in suite.iter("property")}
    assert (properties["kind"], properties["largest_ratio"]) == ("WITHIN TOLERANCE", "0.43")


def test_a_missed_canary_and_an_empty_check_say_so() -> None:
    assert "attention_scale NOT CAUGHT" in plain_check(check(Verdict.INVALID, PASSED, canary=False))
    assert "Nothing was compared" in plain_check(check(Verdict.INVALID, SKIPPED, canary=None))


def test_a_pipe_gets_plain_text_and_a_terminal_gets_colour() -> None:
    result = check(Verdict.FAIL, PASSED, FAILED)
    pipe = io.StringIO()
    print_check(result, pipe)
    assert pipe.getvalue() == plain_check(result)
    drawn = on_terminal(result)
    assert "moe_loss" in drawn
    assert drawn != plain_check(result)


@pytest.mark.parametrize("hostile", ["\x1b[2J\x1b[1;1HPASS", "a\rPASS", "\u202eSSAP", "[bold]x[/]"])
def test_names_from_a_trace_cannot_drive_the_terminal(hostile: str) -> None:
    near = replace(DIVERGENCE, module=hostile)
    case = replace(FAILED, case=hostile, message=hostile, largest_ratio=9.0, largest_at=near)
    result = replace(check(Verdict.FAIL, case), message=f"{hostile}\n{hostile}")
    drawn = on_terminal(result)
    for text in (plain_check(result), drawn.replace("\r\n", "\n")):
        assert not {"\r", "\u202e"} & set(text)
        assert "\x1b[2J" not in text
    assert clean(hostile) in plain_check(result)


def test_an_incomplete_share_is_never_rounded_to_all() -> None:
    assert share(99_999, 100_000) == "99,999 (99.9 %)"
    assert share(100_000, 100_000) == "100,000 (100 %)"
    assert share(0, 0) == "0"


def test_where_leaves_out_what_is_not_known() -> None:
    assert where(replace(DIVERGENCE, micro_batch=None, rank=None, offset=7)) == (
        "step 3, forward, decoder.layers.1.self_attention, output, offset 7"
    )


def test_a_screenful_even_with_many_failures() -> None:
    many = [replace(FAILED, case=f"case_{i}") for i in range(15)]
    drawn = on_terminal(check(Verdict.FAIL, *many))
    assert "and 12 more" in drawn
    assert drawn.count("\n") < 60


def test_what_loosens_the_gate_is_a_line_in_every_sink(tmp_path: Path) -> None:
    found = [
        Loosening("tolerance", "moe_loss", "5 times wider\x1b[31m"),
        Loosening("quarantine", "", "goldens/quarantine.json: not JSON\nmore", acceptable=False),
    ]
    result = replace(check(Verdict.FAIL, FAILED), loosened=found, if_accepted=Verdict.INVALID)
    expected = [
        "loosens the gate: moe_loss: 5 times wider\\u001b[31m",
        "loosens the gate: quarantine: goldens/quarantine.json: not JSON",
        "no owner can accept this: the verdict would be INVALID",
    ]
    assert loosening_lines(result) == expected
    lines = plain_check(result).splitlines()
    place = lines.index(expected[0])
    assert lines[place : place + 3] == expected
    assert lines[place + 3].startswith("FAIL"), "the verdict comes last"
    assert "loosens the gate: moe_loss" in on_terminal(result)
    properties = junit(result, tmp_path).findall("testsuite/properties/property")
    values = {p.get("name"): p.get("value") for p in properties}
    assert [values[f"loosening.{n}"] for n in (1, 2, 3)] == expected
    page = build_page(result, {}, tmp_path, datetime.now(timezone.utc))
    assert page.details[-3:] == expected

    accepted = replace(result, if_accepted=Verdict.PASS)
    assert loosening_lines(accepted)[-1] == "if an owner accepts this: PASS"
    assert loosening_lines(replace(result, loosened=())) == []
    assert "loosened" not in check(Verdict.FAIL, FAILED).to_json()
    document = accepted.to_json()
    assert document["verdict_if_accepted"] == "PASS"
    assert [item["kind"] for item in document["loosened"]] == ["tolerance", "quarantine"]
