"""A run folder as MLflow gets it, in plain values.

Nothing here touches MLflow: `validation.tracking.publish` sends what this module describes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_FORBIDDEN = re.compile(r"[^\w\-. :/]", re.ASCII)
# What makes a link of the text around it: a scheme, a host and an @.
_LINKED = re.compile(r":(?=//)|(?<=www)\.|@", re.IGNORECASE)
_MAX_NAME = 250
_MAX_TAG = 5000


@dataclass(frozen=True)
class MetricPoint:
    """One value of a metric; `step` is the training step, 0 for a total."""

    name: str
    value: float
    step: int = 0


@dataclass(frozen=True)
class RunRecord:
    """One MLflow run.

    Attributes:
        key: identifies the run across republishing; unique in its experiment.
        name: shown name.
        params: immutable facts: commit, digests, environment.
        tags: what MLflow's search finds: verdict, case, first divergence.
        note: Markdown description.
        metrics: Values, per step where they have one.
        artifacts: (file or folder, folder inside the run's artifacts).
    """

    key: str
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    note: str
    metrics: Sequence[MetricPoint]
    artifacts: Sequence[tuple[Path, str]] = ()


@dataclass(frozen=True)
class CheckRecord:
    """A check or a benchmark: the parent run, one nested run per case, and when it happened.

    Attributes:
        experiment: name of the experiment: one per lane.
        started_ms: Start, milliseconds since the epoch.
        ended_ms: End, milliseconds since the epoch.
        passed: whether MLflow shows the run as finished rather than failed.
        parent: the check or benchmark; its tag `golden.kind` says which.
        cases: its cases.
    """

    experiment: str
    started_ms: int
    ended_ms: int
    passed: bool
    parent: RunRecord
    cases: Sequence[RunRecord] = field(default=())


def safe_name(name: str) -> str:
    """Returns `name` in the characters MLflow allows in metrics, parameters and tags."""
    cleaned = _FORBIDDEN.sub("_", name)
    parts = [part for part in cleaned.split("/") if part.strip(". ")]
    return "/".join(parts)[:_MAX_NAME] or "unnamed"


def safe_value(value: object) -> str:
    """Returns `value` as text of a length that every MLflow store keeps."""
    text = str(value)
    return text if len(text) <= _MAX_TAG else text[: _MAX_TAG - 1] + "…"


def markdown_cell(text: str) -> str:
    """Returns text that Markdown shows as it is, in a table or a line.

    MLflow makes links of bare addresses and of names behind an @, as GitHub does.
    """
    escaped = "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!" else c for c in text)
    unlinked = _LINKED.sub(lambda found: f"&#{ord(found[0])};", escaped)
    return " ".join(unlinked.split())
