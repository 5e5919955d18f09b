"""False alarms: an unchanged tree, run again in environments that mean the same, must pass.

    python -m benchmarks.clean_runs --runs 300 --jobs 2 \\
        --output benchmarks/results/clean_runs.json --curves runs/clean_curves.jsonl

Each run's case and environment follow from its number: threads {1, 2} x ATEN_CPU_CAPABILITY {those
the CPU has} x initial weights moved by one ulp, with seeds that neither calibration nor the kill
matrix uses; and the plain environment, with seeds that return. Every trace is compared with its
golden at the golden's frozen tolerances, and where its weights were not moved held to its case's
law, if it has one, against a run of the same environment. A run without a trace is an alarm.

Finished runs are kept beside the output, as `.jsonl`; the same command goes on after an
interruption, and refuses if the code or a golden is another one. An environment counts as *seen*
when the golden was recorded, and so calibrated, in its threads and capability, weights not moved.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.ledger import in_parallel, interrupted, opened, refuse_chosen_environment
from validation.cases import Case, discover_cases
from validation.compare import Comparison, compare, compare_law
from validation.environment import describe
from validation.execution import RunError, RunOptions, run_case
from validation.files import encode_json, write_atomically
from validation.goldens import Golden, GoldenStore
from validation.power.ledger import state_of
from validation.power.rates import upper_bound
from validation.source import commit, find_root

LANE = "cpu"
# The cases in turn, the cheap ones oftener: the optimizer's, activations, the whole model, tables.
TURN = (
    "tiny_adam",
    "tiny_dense",
    "schedules",
    "tiny_adam",
    "tiny_moe",
    "schedules",
    "tiny_dense",
    "tiny_adam",
    "schedules",
    "tiny_dense",
    "tiny_adam",
    "resume",
    "tiny_adam",
    "schedules",
    "tiny_dense",
    "tiny_moe",
    "tiny_adam",
    "schedules",
    "tiny_dense",
    "tiny_adam",
)
# A clean run plants nothing.
PLANTS = ("validation/cases/vpmoe/faults/",)
# This case trains nothing: there are no weights to move.
UNTRAINED = ("schedules",)
# Calibration counts its seeds from 1, the kill matrix has 1,000,003.
FRESH_SEED = 2_000_000
RETURNING_SEEDS = (1_900_001, 1_900_002, 1_900_003)
KEPT_CURVES = ("lm_loss", "grad_norm")


@dataclass(frozen=True)
class Environment:
    """What a run varies; None leaves it as the machine has it.

    Attributes:
        threads: of OpenMP and MKL.
        capability: ATEN_CPU_CAPABILITY.
        seed: of the one-ulp perturbation.
    """

    threads: int | None = None
    capability: str | None = None
    seed: int | None = None

    @property
    def variables(self) -> dict[str, str]:
        """Of the process."""
        found = {}
        if self.threads is not None:
            found |= {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        if self.capability is not None:
            found["ATEN_CPU_CAPABILITY"] = self.capability
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """Of the case's target."""
        return {} if self.seed is None else {"perturb_seed": self.seed}

    @property
    def name(self) -> str:
        """Without the seed: runs of one name differ by it alone."""
        return _name(self.threads, self.capability, self.seed is not None)


def _name(threads: Any, capability: Any, perturbed: bool) -> str:
    if threads is None and capability is None:
        kind = "plain"
    else:
        kind = f"{threads} thread(s), {capability}"
    return kind + (", one ulp" if perturbed else "")


@dataclass(frozen=True)
class Run:
    """One run of the schedule: everything follows from its number."""

    number: int
    case: str
    environment: Environment


def capabilities(best: str) -> list[str]:
    """ATEN_CPU_CAPABILITY's values that a CPU has, given its best."""
    known = ["default", "avx2", "avx512"]
    return known[: known.index(best) + 1] if best in known else ["default"]


def schedule(runs: int, best: str) -> list[Run]:
    """The first `runs` runs; a longer schedule begins with the shorter one.

    Of ten runs of a trained case six move the weights in every combination of threads and
    capability, two leave them in one of these, two are of the plain environment.

    Args:
        runs: how many.
        best: the CPU's best capability.
    """
    grid = list(itertools.product((1, 2), capabilities(best)))
    counts: dict[str, int] = defaultdict(int)
    found = []
    for number in range(runs):
        case = TURN[number % len(TURN)]
        found.append(Run(number, case, _environment(case, counts[case], number, grid)))
        counts[case] += 1
    return found


def _environment(
    case: str, count: int, number: int, grid: Sequence[tuple[int, str]]
) -> Environment:
    turn, place = divmod(count, len(grid) + 4)
    if case in UNTRAINED:
        place = count % (len(grid) + 1)
        return Environment(*grid[place]) if place < len(grid) else Environment()
    if place < len(grid):
        return Environment(*grid[place], FRESH_SEED + number)
    place -= len(grid)
    if place < 2:
        return Environment(*grid[(2 * turn + place) % len(grid)])
    return Environment(seed=RETURNING_SEEDS[turn % len(RETURNING_SEEDS)] if place == 2 else None)


def seen_names(golden: Golden) -> set[str]:
    """Names of the environment that the golden was recorded and calibrated in."""
    recorded = golden.trace.provenance.get("environment", {})
    own = (recorded.get("threads"), str(recorded.get("cpu_isa")).lower())
    return {_name(None, None, False), _name(*own, False)}


def native_capability() -> str:
    """The best vector instructions that this CPU has, as ATEN_CPU_CAPABILITY names them."""
    import torch

    chosen = os.environ.get("ATEN_CPU_CAPABILITY")
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return capability if chosen is None and capability in ("avx2", "avx512") else "avx2"


class CleanRuns:
    """Makes and judges the runs.

    Args:
        root: the repository.
        log: receives what the runs print.
    """

    def __init__(self, root: Path, log: Path) -> None:
        store = GoldenStore(root / "goldens")
        self.root, self.log = root, log
        self.cases: Mapping[str, Case] = discover_cases(root)
        self.goldens = {case: store.load(LANE, case) for case in sorted(set(TURN))}

    def make(self, run: Run) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Runs and compares; returns the entry of the run and its curves, if it left any."""
        began = time.monotonic()
        golden, environment = self.goldens[run.case], run.environment
        entry: dict[str, Any] = {
            "run": run.number,
            "case": run.case,
            "environment": environment.name,
            "settings": asdict(environment),
            "unseen": environment.name not in seen_names(golden),
        }
        try:
            trace = self._trace(self.cases[run.case], environment, {})
            found = [compare(golden.trace, trace, golden.tolerances)]
            law = self.cases[run.case].law
            # A resumed run moves the weights that it loads, not those that training began with.
            if law is not None and environment.seed is None:
                steps = {"stop_after": max(map(max, trace.curves.values()))}
                reference = self._trace(self.cases[law.reference], environment, steps)
                found.append(compare_law(law, reference, trace))
        except RunError as error:
            lines = str(error).splitlines()
            entry |= {"alarm": True, "first": None, "message": f"{lines[0]}: {lines[-1]}"}
            return {**entry, "seconds": round(time.monotonic() - began, 1)}, None
        entry |= judged(found)
        entry["seconds"] = round(time.monotonic() - began, 1)
        return entry, {
            "run": run.number,
            "case": run.case,
            "environment": environment.name,
            "unseen": entry["unseen"],
            "alarm": entry["alarm"],
            "curves": {
                metric: {str(step): value for step, value in trace.curves[metric].items()}
                for metric in KEPT_CURVES
                if metric in trace.curves
            },
        }

    def _trace(self, case: Case, environment: Environment, settings: Mapping[str, Any]) -> Any:
        options = RunOptions(
            lane=LANE,
            settings={**environment.settings, **settings},
            environment=environment.variables,
        )
        return run_case(case, options, self.root, self.log)


def judged(found: Sequence[Comparison]) -> dict[str, Any]:
    """What the comparisons of a run with its golden, and with its law, say together."""
    compared = sum(comparison.compared for comparison in found)
    first = next((c.divergences[0] for c in found if c.divergences), None)
    return {
        "compared": compared,
        "identical": sum(comparison.identical for comparison in found),
        "alarm": first is not None or not all(comparison.compared for comparison in found),
        "first": None if first is None else asdict(first),
    }


def summary(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of the finished runs."""
    done = sorted(entries, key=lambda entry: entry["run"])
    runs, alarms = len(done), [entry for entry in done if entry["alarm"]]
    unseen = [entry for entry in done if entry["unseen"]]
    compared = sum(entry.get("compared", 0) for entry in done)
    identical = sum(entry.get("identical", 0) for entry in done)
    return {
        "runs": runs,
        "alarms": len(alarms),
        "rate": len(alarms) / runs,
        "upper_bound_95": upper_bound(len(alarms), runs),
        "unseen": {
            **_counts(unseen),
            "environments": sorted({entry["environment"] for entry in unseen}),
            "share": len(unseen) / runs,
            "upper_bound_95": upper_bound(_counts(unseen)["alarms"], len(unseen)) if unseen else 1,
        },
        "records": {
            "compared": compared,
            "bit_identical_share": identical / compared if compared else 0.0,
            "wholly_identical_runs": sum(
                0 < entry.get("compared", 0) == entry.get("identical") for entry in done
            ),
        },
        "by_environment": _grouped(done, "environment"),
        "by_case": _grouped(done, "case"),
        "alarmed": alarms,
    }


def _counts(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"runs": len(entries), "alarms": sum(entry["alarm"] for entry in entries)}


def _grouped(entries: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        groups[entry[name]].append(entry)
    return {group: _counts(groups[group]) for group in sorted(groups)}


def print_summary(found: Mapping[str, Any]) -> None:
    """Prints one table and the alarms."""
    print("| environment | runs | false alarms |\n| --- | --- | --- |")
    for name, counts in found["by_environment"].items():
        print(f"| {name} | {counts['runs']} | {counts['alarms']} |")
    unseen, records = found["unseen"], found["records"]
    print(f"| unseen by calibration | {unseen['runs']} | {unseen['alarms']} |")
    print(f"| all | {found['runs']} | {found['alarms']} |")
    print(
        f"\nrate {found['rate']:.2%}, one-sided 95 % upper bound {found['upper_bound_95']:.2%} "
        f"(unseen environments alone: {unseen['upper_bound_95']:.2%}); "
        f"{records['bit_identical_share']:.1%} of {records['compared']} records bit-identical"
    )
    for entry in found["alarmed"]:
        what = entry["first"] or entry.get("message")
        print(f"ALARM run {entry['run']}: {entry['case']}, {entry['environment']}: {what}")


def main() -> None:
    """Makes the runs that are still missing, then writes and prints the figures of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/clean_runs.json"))
    parser.add_argument("--curves", type=Path, help="keep each run's curves in this file")
    options = parser.parse_args()
    refuse_chosen_environment()
    root = find_root()
    state = state_of(root, LANE, set(TURN), without=PLANTS)
    ledger = opened(options.output.with_suffix(".jsonl"), state)
    curves = opened(options.curves, state) if options.curves else None
    runner = CleanRuns(root, root / "runs" / "clean_runs.log")
    chosen = schedule(options.runs, native_capability())
    done = {entry["run"] for entry in ledger.entries}
    todo = [run for run in chosen if run.number not in done]
    # Runs of one environment share a warm process.
    todo.sort(key=lambda run: (sorted(run.environment.variables.items()), run.number))

    def work(run: Run) -> None:
        entry, kept = runner.make(run)
        if interrupted():
            return
        if curves is not None and kept is not None:
            curves.append(kept)
        ledger.append(entry)
        verdict = "ALARM" if entry["alarm"] else "passes"
        print(
            f"[{len(ledger.entries)}/{len(chosen)}] {run.number} {run.case}, "
            f"{run.environment.name}: {verdict} ({entry['seconds']:.0f} s)",
            flush=True,
        )

    in_parallel(options.jobs, todo, work)
    wanted = {run.number for run in chosen}
    found = summary(entry for entry in ledger.entries if entry["run"] in wanted)
    provenance = {"commit": commit(root), **state, "environment": describe(LANE)}
    write_atomically(options.output, encode_json({**found, "provenance": provenance}))
    print_summary(found)


if __name__ == "__main__":
    main()
