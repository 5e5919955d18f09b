"""`golden bench`: a case's training at two revisions, interleaved, judged."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from validation.cases import Case
from validation.config import declaration_of, lane_of
from validation.files import SCHEMA, jsonable
from validation.gate.verdict import EXIT_CODES, Verdict, worst
from validation.progress import Progress
from validation.running.machine import unfit as unfit_machine
from validation.running.revisions import base_checkout
from validation.running.source import git, tree_digest
from validation.throughput.figures import Figures, OperatorChange, figures_of, operator_changes
from validation.throughput.session import (
    BLOCK_SECONDS,
    SIDES,
    Quad,
    Session,
    SessionPlan,
    open_session,
)
from validation.throughput.statistics import ALPHA, MIN_EFFECT, Judgement, judge
from validation.throughput.telemetry import MAX_NEIGHBOURS, unfit, watch_for

CPU_PAIRS, GPU_PAIRS = 60, 240
"""Without and with GPUs: a minute or two, start-up included where steps are short."""
EACH_ALPHA = ALPHA / 2
"""Of each of the two tests, the median step's and the whole block's."""
STARTS = 2
"""How often both sides start anew in a run, which of them first in turns."""
MIN_PAIRS = 2 * math.ceil(math.log2(1.0 / EACH_ALPHA))
"""Fewer could not raise an alarm whatever they measured."""
# An allocator's peak repeats on a card; resident memory depends on when pages are given back.
MAX_GROWTH = 0.01
MAX_GROWTH_OF_A_PROCESS = 0.03
# What an interpreter and its libraries come to differs by some pages from process to process.
FREE_GROWTH_BYTES = 64 * 2**20
_PROFILED_QUADS = 4


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """What a benchmark does.

    Attributes:
        root: the repository; its working tree is the head.
        lane: where it runs.
        cases: each with a `throughput` function.
        base: the revision to compare with.
        pairs: of a base block and a head block, an even number.
        block_seconds: length of a block.
        min_effect: relative slowdown that an alarm must exceed.
        max_neighbours: share of the CPU time that others may use.
        profile: profile a block of each side even without an alarm.
        fault: `module:function` planted in the head.
    """

    root: Path
    lane: str
    cases: Sequence[Case]
    base: str
    pairs: int
    block_seconds: float = BLOCK_SECONDS
    min_effect: float = MIN_EFFECT
    max_neighbours: float = MAX_NEIGHBOURS
    profile: bool = False
    fault: str | None = None


@dataclass(frozen=True, kw_only=True)
class CaseBench:
    """One case's part of a benchmark.

    Attributes:
        case: its name.
        verdict: PASS, FAIL, UNFIT or SKIPPED.
        message: why, when it is no PASS.
        judgement: of the median step times.
        whole: of the whole blocks' times, which steps that wait now and then make longer.
        figures: side -> figures.
        memory_ratio: peak memory, head over base.
        quads: all blocks, start after start.
        operators: what got slower, profiled; empty unless profiled.
        facts: side -> what its pacer described.
    """

    case: str
    verdict: Verdict
    message: str = ""
    judgement: Judgement | None = None
    whole: Judgement | None = None
    figures: Mapping[str, Figures] | None = None
    memory_ratio: float | None = None
    quads: Sequence[Quad] = ()
    operators: Sequence[OperatorChange] = ()
    facts: Mapping[str, Mapping[str, Any]] | None = None

    def to_json(self, *, raw: bool) -> dict[str, Any]:
        """What `--json` prints; with `raw` also the blocks, which the run folder keeps."""
        document: dict[str, Any] = {
            "case": self.case,
            "verdict": str(self.verdict),
            "message": self.message,
            "judgement": None if self.judgement is None else asdict(self.judgement),
            "whole": None if self.whole is None else asdict(self.whole),
            "figures": {side: f.to_json() for side, f in (self.figures or {}).items()},
            "memory_ratio": self.memory_ratio,
            "operators": [change.to_json() for change in self.operators],
            "facts": dict(self.facts or {}),
        }
        if raw:
            document["quads"] = [[block.to_json() for block in q.blocks] for q in self.quads]
        return document


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """A whole benchmark.

    Attributes:
        verdict: the worst of the cases.
        lane: where it ran.
        base: commit compared with.
        head: commit that the working tree is on.
        source_digest: of the whole working tree.
        began: time, UTC.
        seconds: wall-clock time of it all.
        fault: `module:function` planted in the head.
        cases: in the order in which they ran.
    """

    verdict: Verdict
    lane: str
    base: str
    head: str
    source_digest: str
    began: str
    seconds: float
    fault: str | None
    cases: Sequence[CaseBench]

    @property
    def exit_code(self) -> int:
        """1 for a regression, 4 for an unfit machine."""
        return EXIT_CODES[self.verdict]

    def to_json(self, *, raw: bool = False) -> dict[str, Any]:
        """The object of `--json`, or with `raw` of `bench.json`."""
        document = {
            "schema": SCHEMA,
            "verdict": str(self.verdict),
            "lane": self.lane,
            "base": self.base,
            "head": self.head,
            "source_digest": self.source_digest,
            "began": self.began,
            "seconds": round(self.seconds, 3),
            "fault": self.fault,
            "alpha": ALPHA,
            "cases": [case.to_json(raw=raw) for case in self.cases],
        }
        return dict(jsonable(document))


def default_pairs(gpus: int) -> int:
    """Pairs of blocks that a benchmark makes on a lane with so many GPUs."""
    return GPU_PAIRS if gpus else CPU_PAIRS


def run_bench(plan: BenchPlan, logs: Path, gpus: int, progress: Progress) -> BenchResult:
    """Compares every case with the base revision.

    Args:
        plan: what to do.
        logs: folder of the trainings' logs.
        gpus: CUDA devices of the machine.
        progress: told what happens.

    Returns:
        The benchmark, with a result for each case.

    Raises:
        RepositoryError: no such revision.
        RunError: a training failed.
    """
    began, clock = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
    results: list[CaseBench] = []
    refusal = unfit_machine(declaration_of(plan.root).lanes[plan.lane], gpus)
    if refusal is not None:
        results = [
            CaseBench(case=c.name, verdict=Verdict.UNFIT, message=refusal) for c in plan.cases
        ]
    needs = [path for case in plan.cases for path in case.needs.paths]
    with base_checkout(plan.root, plan.base, "--base", needs) as (tree, commit):
        for case in () if results else plan.cases:
            lane = lane_of(plan.root, plan.lane)
            reason = case.needs.missing(plan.root, gpus, lane)
            reason = reason or case.needs.missing(tree, gpus, lane)
            if reason is not None:
                results.append(CaseBench(case=case.name, verdict=Verdict.SKIPPED, message=reason))
                continue
            session_plan = SessionPlan(
                case=case,
                lane=plan.lane,
                trees={"base": tree, "head": plan.root},
                logs=logs / case.name,
                fault=plan.fault,
                block_seconds=plan.block_seconds,
            )
            results.append(_bench_case(plan, session_plan, progress))
    return BenchResult(
        verdict=worst(result.verdict for result in results),
        lane=plan.lane,
        base=commit,
        head=git(plan.root, "rev-parse", "HEAD").strip(),
        source_digest=tree_digest(plan.root),
        began=began,
        seconds=time.monotonic() - clock,
        fault=plan.fault,
        cases=results,
    )


def _bench_case(plan: BenchPlan, session_plan: SessionPlan, progress: Progress) -> CaseBench:
    name, starts = session_plan.case.name, []
    for number, count in enumerate(_shares(plan.pairs // 2, STARTS)):
        with open_session(
            session_plan.start(number), watch_for(lane_of(plan.root, plan.lane))
        ) as session:
            starts.append(_measure(session, count, f"start {number + 1}, {name}", progress))
            if number + 1 < STARTS:
                continue
            judged = _judge(plan, name, starts, session)
            if plan.profile or judged.verdict is Verdict.FAIL:
                progress.message(f"{name}: profiling")
                profiled = [session.quad(profiled=True) for _ in range(_PROFILED_QUADS)]
                blocks = [block for quad in profiled for block in quad.blocks]
                judged = replace(judged, operators=operator_changes(blocks))
    return judged


def _shares(whole: int, parts: int) -> list[int]:
    """A number in parts that are as equal as may be."""
    return [(whole + part) // parts for part in range(parts)]


def _measure(session: Session, count: int, name: str, progress: Progress) -> list[Quad]:
    progress.message(f"{name}: both trainings")
    slower = session.warm_up()
    progress.message(f"{name}: {slower:.3f} s a step, blocks of {session.block_steps}")
    session.quad()  # clocks and caches settle in the rhythm of the blocks
    quads = []
    for number in range(1, count + 1):
        progress.started(number, count, name, "four blocks")
        quads.append(session.quad())
    return quads


def _judge(
    plan: BenchPlan, name: str, starts: Sequence[Sequence[Quad]], session: Session
) -> CaseBench:
    judgement, whole = judge_quads(starts, plan.min_effect)
    quads = [quad for start in starts for quad in start]
    blocks = [block for quad in quads for block in quad.blocks]
    figures = {
        side: figures_of([b for b in blocks if b.side == side], session.facts[side])
        for side in SIDES
    }
    base_bytes = max(1, figures["base"].peak_bytes)
    memory = figures["head"].peak_bytes / base_bytes
    growth = MAX_GROWTH
    if not lane_of(plan.root, plan.lane).on_gpus:
        growth = max(MAX_GROWTH_OF_A_PROCESS, FREE_GROWTH_BYTES / base_bytes)
    disturbed = unfit([block.machine for block in blocks], plan.max_neighbours)
    verdict, message = decide((judgement, whole), memory, growth, disturbed)
    return CaseBench(
        case=name,
        verdict=verdict,
        message=message,
        judgement=judgement,
        whole=whole,
        figures=figures,
        memory_ratio=memory,
        quads=quads,
        facts=session.facts,
    )


def judge_quads(
    starts: Sequence[Sequence[Quad]], min_effect: float = MIN_EFFECT
) -> tuple[Judgement, Judgement]:
    """Judges the median steps and the whole blocks; either raises the alarm.

    Args:
        starts: the quads of each start of the processes.
        min_effect: relative slowdown that an alarm must exceed.

    Returns:
        The two judgements, in this order.
    """
    step, whole = (
        judge(effects, alpha=EACH_ALPHA, min_effect=min_effect)
        for effects in (
            [[quad.effect for quad in quads] for quads in starts],
            [[quad.whole_effect for quad in quads] for quads in starts],
        )
    )
    return step, whole


def decide(
    judgements: tuple[Judgement, Judgement],
    memory_ratio: float,
    max_growth: float,
    disturbed: Sequence[str],
) -> tuple[Verdict, str]:
    """Decides the verdict of a benchmark.

    A disturbed machine makes step times meaningless, but not the memory that the code asks for.

    Args:
        judgements: of the median steps and of the whole blocks.
        memory_ratio: peak memory, head over base.
        max_growth: relative growth of memory that passes.
        disturbed: what made the machine unfit.

    Returns:
        The verdict, and why it is no PASS (empty where it is one).
    """
    if memory_ratio > 1.0 + max_growth:
        return Verdict.FAIL, (
            f"peak memory grew by {memory_ratio - 1.0:.1%}, more than {max_growth:.1%}"
        )
    if disturbed:
        return Verdict.UNFIT, "; ".join(disturbed)
    for judgement, what in zip(
        judgements, ("steps are", "blocks, waits included, are"), strict=True
    ):
        if judgement.slower:
            return Verdict.FAIL, (
                f"{what} {judgement.ratio - 1.0:.2%} slower "
                f"[{judgement.low - 1.0:.2%}, {judgement.high - 1.0:.2%}], p = {judgement.p:.2g}"
            )
    return Verdict.PASS, ""
