"""JUnit XML of a check, as CI systems read it (the Jenkins/Surefire schema).

One test case per golden case: FAIL is a `failure` that carries the first divergence, INVALID and
UNFIT are `error` (the gate, or the machine, did not do its work), SKIPPED is `skipped`.  A verdict
that no single case explains (canary not caught, nothing compared) is an erroneous test case of its
own, so that a reader of the XML alone never sees green where the check was not.
"""

import re
import xml.etree.ElementTree as ET
from datetime import datetime, timezone
from pathlib import Path

from validation.compare import Divergence
from validation.files import write_atomically
from validation.gate.verdict import CaseResult, CheckResult
from validation.report.wording import (
    clean,
    flat,
    headline,
    loosening_lines,
    nearest_text,
    number_text,
    ratio_text,
    share,
    value_text,
    where,
)

_XML_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(result: CheckResult, path: Path) -> None:
    """Writes the check as JUnit XML to `path`, atomically, creating its folder."""
    suite = ET.Element("testsuite", name=f"golden.{result.lane}")
    for case in result.cases:
        _add_case(suite, case, result.lane)
    explained = any(case.verdict == result.verdict for case in result.cases)
    if result.verdict != "PASS" and not explained:
        gate = ET.SubElement(suite, "testcase", classname=f"golden.{result.lane}", name="gate")
        gate.set("time", "0.000")
        problem = ET.SubElement(gate, "error", type=str(result.verdict))
        problem.set("message", _text(headline(result)))
    _add_properties(suite, result)
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("time", f"{result.seconds:.3f}")
    suite.set("timestamp", datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S"))
    suite.set("hostname", "localhost")
    root = ET.Element("testsuites", name="golden")
    for attribute in ("tests", "failures", "errors", "skipped", "time"):
        root.set(attribute, suite.get(attribute, "0"))
    root.append(suite)
    ET.indent(root)
    write_atomically(path, ET.tostring(root, encoding="utf-8", xml_declaration=True))


def _add_case(suite: ET.Element, case: CaseResult, lane: str) -> None:
    element = ET.SubElement(suite, "testcase", classname=f"golden.{lane}", name=_text(case.case))
    element.set("time", f"{case.seconds:.3f}")
    if case.skipped_because is not None:
        ET.SubElement(element, "skipped", message=_text(case.skipped_because))
        return
    if case.verdict != "PASS":
        tag = "failure" if case.verdict == "FAIL" else "error"
        problem = ET.SubElement(element, tag, type=str(case.verdict))
        message = case.message
        if case.first_divergence is not None:
            message = f"first divergence at {where(case.first_divergence)}"
            problem.text = _text(divergence_text(case.first_divergence, case.message))
        problem.set("message", _text(message))
    output = ET.SubElement(element, "system-out")
    compared = f"{case.compared:,} records compared"
    parts = [case.kind, f"{compared}, {share(case.identical, case.compared)} bit-identical"]
    output.text = _text("; ".join(filter(None, [*parts, nearest_text(case)])))


def divergence_text(divergence: Divergence, message: str = "") -> str:
    """Returns a divergence as lines of plain text."""
    lines = [
        f"where:          {where(divergence)}",
        f"expected:       {value_text(divergence.expected)}",
        f"actual:         {value_text(divergence.actual)}",
        f"relative error: {number_text(divergence.relative_error)}",
        f"tolerance:      {number_text(divergence.tolerance)}",
    ]
    return "\n".join([*lines, clean(message)] if message else lines)


def _add_properties(suite: ET.Element, result: CheckResult) -> None:
    properties = ET.Element("properties")
    values = {"verdict": result.verdict, "lane": result.lane, **dict(flat(result.environment))}
    if result.kind:
        values["kind"] = result.kind
    if result.nearest is not None:
        values["largest_ratio"] = ratio_text(result.nearest.largest_ratio)
    if result.calibrated_here is not None:
        values["calibrated_here"] = str(result.calibrated_here)
    if result.canary is not None:
        values["canary"] = (
            f"{result.canary.fault}: {'caught' if result.canary.caught else 'NOT caught'}"
        )
    values |= {f"loosening.{n}": line for n, line in enumerate(loosening_lines(result), start=1)}
    for name, value in values.items():
        ET.SubElement(properties, "property", name=_text(name), value=_text(value))
    suite.insert(0, properties)


def _text(value: object) -> str:
    """Returns text that XML 1.0 can hold."""
    return _XML_FORBIDDEN.sub("\ufffd", clean(value))
