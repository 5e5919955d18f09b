"""What a verdict looks like: on a terminal, as JUnit XML, as one HTML page, as an explanation."""

from pathlib import Path

from validation.gate.verdict import CheckResult
from validation.run_folder import JUNIT_FILE, REPORT_FILE


def write_reports(result: CheckResult, run_dir: Path) -> None:
    """Leaves in a run folder what its readers need: `evidence/`, `junit.xml`, `report.html`."""
    from validation.report.gather import save_evidence
    from validation.report.html import write_report
    from validation.report.junit import write_junit

    save_evidence(result, run_dir)
    write_junit(result, run_dir / JUNIT_FILE)
    write_report(result, run_dir, run_dir / REPORT_FILE)
