"""What of a judged change the check cannot see: lines that no selected case runs."""

from __future__ import annotations

from validation.cases import CaseError, discover_gated
from validation.coverage.fall import accepted_file
from validation.coverage.files import gated_files
from validation.coverage.present import best_known
from validation.coverage.touched import blind_lines, warning
from validation.files import DamagedFileError
from validation.gate.plan import CheckPlan
from validation.running.source import RepositoryError


def blind_spots(plan: CheckPlan) -> str:
    """A warning that names the lines; empty without a base, or where coverage was never measured.

    It changes no verdict.
    """
    if plan.base is None:
        return ""
    try:
        known = best_known(plan.root, plan.lane, accepted_file(plan.root, plan.lane))
        if known is None:
            return ""
        cases = [case for case in plan.all_cases().values() if plan.lane in case.lanes]
        gated = discover_gated(plan.root, plan.declared)
        files = gated_files(plan.root, plan.declared, gated, cases)
        selected = {case.name for case in plan.cases}
        return warning(blind_lines(plan.root, plan.base, known, selected, files.names))
    except (CaseError, DamagedFileError, RepositoryError) as error:
        return f"warning: nobody can say which lines of the change no case runs: {error}"
