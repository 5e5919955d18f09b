"""Curves of goldens, old against new, as pictures in Markdown.

    python ci/curves.py BASE [--json FILE]

Prints a picture for each curve that the working tree's goldens have other than BASE's: Mermaid's
xychart, which GitHub draws in comments and summaries without any file beside them. FILE receives
their numbers for a trusted job, which reads them as data (`read`) and draws them itself (`render`),
since a pull request of a stranger may have written them. Needs nothing but the standard library and
git.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verdict_table import MAX_BYTES, VerdictError

FILE = "golden_curves.json"
MAX_PICTURES = 12
MAX_OF_A_GOLDEN = 3
MAX_POINTS = 60
MAX_GOLDENS = 200
MAX_STEPS = 100_000
MAX_CURVES_BYTES = 1 << 26  # of a golden's file, as golden itself reads it
# What a reviewer looks at first.
_FIRST = ("lm_loss", "grad_norm")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/#-]{0,119}")

Series = Mapping[int, float]


@dataclass(frozen=True)
class Curve:
    """A curve of a golden before and after; a side is empty where it has none."""

    golden: str
    metric: str
    old: Series
    new: Series

    @property
    def common(self) -> list[int]:
        """Steps at which both sides have a number."""
        return sorted(
            step
            for step in self.old.keys() & self.new.keys()
            if math.isfinite(self.old[step]) and math.isfinite(self.new[step])
        )

    @property
    def largest(self) -> tuple[float, int | None]:
        """The largest relative change, and its step; inf where the sides do not share all steps."""
        if len(self.common) < max(len(self.old), len(self.new)):
            return math.inf, None
        return max(((_relative(self.old[s], self.new[s]), s) for s in self.common), default=(0, 0))


@dataclass(frozen=True)
class Changed:
    """What of one golden is drawn, and how many more of its curves differ."""

    golden: str
    drawn: Sequence[Curve]
    more: int


def main() -> int:
    """Prints the pictures; returns 2 when there is no such revision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", metavar="BASE", help="revision with the old goldens")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers")
    options = parser.parse_args()
    try:
        found = choose(changed_curves(options.base))
    except (VerdictError, OSError) as error:
        print(f"curves: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps({"goldens": [_to_json(changed) for changed in found]}))
    if found:
        print(render(found))
    return 0


def changed_curves(base: str) -> list[Curve]:
    """Curves of the working tree's goldens that are other than a revision's.

    A golden from before names were fixed has a digest in them.

    Raises:
        VerdictError: there is no such revision, or a golden's file is damaged.
    """
    root = Path(_git(Path(), "rev-parse", "--show-toplevel").decode().strip())
    _git(root, "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}")
    listed = _git(root, "diff", "--name-only", "-z", base, "--", "goldens").decode().split("\0")
    folders = sorted({name.rsplit("/", 1)[0] for name in listed if name.count("/") >= 3})
    old = _curves_at(root, base, folders)
    found = []
    for folder in folders:
        files = (root / folder).glob("curves*.json")
        now = [path for path in files if path.is_file() and not path.is_symlink()]
        before, after = old.get(folder, {}), _parse(_content(now[0])) if now else {}
        found += [
            Curve(folder.removeprefix("goldens/"), metric, before.get(metric, {}), new)
            for metric, new in {**{m: {} for m in before}, **after}.items()
            if before.get(metric) != new
        ]
    return found


def _content(path: Path) -> bytes:
    if path.stat().st_size > MAX_CURVES_BYTES:
        raise VerdictError(f"{path}: more than {MAX_CURVES_BYTES} bytes")
    return path.read_bytes()


def _curves_at(root: Path, base: str, folders: Sequence[str]) -> dict[str, dict[str, Series]]:
    found = {}
    names = _git(root, "ls-tree", "-r", "-z", "--name-only", base, "--", "goldens").decode()
    for name in names.split("\0"):
        folder, _, file = name.rpartition("/")
        if folder in folders and re.fullmatch(r"curves(\.\w+)?\.json", file):
            found[folder] = _parse(_git(root, "show", f"{base}:{name}"))
    return found


def _git(root: Path, *words: str) -> bytes:
    done = subprocess.run(["git", "-C", root, *words], capture_output=True, check=False)
    if done.returncode:
        raise VerdictError(f"git {' '.join(words)}: {done.stderr.decode().strip()}")
    return done.stdout


def _parse(content: bytes) -> dict[str, Series]:
    """The curves of a golden's `curves.json`; a NaN is one, whatever it was recorded as."""
    try:
        curves = json.loads(content)["curves"]
        return {
            name: dict(zip(curve["steps"], map(float, curve["values"]), strict=True))
            for name, curve in curves.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise VerdictError(f"a golden's curves: {error!r}") from error


def choose(curves: Sequence[Curve]) -> list[Changed]:
    """What a reviewer looks at first, of each golden."""
    goldens: dict[str, list[Curve]] = {}
    for curve in curves:
        goldens.setdefault(curve.golden, []).append(curve)
    found, left = [], MAX_PICTURES
    share = max(1, MAX_PICTURES // max(1, len(goldens)))
    for golden, changed in goldens.items():
        able = sorted((c for c in changed if len(c.common) > 1), key=_urgency)
        drawn = able[: min(MAX_OF_A_GOLDEN, share, left)]
        left -= len(drawn)
        found.append(Changed(golden, drawn, len(changed) - len(drawn)))
    return found


def _to_json(changed: Changed) -> dict[str, Any]:
    def side(series: Series) -> list[Any]:
        return [[s, v if math.isfinite(v) else str(v)] for s, v in series.items()]

    drawn = [{"metric": c.metric, "old": side(c.old), "new": side(c.new)} for c in changed.drawn]
    return {"golden": changed.golden, "more": changed.more, "curves": drawn}


def read(path: Path) -> list[Changed]:
    """Reads numbers that anybody may have written.

    Raises:
        VerdictError: they are not what `--json` writes.
        OSError: they cannot be read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise VerdictError(f"{path.name}: more than {MAX_BYTES} bytes")
    try:
        goldens = json.loads(path.read_text(encoding="utf-8"))["goldens"]
        found = [_changed(entry) for entry in _list(goldens, MAX_GOLDENS)]
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise VerdictError(f"{path.name}: {error}") from error
    if sum(len(changed.drawn) for changed in found) > MAX_PICTURES:
        raise VerdictError(f"{path.name}: more than {MAX_PICTURES} pictures")
    return found


def _changed(entry: Any) -> Changed:
    golden, more = _name(entry["golden"]), entry["more"]
    if isinstance(more, bool) or not isinstance(more, int) or not 0 <= more < 10**6:
        raise VerdictError("more: no number from 0")
    drawn = [
        Curve(golden, _name(curve["metric"]), _series(curve["old"]), _series(curve["new"]))
        for curve in _list(entry["curves"], MAX_OF_A_GOLDEN)
    ]
    if any(len(curve.common) < 2 for curve in drawn):
        raise VerdictError("a picture of less than two steps")
    return Changed(golden, drawn, more)


def _list(value: Any, longest: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > longest:
        raise VerdictError(f"no list of at most {longest}")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise VerdictError("a name: letters, digits, '.', '_', '/', '#' and '-' only")
    return value


def _series(value: Any) -> Series:
    series = {}
    for step, number in _list(value, MAX_STEPS):
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 10**12:
            raise VerdictError("a step: no number from 0")
        if isinstance(number, bool) or not isinstance(number, int | float | str):
            raise VerdictError("a value: no number")
        if isinstance(number, str) and number not in ("nan", "inf", "-inf"):
            raise VerdictError("a value: no number")
        series[step] = float(number)
    return series


def render(goldens: Sequence[Changed]) -> str:
    """Pictures as Markdown."""
    lines = ["### Curves of the changed goldens", "", "⬜ grey: before, 🟥 red: after."]
    for changed in goldens:
        lines += ["", f"**`{_shown(changed.golden)}`**"]
        for curve in changed.drawn:
            lines += ["", *_picture(curve)]
        if changed.more:
            lines += ["", f"{changed.more} more curve(s) of it differ, are new or are gone."]
    return "\n".join(lines)


def _urgency(curve: Curve) -> tuple[int, float, str]:
    first = _FIRST.index(curve.metric) if curve.metric in _FIRST else len(_FIRST)
    return first, -curve.largest[0], curve.metric


def _shown(name: str) -> str:
    """A name that neither ends its place nor is anything but text there."""
    return re.sub(r"[^A-Za-z0-9._/#-]", "?", name)[:120]


def _picture(curve: Curve) -> Iterator[str]:
    """One xychart. Its numbers are decimals alone, so that large and small ones are scaled."""
    steps = _thinned(curve.common)
    old, new = ([series[step] for step in steps] for series in (curve.old, curve.new))
    largest = max(abs(value) for value in (*old, *new))
    power = 3 * math.floor(math.log10(max(largest, 1e-300)) / 3) if largest > 0 else 0
    low, high = min(*old, *new) / 10.0**power, max(*old, *new) / 10.0**power
    room = max(0.05 * (high - low), 1e-5)  # an axis of some length, in six decimals
    unit = f'"x 1e{power}" ' if power else ""
    size, step = curve.largest
    change = "its steps are other" if step is None else f"at most {size:.3g}, at step {step}"
    yield f"`{_shown(curve.metric)}`, relative change: {change}"
    yield ""
    yield "```mermaid"
    yield '%%{init: {"themeVariables": {"xyChart": {"plotColorPalette": "#8c959f, #d1242f"}}}}%%'
    yield "xychart-beta"
    yield f'  title "{_shown(curve.metric)}"'
    if len({b - a for a, b in itertools.pairwise(steps)}) == 1:
        yield f'  x-axis "step" {steps[0]} --> {steps[-1]}'
    else:
        yield f'  x-axis "step" [{", ".join(map(str, steps))}]'
    yield f"  y-axis {unit}{low - room:.6f} --> {high + room:.6f}"
    for values in (old, new):
        yield f"  line [{', '.join(f'{value / 10.0**power:.6f}' for value in values)}]"
    yield "```"


def _thinned(steps: Sequence[int]) -> list[int]:
    """The steps, or some of them with the first and the last."""
    if len(steps) <= MAX_POINTS:
        return list(steps)
    stride = math.ceil((len(steps) - 1) / (MAX_POINTS - 1))
    return [*steps[:-1:stride], steps[-1]]


def _relative(old: float, new: float) -> float:
    if old == new:
        return 0.0
    return abs(new - old) / abs(old) if old else math.inf


if __name__ == "__main__":
    sys.exit(main())
