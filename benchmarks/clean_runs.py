"""False alarms: whole checks of an unchanged tree, in settings that stand for other machines.

    python -m benchmarks.clean_runs make --arithmetic wide --repeats 10 --ledger WIDE.jsonl
    python -m benchmarks.clean_runs make --arithmetic native --repeats 2 --ledger NATIVE.jsonl \\
        --reference FOLDER
    python -m benchmarks.clean_runs pool WIDE.jsonl NATIVE.jsonl ... \\
        --output benchmarks/results/clean_runs.json

No setting was used by calibration, which moves roundings at random on one machine. `wide` is the
command as users run it, `golden check --lane cpu --json`: every case, its invariants and the
canary; the environment alone differs. `native` runs the same cases, all of them, as a lane that is
not wide would: they are compared with runs in the plain setting, by tolerances that random rounding
of such runs gave, as `golden calibrate` measures them. Both stand in the reference folder, made
there if they are missing; take it to another machine to compare the two. Two of its settings also
move the initial weights by one unit in the last place, where a case can do that; invariants compare
two runs of a check, and are left out there.

A check that is not PASS is an alarm, whatever the reason. Finished checks are kept in the ledger;
the same command goes on after an interruption, and refuses if the code or a golden is another one.
`pool` counts the checks of several ledgers, of several machines.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.ledger import in_parallel, interrupted, opened, refuse_chosen_environment
from validation.calibration.calibrate import Variant, measure_case
from validation.cases import Case, discover_cases
from validation.compare import Comparison, Tolerances, compare, compare_invariant
from validation.config import lane_of
from validation.files import decode_json, encode_json, read_file, write_atomically
from validation.gate.nearness import nearness
from validation.power.ledger import read_lines, state_of
from validation.progress import Lines
from validation.rates import upper_bound
from validation.running.environment import describe, machine_type
from validation.running.execution import RunError, RunOptions, run_case
from validation.running.source import find_root
from validation.trace import CurveKey, Trace, load_trace, save_trace

LANE = "cpu"
# A clean run plants nothing.
PLANTS = ("vpmoe/cases/faults/",)
# These cases have no weights to move by a unit in the last place.
UNTRAINED = ("schedules", "laws", "export")
ULP_SEED = 2_000_000
SEEDS = 8
KEPT_CURVES = ("lm_loss", "grad_norm")


def _threads(count: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}


@dataclass(frozen=True)
class Setting:
    """What a check varies; the rest is left as the machine has it.

    Attributes:
        name: as tables show it.
        variables: of the processes.
        ulp: whether the initial weights are moved by one unit in the last place.
    """

    name: str
    variables: Mapping[str, str] = field(default_factory=dict)
    ulp: bool = False


_OLD_BLAS = {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
_OLD_LOOPS = {"ATEN_CPU_CAPABILITY": "default"}
_COMPATIBLE = {"MKL_CBWR": "COMPATIBLE"}
SETTINGS = (
    Setting("plain"),
    Setting("1 thread", _threads(1)),
    Setting("2 threads", _threads(2)),
    Setting("MKL_CBWR=COMPATIBLE", _COMPATIBLE),
    Setting("MKL_CBWR=AVX2,STRICT", {"MKL_CBWR": "AVX2,STRICT"}),
    Setting("MKL_ENABLE_INSTRUCTIONS=SSE4_2", _OLD_BLAS),
    Setting("ATEN_CPU_CAPABILITY=default", _OLD_LOOPS),
    Setting("ATEN_CPU_CAPABILITY=avx2", {"ATEN_CPU_CAPABILITY": "avx2"}),
    Setting("SSE4_2, ATEN default, 1 thread", {**_OLD_BLAS, **_OLD_LOOPS, **_threads(1)}),
    Setting("COMPATIBLE, ATEN default, 2 threads", {**_COMPATIBLE, **_OLD_LOOPS, **_threads(2)}),
)
MOVED = (
    Setting("one ulp", ulp=True),
    Setting("one ulp, SSE4_2, ATEN default", {**_OLD_BLAS, **_OLD_LOOPS}, ulp=True),
)


@dataclass(frozen=True)
class Check:
    """One check of the schedule."""

    number: int
    setting: Setting


def schedule(arithmetic: str, repeats: int) -> list[Check]:
    """Every setting in turn, `repeats` times; a longer schedule begins with the shorter one."""
    settings = SETTINGS if arithmetic == "wide" else (*SETTINGS, *MOVED)
    return [
        Check(turn * len(settings) + place, setting)
        for turn in range(repeats)
        for place, setting in enumerate(settings)
    ]


def command_check(check: Check, root: Path) -> dict[str, Any]:
    """What `golden check` says in a setting: the entry of the ledger."""
    command = [sys.executable, "-m", "validation.cli", "check", "--lane", LANE, "--json"]
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, **check.setting.variables, "GOLDEN_MLFLOW": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        said = json.loads(done.stdout)
    except ValueError:
        return {"verdict": "none", "message": done.stderr[-2000:], "cases": {}}
    return {
        "verdict": said["verdict"],
        "message": said["message"],
        "canary": said["canary"],
        "machine": machine_type(said["environment"]),
        "cases": {
            case["case"]: {
                "verdict": case["verdict"],
                "message": case["message"][-2000:],
                "compared": case["compared"],
                "identical": case["identical"],
                "largest_ratio": case["largest_ratio"],
                "first": case["first_divergence"],
            }
            for case in said["cases"]
        },
    }


class NativeChecks:
    """Whole checks of the lane without wide arithmetic.

    Args:
        root: the repository.
        log: receives what the runs print.
        reference: folder of what is expected, a folder for each case.
    """

    def __init__(self, root: Path, log: Path, reference: Path) -> None:
        self.root, self.log, self.reference = root, log, reference
        self.cases = {
            name: replace(case, arithmetic="native")
            for name, case in discover_cases(root).items()
            if LANE in case.lanes
        }
        self.tolerances: dict[str, Tolerances] = {}

    def make_reference(self, jobs: int) -> None:
        """Runs and calibrates every case that the folder lacks.

        Args:
            jobs: runs at a time.
        """

        def work(case: Case) -> None:
            folder = self.reference / case.name
            file = folder / "tolerances.json"
            if not file.exists():
                base = self._trace(case, SETTINGS[0], moved=False)
                save_trace(base, folder)
                found = self._calibrated(case, base, min(jobs, SEEDS)).classes
                write_atomically(file, encode_json({"classes": found}))
            classes = decode_json(read_file(file), file)["classes"]
            self.tolerances[case.name] = Tolerances(
                {
                    name: {int(n): float(v) for n, v in steps.items()}
                    for name, steps in classes.items()
                }
            )

        in_parallel(max(1, jobs // SEEDS), list(self.cases.values()), work)

    def _calibrated(self, case: Case, base: Trace, jobs: int) -> Tolerances:
        def rerun(variant: Variant) -> Trace:
            options = RunOptions(
                lane=LANE,
                settings=variant.settings,
                rounding_seed=variant.rounding_seed,
                environment=_threads(1),
            )
            return run_case(case, options, self.root, self.log)

        def say(line: str) -> None:
            print(f"{case.name}: {line}", flush=True)

        return measure_case(case, True, SEEDS, base, rerun, Lines(say), jobs).tolerances

    def make(self, check: Check) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Runs and compares every case; returns the entry and the curves of each case."""
        cases, curves = {}, []
        traces: dict[str, Trace] = {}
        for name in self.cases:
            try:
                found = self._compared(name, check.setting, traces)
            except RunError as error:
                cases[name] = {"verdict": "FAIL", "message": str(error).splitlines()[-1]}
                continue
            cases[name] = judged(found)
            kept = {metric: traces[name].curves.get(CurveKey(metric), {}) for metric in KEPT_CURVES}
            line = {"case": name, "alarm": cases[name]["verdict"] != "PASS"}
            curves.append({**line, "curves": {m: dict(c) for m, c in kept.items() if c}})
        verdict = "PASS" if all(c["verdict"] == "PASS" for c in cases.values()) else "FAIL"
        machine = machine_type(next(iter(traces.values())).provenance["environment"])
        return {"verdict": verdict, "machine": machine, "cases": cases}, curves

    def _compared(
        self, name: str, setting: Setting, traces: dict[str, Trace]
    ) -> Sequence[Comparison]:
        expected, moved = load_trace(self.reference / name), setting.ulp and name not in UNTRAINED
        traces[name] = self._trace(self.cases[name], setting, moved)
        found = [compare(expected, traces[name], self.tolerances[name])]
        invariant = self.cases[name].invariant
        if invariant is not None and not setting.ulp:
            if invariant.reference not in traces:
                traces[invariant.reference] = self._trace(
                    self.cases[invariant.reference], setting, moved
                )
            found.append(compare_invariant(invariant, traces[invariant.reference], traces[name]))
        return found

    def _trace(self, case: Case, setting: Setting, moved: bool) -> Trace:
        options = RunOptions(
            lane=LANE,
            settings={"perturb_seed": ULP_SEED} if moved else {},
            environment=setting.variables,
        )
        return run_case(case, options, self.root, self.log)


def refuse_other_reference(folder: Path, state: Mapping[str, Any]) -> None:
    """Marks a reference folder with the state of code and goldens that it is made from.

    Raises:
        SystemExit: it is of another state.
    """
    file = folder / "state.json"
    if not file.exists():
        write_atomically(file, encode_json(state))
    elif decode_json(read_file(file), file) != json.loads(encode_json(state)):
        raise SystemExit(f"{file}: the reference is of another state of the code or the goldens")


def judged(found: Sequence[Comparison]) -> dict[str, Any]:
    """What a case's comparison with what is expected, and with its invariant, say together."""
    compared, first = found[0].compared, next((c.divergences[0] for c in found if c.divergences), 0)
    return {
        "verdict": "PASS" if compared and not first else "FAIL",
        "compared": compared,
        "identical": found[0].identical,
        "largest_ratio": nearness(found[0]).get("largest_ratio"),
        "first": first.to_json() if first else None,
    }


def summary(ledgers: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, Any]:
    """The figures of the finished checks, by arithmetic."""
    return {arithmetic: _figures(list(entries)) for arithmetic, entries in ledgers.items()}


def _figures(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    alarmed = [entry for entry in entries if entry["verdict"] != "PASS"]
    return {
        **_counts(entries),
        "alarms_upper_bound_95": upper_bound(len(alarmed), len(entries)),
        "by_setting": _grouped(entries, "setting"),
        "by_machine": _grouped(entries, "machine"),
        "by_case": _by_case(entries),
        "alarmed": alarmed,
    }


def _counts(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    cases = [case for entry in entries for case in entry["cases"].values()]
    # An infinite ratio is a string in JSON.
    ratios = [
        float(case["largest_ratio"]) for case in cases if case.get("largest_ratio") is not None
    ]
    return {
        "checks": len(entries),
        "alarms": sum(entry["verdict"] != "PASS" for entry in entries),
        "compared": sum(case.get("compared", 0) for case in cases),
        "identical": sum(case.get("identical", 0) for case in cases),
        "largest_ratio": max(ratios, default=None),
    }


def _grouped(entries: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        groups[entry.get(name, "unknown")].append(entry)
    return {group: _counts(groups[group]) for group in groups}


def _by_case(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = sorted({name for entry in entries for name in entry["cases"]})
    return {
        name: _counts(
            [
                {"verdict": entry["cases"][name]["verdict"], "cases": {name: entry["cases"][name]}}
                for entry in entries
                if name in entry["cases"] and entry["cases"][name]["verdict"] != "SKIPPED"
            ]
        )
        for name in names
    }


def print_summary(found: Mapping[str, Any]) -> None:
    """Prints a table for each arithmetic, and the alarms."""
    for arithmetic, figures in found.items():
        print(f"| {arithmetic} | checks | alarms | bit-identical records | largest ratio |")
        print("| --- | --- | --- | --- | --- |")
        rows = {**figures["by_setting"], **figures["by_machine"], **figures["by_case"]}
        for name, counts in {**rows, "all": figures}.items():
            ratio = counts["largest_ratio"]
            print(
                f"| {name} | {counts['checks']} | {counts['alarms']} | {counts['identical']:,} of "
                f"{counts['compared']:,} | {'-' if ratio is None else format(ratio, '.2g')} |"
            )
        print(f"\nalarms: at most {figures['alarms_upper_bound_95']:.2%} (one-sided 95 %)\n")
        for entry in figures["alarmed"]:
            print(f"ALARM {entry['setting']}: {entry.get('message') or entry['cases']}")


def make(options: argparse.Namespace) -> None:
    """Makes the checks that the ledger still lacks."""
    refuse_chosen_environment()
    root = find_root()
    native = NativeChecks(root, root / "runs" / "clean_runs.log", options.reference)
    state = state_of(root, LANE, native.cases, without=PLANTS)
    ledger = opened(options.ledger, {**state, "arithmetic": options.arithmetic})
    curves = opened(options.curves, state) if options.curves else None
    chosen = schedule(options.arithmetic, options.repeats)
    done = {entry["check"] for entry in ledger.entries}
    until = time.monotonic() + options.seconds

    if options.arithmetic == "native":
        refuse_other_reference(options.reference, state)
        native.make_reference(options.jobs)

    def work(check: Check) -> None:
        began = time.monotonic()
        if began > until:
            return
        lines: list[dict[str, Any]] = []
        if options.arithmetic == "wide":
            entry = command_check(check, root)
        else:
            entry, lines = native.make(check)
        if interrupted():
            return
        for line in lines if curves is not None else ():
            curves.append({"check": check.number, **line})
        seconds = round(time.monotonic() - began, 1)
        name = {"check": check.number, "setting": check.setting.name}
        ledger.append({**name, **entry, "seconds": seconds})
        print(f"{check.number} {check.setting.name}: {entry['verdict']} ({seconds} s)", flush=True)

    in_parallel(options.jobs, [check for check in chosen if check.number not in done], work)


def pool(options: argparse.Namespace) -> None:
    """Writes and prints the figures of several ledgers.

    Raises:
        SystemExit: they are of several states of the code or the goldens.
    """
    ledgers: dict[str, list[dict[str, Any]]] = defaultdict(list)
    states = []
    for path in options.ledgers:
        head, *entries = read_lines(path) or [{"state": {}}]
        state = dict(head["state"])
        ledgers[state.pop("arithmetic", "unknown")] += entries
        states.append(state)
    if any(state != states[0] for state in states):
        raise SystemExit("the ledgers are of several states of the code or the goldens")
    found = summary(ledgers)
    provenance = {**states[0], "environment": describe(lane_of(find_root(), LANE))}
    write_atomically(options.output, encode_json({**found, "provenance": provenance}))
    print_summary(found)


def main() -> None:
    """Makes checks, or pools those that several machines have made."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    maker = commands.add_parser("make", help="make the checks that a ledger lacks")
    maker.add_argument("--arithmetic", choices=("wide", "native"), required=True)
    maker.add_argument("--repeats", type=int, default=2, help="of every setting")
    maker.add_argument("--ledger", type=Path, required=True)
    maker.add_argument("--jobs", type=int, default=1, help="checks at a time")
    maker.add_argument("--seconds", type=float, default=1e9, help="start no check after this time")
    maker.add_argument(
        "--reference",
        type=Path,
        default=Path("runs/clean_reference"),
        help="what native checks are compared with (default: %(default)s)",
    )
    maker.add_argument("--curves", type=Path, help="keep the curves of native checks in this file")
    maker.set_defaults(run=make)
    pooler = commands.add_parser("pool", help="count the checks of ledgers")
    pooler.add_argument("ledgers", type=Path, nargs="+")
    pooler.add_argument("--output", type=Path, required=True)
    pooler.set_defaults(run=pool)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
