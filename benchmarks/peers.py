"""Known bugs and clean runs under the peers' rules of comparison, beside ours.

    python -m benchmarks.peers --output benchmarks/results/peers.json \\
        --matrix docs/power/matrix.json --clean runs/clean_curves.jsonl [--jobs 2]

Plants every fault of the CPU lane in its own case, in full, in the kill matrix's environment that
calibration never saw, and shows the losses to each rule. The peers' goldens are what they would
have recorded of our golden's curve; see `benchmarks.peer_rules`. Ours is what the kill matrix says
of the same faults and goldens (`golden faults --output docs/power`). A fault is *small* if it moves
the loss of the case's last step, of 20 for most, by less than 1e-3 of it. A run that crashes is
killed by no comparison, and counted apart. Faults that are declared equivalent are left out.

`--clean` takes the curves of `benchmarks.clean_runs`: what each rule says of them are false alarms.
Finished faults are kept beside the output, as `.jsonl`, and not run again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.ledger import in_parallel, interrupted, opened, refuse_chosen_environment
from benchmarks.peer_rules import RULES
from validation.cases import Fault, discover_benign, discover_cases, discover_faults
from validation.config import lane_of
from validation.files import decode_json, digest, encode_json, read_file, write_atomically
from validation.goldens import Golden, GoldenStore
from validation.power.ledger import module_file, own_files, read_lines, state_of
from validation.power.planting import PERTURBATION, unseen_environment
from validation.rates import lower_bound, upper_bound
from validation.running.environment import describe
from validation.running.execution import RunError, RunOptions, run_case
from validation.running.source import commit, find_root
from validation.trace import Trace

LANE = "cpu"
OURS = "golden check"
LOSS = "lm_loss"
SMALL = 1e-3
NAMES = (*(rule.name for rule in RULES), OURS)


class PlantedRuns:
    """Plants faults and asks every rule.

    Args:
        root: the repository.
        log: receives what the runs print.
    """

    def __init__(self, root: Path, log: Path) -> None:
        self.root, self.log = root, log
        self.cases = discover_cases(root)
        store = GoldenStore(root / "goldens")
        self.goldens = {name: store.load(LANE, name) for name in store.names(LANE)}

    def make(self, fault: Fault) -> dict[str, Any]:
        """Runs the fault's case and returns what each of the peers' rules says."""
        began = time.monotonic()
        golden = self.goldens[fault.case]
        entry: dict[str, Any] = {
            "fault": fault.id,
            "category": fault.category,
            "case": fault.case,
            "file": file_digest(fault),
            "crashed": None,
        }
        options = RunOptions(
            lane=LANE,
            settings={"perturb_seed": PERTURBATION},
            fault=fault.plant,
            environment=unseen_environment(golden),
        )
        # The losses alone are asked for.
        case = replace(self.cases[fault.case], traced_steps=())
        try:
            trace = run_case(case, options, self.root, self.log)
        except RunError as error:
            crashed = str(error).splitlines()[-1]
            return {**entry, "crashed": crashed, "killed": {}, **_seconds(began)}
        losses = losses_of(golden.trace), losses_of(trace)
        rejected = {rule.name: bool(losses[0]) and not rule.accepts(*losses) for rule in RULES}
        return {
            **entry,
            "effect": effect(*losses),
            "killed": rejected,
            **_seconds(began),
        }


def losses_of(trace: Trace) -> Mapping[int, float]:
    """The losses of the rank that has them: the first, or with pipeline stages the last."""
    ranks = sorted(key for key in trace.curves if key.metric == LOSS)
    return trace.curves[ranks[0]] if ranks else {}


def file_digest(fault: Fault) -> str:
    """Of the file that plants a fault."""
    file = module_file(fault.plant)
    return digest(file.read_bytes()) if file is not None else ""


def _seconds(began: float) -> dict[str, float]:
    return {"seconds": round(time.monotonic() - began, 1)}


def effect(golden: Mapping[int, float], actual: Mapping[int, float]) -> float | None:
    """Relative change of the loss at the golden's last step with any; None where there is none."""
    last = max((step for step, loss in golden.items() if loss), default=None)
    if last is None or last not in actual:
        return None
    return abs(actual[last] - golden[last]) / abs(golden[last])


def clean_alarms(
    lines: Sequence[Mapping[str, Any]], goldens: Mapping[str, Golden]
) -> dict[str, dict[str, int]]:
    """Rule -> runs it judged and false alarms, over the curves of clean runs.

    The peers judge the runs that have a loss, ours all of them.
    """
    found = {name: {"runs": 0, "alarms": 0} for name in NAMES}
    for line in lines:
        losses = {int(step): value for step, value in line["curves"].get(LOSS, {}).items()}
        verdicts = {OURS: bool(line["alarm"])}
        expected = losses_of(goldens[line["case"]].trace)
        if expected:
            verdicts |= {rule.name: not rule.accepts(expected, losses) for rule in RULES}
        for name, alarm in verdicts.items():
            found[name]["runs"] += 1
            found[name]["alarms"] += alarm
    return found


def summary(
    entries: Iterable[Mapping[str, Any]], clean: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """The figures of every rule."""
    done = sorted(entries, key=lambda entry: entry["fault"])
    ran = [entry for entry in done if entry["crashed"] is None]
    small = [entry for entry in ran if entry["effect"] is not None and _number(entry) < SMALL]
    rules = []
    for name in NAMES:
        killed = sum(entry["killed"][name] for entry in ran)
        of_small = sum(entry["killed"][name] for entry in small)
        runs, alarms = clean[name]["runs"], clean[name]["alarms"]
        rules.append(
            {
                "rule": name,
                "killed": killed,
                "killed_lower_bound_95": lower_bound(killed, len(ran)),
                "small_killed": of_small,
                "small_killed_lower_bound_95": lower_bound(of_small, len(small)),
                "clean_runs": runs,
                "false_alarms": alarms,
                "false_alarms_upper_bound_95": upper_bound(alarms, runs),
            }
        )
    return {
        "faults": len(ran),
        "small": len(small),
        "crashed": [entry["fault"] for entry in done if entry["crashed"] is not None],
        "rules": rules,
        "by_fault": done,
    }


def _number(entry: Mapping[str, Any]) -> float:
    return float(entry["effect"])


def print_summary(found: Mapping[str, Any]) -> None:
    """Prints one table; after each count the one-sided 95 % bound of its rate."""
    faults, small = found["faults"], found["small"]
    print(f"| rule | killed of {faults} | of {small} small ones | false alarms in clean runs |")
    print("| --- | --- | --- | --- |")
    for rule in found["rules"]:
        clean = "-"
        if rule["clean_runs"]:
            bound = rule["false_alarms_upper_bound_95"]
            clean = f"{rule['false_alarms']} of {rule['clean_runs']} (<= {bound:.1%})"
        print(
            f"| {rule['rule']} | {rule['killed']} (>= {rule['killed_lower_bound_95']:.0%}) "
            f"| {rule['small_killed']} (>= {rule['small_killed_lower_bound_95']:.0%}) | {clean} |"
        )
    for fault in found["crashed"]:
        print(f"crashed, compared by no rule: {fault}")


def main() -> None:
    """Plants the faults that are still missing, then writes and prints the figures of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/peers.json"))
    parser.add_argument("--matrix", type=Path, default=Path("docs/power/matrix.json"))
    parser.add_argument("--clean", type=Path, help="curves of benchmarks.clean_runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    options = parser.parse_args()
    refuse_chosen_environment()
    root = find_root()
    runner = PlantedRuns(root, root / "runs" / "peers.log")
    faults = discover_faults(root).values()
    plants = [f.plant for f in faults] + [b.plant for b in discover_benign(root).values()]
    targets = [case.target for case in runner.cases.values()]
    state = state_of(root, LANE, runner.goldens, without=own_files(root, plants, targets))
    chosen = [fault for fault in faults if LANE in fault.lanes and not fault.equivalent]
    # The CPU lane may have a case of its own for a fault.
    chosen = [replace(fault, case=fault.shown_by(LANE)) for fault in chosen]
    clean = clean_lines(options.clean, state) if options.clean else []
    ledger = opened(options.output.with_suffix(".jsonl"), state)
    wanted = {fault.id: file_digest(fault) for fault in chosen}
    done = {entry["fault"] for entry in finished(ledger.entries, wanted)}
    todo = [fault for fault in chosen if fault.id not in done]

    def work(fault: Fault) -> None:
        entry = runner.make(fault)
        if interrupted():
            return
        ledger.append(entry)
        killers = [name for name, killed in entry.get("killed", {}).items() if killed]
        said = f"killed by {', '.join(killers) or 'nothing'}"
        print(
            f"[{len(ledger.entries)}/{len(chosen)}] {fault.id}, {fault.case}: "
            f"{'crashed' if entry['crashed'] else said} ({entry['seconds']:.0f} s)",
            flush=True,
        )

    in_parallel(options.jobs, sorted(todo, key=lambda fault: fault.case), work)
    ours = killed_by_us(options.matrix, state, wanted)
    entries = [
        {**entry, "killed": {**entry["killed"], OURS: ours[entry["fault"]]}}
        for entry in finished(ledger.entries, wanted)
    ]
    found = summary(entries, clean_alarms(clean, runner.goldens))
    provenance = {
        "commit": commit(root),
        **state,
        "environment": describe(lane_of(root, LANE)),
    }
    write_atomically(options.output, encode_json({**found, "provenance": provenance}))
    print_summary(found)


def finished(
    entries: Iterable[Mapping[str, Any]], wanted: Mapping[str, str]
) -> list[Mapping[str, Any]]:
    """The entries of these faults, as they are planted now.

    Args:
        entries: of the ledger.
        wanted: fault -> digest of the file that plants it.
    """
    return [entry for entry in entries if wanted.get(entry["fault"]) == entry["file"]]


def killed_by_us(path: Path, state: Mapping[str, Any], faults: Iterable[str]) -> dict[str, bool]:
    """Fault -> whether the kill matrix has it killed.

    Raises:
        SystemExit: there is no matrix of these goldens, or it lacks a fault.
    """
    matrix = decode_json(read_file(path), path)
    found = {fault["id"]: bool(fault["killed"]) for fault in matrix["faults"]}
    if matrix.get("provenance", {}).get("goldens") != state["goldens"] or set(faults) - set(found):
        raise SystemExit(f"{path}: of other code; run `golden faults --output {path.parent}` first")
    return found


def clean_lines(path: Path, state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The clean runs' curves, once each.

    Raises:
        SystemExit: there are none, or they were judged by other goldens.
    """
    lines = read_lines(path)
    judged_by = lines[0].get("state", {}).get("goldens", {}) if lines else {}
    if not judged_by or not judged_by.items() <= state["goldens"].items():
        raise SystemExit(f"{path}: no clean runs that these goldens have judged")
    return list({(line["check"], line["case"]): line for line in lines[1:]}.values())


if __name__ == "__main__":
    main()
