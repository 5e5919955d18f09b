"""`golden show`: a golden, or a trace, as text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from validation.files import DamagedFileError, jsonable
from validation.goldens import GoldenStore
from validation.goldens.calibrated import RERUNS
from validation.goldens.layout import HEAD
from validation.goldens.merge import describe_head
from validation.limits import MAX_JSON_BYTES
from validation.run_folder import TRACES
from validation.trace import HeldInvariant, Sketch, Trace, load_trace
from validation.trace.storage import HEAD as TRACE_HEAD

_STDIN = "-"
# Of a calibration: a number for each class and step.
_LONG = ("noise", "grains", RERUNS)


def add_commands(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "show",
        help="one golden as text",
        description="Prints a golden as text: provenance, tolerances at their first step, curves. "
        "FILE is a golden.json, a golden's folder, or the folder of a trace.",
        epilog="examples:\n  golden show goldens/cpu/my_case\n"
        "  golden show runs/20260101T000000-cpu-0123456789ab/traces/my_case\n"
        "  git show HEAD:goldens/cpu/my_case/golden.json | golden show -\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="- reads a golden.json from standard input")
    parser.set_defaults(func=show)


def show(options: argparse.Namespace) -> int:
    """Prints a golden or a trace as text.

    Args:
        options: of the command line.

    Returns:
        The exit status, 0.

    Raises:
        DamagedFileError: the file is missing, damaged, or neither.
    """
    if options.file == _STDIN:
        content = sys.stdin.buffer.read(MAX_JSON_BYTES + 1)
        print("\n".join(describe_head(Path("standard input"), content)))
        return 0
    path = Path(options.file)
    print("\n".join(_of_folder(path) if path.is_dir() else _of_file(path)))
    return 0


def _of_folder(folder: Path) -> list[str]:
    """A folder's golden or trace.

    Raises:
        DamagedFileError: it has neither, or a damaged one.
    """
    if (folder / TRACE_HEAD).exists():
        trace = load_trace(folder)
        return [f"case: {trace.case}", *_described(trace)]
    if (folder / HEAD).exists():
        return _of_file(folder / HEAD)
    traces = sorted(head.parent for head in folder.glob(f"{TRACES}/*/{TRACE_HEAD}"))
    if traces:
        raise DamagedFileError(f"{folder}: a run folder; show one trace of it, such as {traces[0]}")
    raise DamagedFileError(f"{folder}: neither a golden's folder nor a trace's")


def _of_file(path: Path) -> list[str]:
    """A file's golden: all of it where it stands among goldens, else the head alone."""
    place = path.resolve()
    store = next((p for p in place.parents if p.name == "goldens"), None)
    parts = () if store is None else place.parent.relative_to(store).parts
    if store is None or place.name != HEAD or len(parts) not in (2, 3) or not path.exists():
        return describe_head(path)
    golden = GoldenStore(store).load(*parts)
    return [
        f"case: {golden.case}",
        *(f"accepted: {k}: {v}" for k, v in golden.accepted.items()),
        *(f"calibration: {k}: {v}" for k, v in golden.calibration.items() if k not in _LONG),
        *(f"detects: {k}: {v!r}" for k, v in golden.detectable_effect.items()),
        *(
            f"canary: {name}: caught at {p.place} in {p.steps} steps, margin {p.margin!r}"
            for name, p in golden.canaries.proofs.items()
        ),
        *_described(golden.trace),
    ]


def _described(trace: Trace) -> Iterator[str]:
    for name, value in sorted(trace.provenance.items()):
        yield f"{name}: {json.dumps(jsonable(value), sort_keys=True)}"
    for curve, series in trace.curves.items():
        values = ", ".join(f"{step}: {value!r}" for step, value in series.items())
        yield f"curve {curve}: {values}"
    for table, rows in trace.tables.items():
        yield f"table {table}: {json.dumps(rows)}"
    for event in trace.events:
        key = event.key
        place = f"step {key.step}.{key.micro_batch} {key.phase} {key.module} {key.tensor}"
        rank = f" rank {key.rank}" if key.rank else ""
        value = event.value
        if isinstance(value, Sketch):
            text = f"{value.digest} norm {value.norm!r}"
        else:
            text = json.dumps(value.to_json() if isinstance(value, HeldInvariant) else value)
        yield f"event {place}{rank}: {text}"
