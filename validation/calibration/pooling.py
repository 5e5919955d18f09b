"""`golden calibrate --from`: noise of runs that were made elsewhere, on any machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from validation.calibration.calibrate import (
    LEAST_RUNS,
    Measured,
    Rerun,
    Variant,
    by_machine,
    compared,
    measure,
)
from validation.calibration.derived import noise_of_line, stored, stored_noise
from validation.calibration.noise import floor_of, largest_of, largest_ratio, tolerances_from
from validation.goldens import Golden
from validation.goldens.environments import identity, in_words
from validation.goldens.golden import environment_of
from validation.power.matrix import bitwise_equal
from validation.progress import Progress
from validation.run_folder import RunFolder
from validation.running.notes import grains_of
from validation.trace import Trace, load_trace


def pool(golden: Golden, folders: Sequence[Path], progress: Progress) -> Measured:
    """Measures noise on run folders, as distance to the golden.

    Where the golden has been calibrated, the runs are held against the tolerances in force, and
    extend what these follow from. Otherwise they are measured by themselves.

    Args:
        golden: of the environment that the runs were made in.
        folders: run folders, of any machines.
        progress: told what happens.

    Returns:
        Noise and tolerances of the reruns, pooled with those of earlier ones where there are any.

    Raises:
        ValueError: a folder that does not count, or that does already; or too few runs.
    """
    chosen, made = reruns_made_elsewhere(golden, folders)
    if extends(golden):
        return _extend(golden, chosen, made, progress)
    if len(chosen) < LEAST_RUNS:
        raise ValueError(
            f"{len(chosen)} run(s) alone measure no noise, and the golden was not calibrated since "
            f"it was recorded: golden calibrate {golden.case} first, or give {LEAST_RUNS} runs"
        )
    return measure(golden.trace, made, chosen, progress)


def extends(golden: Golden) -> bool:
    """Whether further runs extend a golden's calibration: it is of this trace's source."""
    record = golden.calibration
    of_this = record.get("source_digest") == golden.trace.provenance.get("source_digest")
    return "held_out" in record and of_this


def _extend(
    golden: Golden,
    chosen: Sequence[Variant],
    made: Callable[[Variant], Trace],
    progress: Progress,
) -> Measured:
    record = golden.calibration
    known = {line.partition(":")[0] for line in record["variants"]}
    recorded, reruns = stored_noise(golden), _recorded_reruns(golden)
    before = len(reruns)
    lines, ratios, traces = list(record["variants"]), [], [golden.trace]
    for variant in chosen:
        if variant.name in known:
            raise ValueError(f"{variant.name}: the golden's calibration has this run already")
        trace = made(variant)
        rerun, said = compared(golden.trace, trace, variant)
        reruns.append(rerun)
        ratios.append(largest_ratio(rerun.noise, golden.tolerances))
        traces.append(trace)
        lines.append(f"{variant.name}: {said}")
        progress.message(f"{lines[-1]}, {ratios[-1]:.2g} of its tolerance at most")
    made_now = [rerun.noise for rerun in reruns[before:]]
    noise = largest_of([recorded, *made_now])
    grains = largest_of([grains_of(traces), stored(golden).grains or {}])
    machines = [rerun.machine for rerun in reruns[before:]]
    counted = int(record["largest_sum"])
    return Measured(
        tolerances=tolerances_from(noise, floor_of(counted), grains),
        noise=noise,
        grains=grains,
        largest_sum=counted,
        source=str(record["source"]),
        held_out=[float(ratio) for ratio in record["held_out"]],
        calibrated_on=by_machine(machines, ratios, record["calibrated_on"]),
        lines=lines,
        reruns=reruns,
    )


def _recorded_reruns(golden: Golden) -> list[Rerun]:
    """The reruns that are stored; all in one of an older calibration, which has their noise."""
    told = stored(golden)
    if told.reruns is None:
        return [Rerun(f"{told.runs} reruns of {told.time}", "", "", stored_noise(golden))]
    return [
        Rerun(r.name, r.machine, r.trace, noise_of_line(r.noise, golden.tolerances))
        for r in told.reruns
    ]


def reruns_made_elsewhere(
    golden: Golden, folders: Sequence[Path]
) -> tuple[list[Variant], Callable[[Variant], Trace]]:
    """Finds what run folders hold of a golden's case, for `measure`.

    A folder's `traces/<case>` is a plain run, and `reruns/<case>/<n>` are what `golden calibrate`
    left there. They count if the golden's source tree made them, or if the folder's plain run
    repeats the golden bit for bit: other code that does the same.

    Args:
        golden: of the environment that the runs were made in.
        folders: run folders, of any machines.

    Returns:
        The variants, and a function that loads the trace of one.

    Raises:
        ValueError: a folder with nothing of the case, of other code, or of another environment.
    """
    found: dict[str, tuple[Variant, Trace]] = {}
    for folder in folders:
        plain = RunFolder(folder).trace(golden.case)
        others = sorted((folder / "reruns" / golden.case).glob("*/trace.json"))
        heads = [*([plain] if (plain / "trace.json").exists() else []), *(p.parent for p in others)]
        if not heads:
            raise ValueError(f"{folder}: has no run of {golden.case}")
        traces = [load_trace(head) for head in heads]
        repeats = heads[0] == plain and bitwise_equal(golden.trace, traces[0])
        for head, trace in zip(heads, traces, strict=True):
            provenance = trace.provenance
            same = provenance.get("source_digest") == golden.trace.provenance.get("source_digest")
            if not (same or repeats):
                raise ValueError(f"{head}: made by other code, whose plain run is not the golden's")
            if identity(environment_of(provenance)) != identity(golden.environment):
                where = in_words(environment_of(provenance))
                raise ValueError(f"{head}: made in {where}, not in {in_words(golden.environment)}")
            changed = provenance.get("variant", "")
            name = f"{changed or 'plain'}, {folder.name}"
            found[name] = Variant(name, {"variant": changed} if changed else {}), trace
    return [variant for variant, _ in found.values()], lambda variant: found[variant.name][1]
