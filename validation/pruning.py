"""`golden prune`: deletes old run folders, whole or not at all, and none that somebody needs."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from validation.config.retention import Retention
from validation.files import decode_json, read_file
from validation.run_folder import BENCH_FILE, VERDICT_FILE, held_by_another

_NAME = re.compile(r"(\d{8}T\d{6})-(.+)-([0-9a-f]{12})(-\d+)?")
# A folder that is being deleted has left the runs before its first file does.
_GOING = ".pruned-"
_PUBLISH_STATE = "publish.json"


@dataclass(frozen=True)
class Old:
    """A run folder that goes.

    Attributes:
        path: of the folder.
        size: bytes of its files.
    """

    path: Path
    size: int


def choose(runs: Path, retention: Retention, now: datetime) -> tuple[list[Old], dict[Path, str]]:
    """Chooses the run folders that go.

    Args:
        runs: the folder of run folders; what has no name of a run in it does not count.
        retention: what stays.
        now: decides what is old.

    Returns:
        Those that go, the oldest first, and old ones that stay, each with the reason.
    """
    found = sorted((_stamp(path), path.name) for path in _run_folders(runs))
    folders = [runs / name for _, name in found]
    latest = _latest_of_lanes(folders)
    gone: list[Old] = []
    kept: dict[Path, str] = {}
    for (stamp, _), path in list(zip(found, folders, strict=True))[: -retention.keep]:
        if stamp >= now - timedelta(days=retention.days):
            continue
        why = "the latest of its lane" if path in latest else _needed(path)
        if why is None:
            gone.append(Old(path, _size(path)))
        else:
            kept[path] = why
    return gone, kept


def delete(old: Iterable[Old]) -> Iterator[Old]:
    """Deletes run folders; yields each that is gone. What somebody has begun to use stays."""
    for run in old:
        if held_by_another(run.path):
            continue
        going = run.path.with_name(_GOING + run.path.name)
        run.path.rename(going)
        shutil.rmtree(going)
        yield run


def delete_rests(runs: Path) -> None:
    """Deletes what a killed `delete` has left."""
    for path in runs.glob(f"{_GOING}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def _run_folders(runs: Path) -> Iterator[Path]:
    for path in runs.glob("*"):
        if _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            yield path


def _stamp(path: Path) -> datetime:
    """When a run began, as its name says; a time that there is not is the oldest."""
    try:
        return datetime.strptime(path.name[:15], "%Y%m%dT%H%M%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return datetime.min.replace(tzinfo=timezone.utc)


def _latest_of_lanes(folders: Iterable[Path]) -> set[Path]:
    """The latest run of each lane that left a verdict, and the latest at all that did."""
    latest: dict[str, Path] = {}
    for path in folders:
        if (path / VERDICT_FILE).exists():
            match = _NAME.fullmatch(path.name)
            assert match is not None
            latest[match[2]] = path
    return set(latest.values())


def _needed(path: Path) -> str | None:
    """Why a run folder stays whatever its age; None where nothing needs it."""
    if (path / BENCH_FILE).exists():
        return "a benchmark, of which the trend is made"
    if _waits_for_mlflow(path):
        return "MLflow has not got it yet: golden publish"
    return "in use" if held_by_another(path) else None


def _waits_for_mlflow(path: Path) -> bool:
    """Whether sending it failed, and nothing has sent it since."""
    file = path / _PUBLISH_STATE
    if not file.exists():
        return False
    try:
        stores = decode_json(read_file(file), file)["stores"].values()
        return not any(entry["sent"] for entry in stores)
    except (ValueError, KeyError, TypeError, AttributeError):
        return True  # it cannot be told


def _size(path: Path) -> int:
    """Bytes of a folder's files, links not followed."""
    return sum(
        (Path(folder) / name).lstat().st_size
        for folder, _, names in os.walk(path)
        for name in names
    )
