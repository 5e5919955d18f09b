"""Past benchmarks as a series, and where it changed its level.

A series is a case's cost in units of the reference kernel, which other machines of a lane can be
compared in. A change point splits a stretch of it where the means on both sides differ by more than
shuffling the stretch would explain; each part is searched again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from validation.files import DamagedFileError, check_schema, decode_json, read_file, to_float
from validation.run_folder import BENCH_FILE

_LEVEL = 0.01
_SHUFFLES = 999
# A level needs some points before it is one.
_SHORTEST = 3


@dataclass(frozen=True)
class Change:
    """A change of level.

    Attributes:
        index: first point of the new level.
        ratio: the new level over the one before.
        total: the new level over the first one of the series.
    """

    index: int
    ratio: float
    total: float


@dataclass(frozen=True)
class Point:
    """One past benchmark of a case.

    Attributes:
        run: name of the run folder.
        head: commit.
        verdict: of the case.
        relative_cost: step time over the reference kernel's, of the head.
        ratio: step time, head over base.
    """

    run: str
    head: str
    verdict: str
    relative_cost: float
    ratio: float


def change_points(series: Sequence[float], level: float = _LEVEL) -> list[Change]:
    """Finds where a series of positive values changed its level.

    Args:
        series: in order of time.
        level: chance of a change point in a stretch that has none.

    Returns:
        The changes, in order.
    """
    logs = np.log(np.asarray(series, dtype=np.float64))
    cuts = sorted(_cuts(logs, 0, level, np.random.default_rng(0)))
    bounds = [0, *cuts, len(logs)]
    levels = [float(logs[a:b].mean()) for a, b in itertools.pairwise(bounds) if b > a]
    return [
        Change(
            index=cut,
            ratio=math.exp(levels[i + 1] - levels[i]),
            total=math.exp(levels[i + 1] - levels[0]),
        )
        for i, cut in enumerate(cuts)
    ]


def _cuts(
    values: np.ndarray, offset: int, level: float, generator: np.random.Generator
) -> list[int]:
    if values.size < 2 * _SHORTEST:
        return []
    scores = _scores(values[None, :])[0]
    shuffled = generator.permuted(np.tile(values, (_SHUFFLES, 1)), axis=1)
    beaten = int((_scores(shuffled).max(axis=1) >= scores.max()).sum())
    if (beaten + 1) / (_SHUFFLES + 1) > level:
        return []
    cut = int(scores.argmax()) + _SHORTEST
    return [
        *_cuts(values[:cut], offset, level, generator),
        offset + cut,
        *_cuts(values[cut:], offset + cut, level, generator),
    ]


def _scores(rows: np.ndarray) -> np.ndarray:
    """For each row and each place to cut it, how far the means of both sides are apart."""
    count = rows.shape[1]
    left = np.arange(_SHORTEST, count - _SHORTEST + 1)
    sums = rows.cumsum(axis=1)
    ahead = sums[:, left - 1] / left
    behind = (sums[:, -1:] - sums[:, left - 1]) / (count - left)
    return np.abs(ahead - behind) * np.sqrt(left * (count - left) / count)


def read_series(runs: Path, lane: str) -> dict[str, list[Point]]:
    """Reads past benchmarks of a lane; disturbed ones and planted faults are left out.

    Args:
        runs: folder of run folders.
        lane: whose machines they ran on.

    Returns:
        Case -> its benchmarks, oldest first.

    Raises:
        DamagedFileError: a file that is no benchmark; its path comes first.
    """
    series: dict[str, list[Point]] = {}
    for path in sorted(runs.glob(f"*/{BENCH_FILE}")):
        document = decode_json(read_file(path), path)
        check_schema(document, path)
        if document.get("lane") != lane or document.get("fault") is not None:
            continue
        try:
            for case in document["cases"]:
                if case["verdict"] in ("PASS", "FAIL"):
                    series.setdefault(str(case["case"]), []).append(
                        Point(
                            run=path.parent.name,
                            head=str(document["head"]),
                            verdict=str(case["verdict"]),
                            relative_cost=to_float(case["figures"]["head"]["relative_cost"], path),
                            ratio=to_float(case["judgement"]["ratio"], path),
                        )
                    )
        except (KeyError, TypeError) as error:
            raise DamagedFileError(f"{path}: not a benchmark: {error!r}") from error
    return series
