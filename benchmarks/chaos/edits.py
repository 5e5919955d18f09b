"""Edits of files: of goldens, as the gate reads them, and of runs, as acceptance reads them.

An edit needs no process: the gate's own code judges a run that was made before. The edits that keep
every digest right are those of somebody who means it; the others are what disks and merges do.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.chaos.attempt import LOST, WRONG, Attempt, Skipped
from benchmarks.chaos.oracle import case_result, health
from benchmarks.chaos.repository import CASES, LANE, State
from validation.files import DamagedFileError, digest, encode_json
from validation.gate.quarantine import load_quarantine
from validation.gate.verdict import Verdict
from validation.gate.verdict_file import read_verdict
from validation.goldens import GoldenStore
from validation.goldens.acceptance import RefusedError, load_runs, propose
from validation.trace.storage import CURVES, EVENTS, PROJECTION_FILE, TABLES

FILES = (CURVES, EVENTS, TABLES, PROJECTION_FILE)
DAMAGED, MOVED, SAME, ANY = "damaged", "moved", "same", "any"
"""What an edit makes of a file: no golden, another one, the same, or one of these."""

_DEEP = 100_000


@dataclass(frozen=True)
class Edited:
    """What an edit has done.

    Attributes:
        text: in words.
        means: what it makes of the file.
    """

    text: str
    means: str


# --- what happens to files -------------------------------------------------------------------

Edit = Callable[[Path, Path, Random], Edited]
"""Edits a folder of files, given its head's name there, and another such folder."""


def flip(folder: Path, other: Path, random: Random) -> Edited:
    """Flips bits of a file."""
    path = _any_file(folder, random)
    content = bytearray(path.read_bytes())
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return _replaced(path, bytes(content), "bits flipped")


def truncate(folder: Path, other: Path, random: Random) -> Edited:
    """Cuts a file."""
    path = _any_file(folder, random)
    content = path.read_bytes()
    kept = random.choice((0, 1, len(content) - 1, random.randrange(len(content))))
    return _replaced(path, content[:kept], f"cut to {kept} bytes")


def append(folder: Path, other: Path, random: Random) -> Edited:
    """Adds bytes to a file."""
    path = _any_file(folder, random)
    more = random.choice((b"\0", b"}", b"<<<<<<< HEAD\n", random.randbytes(64)))
    return _replaced(path, path.read_bytes() + more, "bytes appended")


def zero(folder: Path, other: Path, random: Random) -> Edited:
    """Fills part of a file with zeros, as a crashed disk does."""
    path = _any_file(folder, random)
    content = bytearray(path.read_bytes())
    start = random.randrange(len(content))
    content[start:] = bytes(len(content) - start)
    return _replaced(path, bytes(content), f"zeros from byte {start}")


def delete(folder: Path, other: Path, random: Random) -> Edited:
    """Deletes a file."""
    path = _any_file(folder, random)
    path.unlink()
    return Edited(f"{path.name} deleted", _gone(path))


def swap(folder: Path, other: Path, random: Random) -> Edited:
    """Exchanges a file for another of the folder, or for the same of another case."""
    path = _any_file(folder, random)
    if random.random() < 0.5:
        source = other / path.name
    else:
        source = folder / random.choice([name for name in FILES if name != path.name])
    return _replaced(path, source.read_bytes(), f"replaced by {source.parent.name}/{source.name}")


def swap_all(folder: Path, other: Path, random: Random) -> Edited:
    """Exchanges all files for those of another case."""
    for path in _all_files(folder):
        shutil.copy(other / path.name, path)
    return Edited("every file replaced by those of another case", DAMAGED)


def no_file(folder: Path, other: Path, random: Random) -> Edited:
    """Puts something that is no file in its place."""
    path = _any_file(folder, random)
    path.unlink()
    what = random.choice(("a folder", "a pipe", "/dev/zero", "a dangling link", "a link to itself"))
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    else:
        targets = {"/dev/zero": "/dev/zero", "a dangling link": "nowhere"}
        path.symlink_to(targets.get(what, path.name))
    return Edited(f"{path.name} is {what}", _gone(path))


def head_edit(folder: Path, other: Path, random: Random) -> Edited:
    """Changes a value of the head, whose digest does not follow."""
    path = _head(folder)
    document = json.loads(path.read_bytes())
    name = _wrong_value(document, random)
    # A trace's head has no digest of its own: what it says of the run is not compared.
    means = DAMAGED if path.name == "golden.json" else ANY
    path.write_bytes(encode_json(document))
    return Edited(f"{path.name}: {name}", means)


# --- by somebody who means it: digests are right ---------------------------------------------


def move_curve(folder: Path, other: Path, random: Random) -> Edited:
    """Moves a value of a curve beyond any tolerance."""
    document = json.loads((folder / CURVES).read_bytes())
    series = document["curves"][random.choice(sorted(document["curves"]))]
    place = random.randrange(len(series["values"]))
    was = series["values"][place]
    becomes = random.choice(
        (was * 1.01, -was, 0.0, 5e-324, 1.7e308, "nan", "inf", "-inf", 10**400, was * (1 + 1e-4))
    )
    series["values"][place] = becomes
    return _sealed(
        folder, CURVES, json.dumps(document).encode(), f"{was} -> {becomes!s:.20}", MOVED
    )


def move_events(folder: Path, other: Path, random: Random) -> Edited:
    """Changes, drops, doubles or renames discrete records."""
    document = json.loads((folder / EVENTS).read_bytes())
    rows = document["events"]
    place = random.randrange(len(rows))
    what = random.choice(("value", "dropped", "doubled", "renamed", "step", "rank", "all gone"))
    if what == "value":
        rows[place][-1] = random.choice((rows[place][-1] + 1, None, True, "7", [], {}, 7.0, 10**30))
    elif what == "dropped":
        del rows[place]
    elif what == "doubled":
        rows.append(rows[place])
    elif what == "renamed":
        rows[place][3] = "other"
    elif what == "step":
        rows[place][0] += random.choice((100, -100, 10**30))
    elif what == "rank":
        rows[place][5] += 7
    else:
        rows.clear()
    return _sealed(folder, EVENTS, json.dumps(document).encode(), f"a record: {what}", MOVED)


def move_table(folder: Path, other: Path, random: Random) -> Edited:
    """Changes a table."""
    document = json.loads((folder / TABLES).read_bytes())
    name = random.choice(sorted(document["tables"]))
    rows = document["tables"][name]
    what = random.choice(("value", "float", "bool", "row", "gone"))
    if what == "value":
        rows[0][0] += 1
    elif what == "float":
        rows[0][0] = float(rows[0][0])
    elif what == "bool":
        rows[0][0] = True
    elif what == "row":
        rows.append([0, 0])
    else:
        del document["tables"][name]
    return _sealed(folder, TABLES, json.dumps(document).encode(), f"table: {what}", MOVED)


def double_key(folder: Path, other: Path, random: Random) -> Edited:
    """Says something twice: a reader sees the one, the gate the other."""
    name = random.choice((CURVES, EVENTS, TABLES))
    text = (folder / name).read_text()
    inner = {CURVES: "curves", EVENTS: "events", TABLES: "tables"}[name]
    if name == CURVES and random.random() < 0.5:
        text = text.replace('"values": [', '"values": [9.0, 9.0], "values": [', 1)
    else:
        empty = "[]" if name == EVENTS else "{}"
        text = text.replace(f'"{inner}": ', f'"{inner}": {empty}, "{inner}": ', 1)
    return _sealed(folder, name, text.encode(), "a key twice", DAMAGED)


def double_key_of_head(folder: Path, other: Path, random: Random) -> Edited:
    """Says something twice in the head, whose digest is of what is read."""
    path = _head(folder)
    text = path.read_text()
    key = random.choice(('"case"', '"files"', '"provenance"', '"schema"'))
    path.write_text(text.replace(f"\n {key}:", f'\n {key}: "something else",\n {key}:', 1))
    return Edited(f"{path.name}: {key} twice", DAMAGED)


def nested(folder: Path, other: Path, random: Random) -> Edited:
    """Nests lists or objects without end."""
    name = random.choice((CURVES, EVENTS, TABLES))
    inner = {CURVES: "curves", EVENTS: "events", TABLES: "tables"}[name]
    begin, end = random.choice((("[", "]"), ('{"a": ', "}")))
    deep = random.choice((900, _DEEP))
    middle = begin * deep + "1" + end * deep
    text = f'{{"schema": 1, "{inner}": {middle}}}'
    if name == EVENTS and random.random() < 0.5:
        text = f'{{"schema": 1, "events": [[1, 0, 0, "m", "", 0, 0, "d", {middle}]]}}'
    return _sealed(folder, name, text.encode(), f"{deep} levels deep", MOVED)


def odd_json(folder: Path, other: Path, random: Random) -> Edited:
    """JSON that is odd, or none."""
    name = random.choice((CURVES, EVENTS, TABLES))
    content = random.choice(
        (
            b"",
            b"null",
            b"[]",
            b'"text"',
            b"\xef\xbb\xbf{}",
            b"{}",
            b'{"schema": 1}',
            b'{"schema": true, "curves": {}, "events": [], "tables": {}}',
            b'{"schema": 1.0, "curves": {}, "events": [], "tables": {}}',
            b'{"schema": 2, "curves": {}, "events": [], "tables": {}}',
            b'{"schema": 1, "curves": [], "events": {}, "tables": 7}',
            b'{"schema": 1, "curves": {"\\ud800": {}}, "events": [[]], "tables": {"x": [7]}}',
            b'{"schema": 1, "curves": {"lm_loss": null}, "events": [null], "tables": {"x": null}}',
            b'{"schema": 1, "curves": NaN, "events": NaN, "tables": NaN}',
            b'{"schema": 1, "events": [[1, 0, 99, "m", "", 0, 0, "d", 1]], '
            b'"curves": {"c": {"phase": "no such", "steps": [1], "values": [1]}}, '
            b'"tables": {"x": [[{}]]}}',
            b'{"schema": 1, "events": [[1, 0, 0, "m", "", 0, 0, "s", 1]], "tables": {"x": [[[]]]}, '
            b'"curves": {"c": {"phase": [], "steps": [1], "values": [1]}}}',
            b'{"schema": 1, "curves": {"c": {"phase": "data", "steps": [1e3], "values": [1]}}, '
            b'"events": [[1, 0, -1, {}, [], 0, 0, {}, 1]], "tables": {"": [[]]}}',
            "{}".encode("utf-16"),
            (folder / name).read_bytes().replace(b"1", b"9" * 5000, 1),
        )
    )
    return _sealed(folder, name, content, f"{content[:40]!r}", MOVED)


def odd_projections(folder: Path, other: Path, random: Random) -> Edited:
    """A file of projections that is none, or of other sizes."""
    header = random.choice(
        (
            b"",
            b"{}",
            b"[]",
            b'{"projections": {"dtype": "F32", "shape": [-1, 24], "data_offsets": [0, 0]}}',
            b'{"projections": {"dtype": "F32", "shape": [1, 24], "data_offsets": [0, 96]}}',
            b'{"projections": {"dtype": "F32", "shape": [1e9, 24], "data_offsets": [0, 0]}}',
            b'{"projections": {"dtype": "F64", "shape": [0, 24], "data_offsets": [0, 0]}}',
            b'{"projections": {"dtype": "F32", "shape": [0, 24, 1], "data_offsets": [0, 0]}}',
            b'{"projections": ' + b"[" * 2000 + b"]" * 2000 + b"}",
            b"\xff" * 16,
        )
    )
    length = random.choice((len(header), len(header), 2**63, 0, len(header) + 1))
    content = struct.pack("<Q", length) + header + bytes(random.choice((0, 0, 95, 96)))
    return _sealed(folder, PROJECTION_FILE, content, f"header {header[:40]!r}", MOVED)


def same_content(folder: Path, other: Path, random: Random) -> Edited:
    """Writes the same records in another way, digests included."""
    name = random.choice((CURVES, EVENTS, TABLES))
    document = json.loads((folder / name).read_bytes())
    content = json.dumps(document, indent=random.choice((None, 1, 4))).encode() + b"\n" * 3
    return _sealed(folder, name, content, "written in another way", SAME)


def beside(folder: Path, other: Path, random: Random) -> Edited:
    """Puts something beside the files, which belongs to nobody."""
    name = random.choice(("notes.txt", ".curves.json.ab12cd34", "curves (1).json", "curves.json~"))
    (folder / name).write_bytes(b"something")
    return Edited(f"{name} beside the files", SAME)


_HARMING: tuple[Edit, ...] = (
    flip, flip, truncate, append, zero, delete, swap, swap_all, no_file, head_edit,
    move_curve, move_curve, move_events, move_events, move_table, double_key, double_key_of_head,
    nested, odd_json, odd_json, odd_projections,
)  # fmt: skip
_HARMLESS: tuple[Edit, ...] = (same_content, beside)


def _head(folder: Path) -> Path:
    golden = folder / "golden.json"
    return golden if golden.exists() else folder / "trace.json"


def _all_files(folder: Path) -> list[Path]:
    return [_head(folder), *(folder / name for name in FILES)]


def _any_file(folder: Path, random: Random) -> Path:
    return random.choice(_all_files(folder))


def _gone(path: Path) -> str:
    """What a file that is gone makes of its folder: without a head there is no run to offer."""
    return ANY if path.name == "trace.json" else DAMAGED


def _replaced(path: Path, content: bytes, text: str) -> Edited:
    """Writes a file whose digest does not follow."""
    before = path.read_bytes()
    path.write_bytes(content)
    same = content == before or (
        path.name in ("golden.json", "trace.json")
        and (_plain(content) == _plain(before) is not None)
    )
    # A trace's head has no digest of its own.
    means = SAME if same else ANY if path.name == "trace.json" else DAMAGED
    return Edited(f"{path.name}: {text}", means)


def _plain(content: bytes) -> Any:
    """What JSON says, by a reader that refuses what can be read in two ways; None of no JSON."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    try:
        return json.loads(content, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None


def _sealed(folder: Path, name: str, content: bytes, text: str, means: str) -> Edited:
    """Writes a file, and the digests of it and of the head."""
    (folder / name).write_bytes(content)
    path = _head(folder)
    head = json.loads(path.read_bytes())
    head["files"][name] = digest(content)
    if "digest" in head:
        head.pop("digest")
        head["digest"] = digest(encode_json(head))
    path.write_bytes(encode_json(head))
    return Edited(f"{name}: {text}, digests right", means)


def _wrong_value(document: dict[str, Any], random: Random) -> str:
    """Changes any value of a document; returns where."""
    name = random.choice(sorted(document))
    if isinstance(document[name], dict) and document[name] and random.random() < 0.7:
        return f"{name}.{_wrong_value(document[name], random)}"
    wrong = [None, 7, "x", [], {}, True, 1e308, -1, "../../etc"]
    document[name] = random.choice([value for value in wrong if value != document[name]])
    return f"{name} = {document[name]!r}"


# --- what the gate says ----------------------------------------------------------------------


def edit_golden(attempt: Attempt) -> None:
    """A golden is edited, then judges the run that it was accepted from."""
    random, state = attempt.random, attempt.states.calm
    case = random.choice(CASES)
    root = _light_copy(state, attempt.folder)
    folder, other = (root / "goldens" / LANE / name for name in (case, _other(case)))
    edited = random.choice((*_HARMING, *_HARMLESS))(folder, other, random)
    attempt.did = f"golden {case}: {edited.text}"
    verdict = case_result(attempt, state, root, case).verdict
    allowed = {
        DAMAGED: {Verdict.INVALID},
        MOVED: {Verdict.FAIL, Verdict.INVALID},
        SAME: {Verdict.PASS},
        ANY: set(Verdict),
    }[edited.means]
    if verdict not in allowed:
        attempt.blame(WRONG, f"{verdict}; {' or '.join(sorted(allowed))} is right")
    found = health(attempt, root)
    if edited.means == DAMAGED and not found:
        attempt.blame(WRONG, "health finds nothing")


def edit_run(attempt: Attempt) -> None:
    """A run is edited, then offered for acceptance: refused, or what it shows is its content."""
    random, state = attempt.random, attempt.states.changed
    case = random.choice(CASES)
    # The sources as well: acceptance holds the run against them.
    root = state.copy(attempt.folder)
    traces = root / state.run / "traces"
    edited = random.choice((*_HARMING, *_HARMLESS))(traces / case, traces / _other(case), random)
    attempt.did = f"run of {case}: {edited.text}"
    store = GoldenStore(root / "goldens")
    try:
        for lane, trace in load_runs([root / state.run], root, attempt.states.cases, []):
            propose(store, lane, trace).describe()
    except (RefusedError, DamagedFileError):
        if edited.means == SAME:
            attempt.blame(WRONG, "refused")
        return
    if edited.means == DAMAGED:
        attempt.blame(WRONG, "a damaged run was taken")


def edit_verdict(attempt: Attempt) -> None:
    """A verdict, an audit file, a quarantine is edited: read, or refused in words."""
    random, state = attempt.random, attempt.states.calm
    root = state.copy(attempt.folder)
    run = root / state.run
    quarantine = root / "goldens" / "quarantine.json"
    today = datetime.now(UTC).date().isoformat()
    entry = {"case": CASES[1], "owner": "ada", "issue": "none", "added": today, "expires": today}
    quarantine.write_bytes(encode_json({"schema": 1, "entries": [entry]}))
    audits = sorted((root / "goldens" / "audit").iterdir())
    path = random.choice((run / "verdict.json", quarantine, *audits))
    document = json.loads(path.read_bytes())
    text = _wrong_value(document, random)
    if random.random() < 0.3:
        content = bytearray(path.read_bytes())
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        path.write_bytes(content)
        text = "a bit flipped"
    else:
        path.write_bytes(encode_json(document))
    attempt.did = f"{path.name}: {text}"
    for read in (
        lambda: read_verdict(run),
        lambda: health(attempt, root),
        lambda: load_quarantine(root / "goldens"),
    ):
        try:
            read()
        except DamagedFileError:
            continue
        except Exception as error:
            attempt.blame(WRONG, f"{type(error).__name__}: {error}")
    try:
        # An audit file that was edited proves no tolerance any more.
        right = {Verdict.PASS, Verdict.INVALID} if path in audits else {Verdict.PASS}
        if case_result(attempt, state, root, CASES[0]).verdict not in right:
            attempt.blame(WRONG, "a harmless edit moves the verdict of a case")
    except DamagedFileError as error:
        attempt.blame(LOST, str(error))


def tensors(attempt: Attempt) -> None:
    """Tensors of NaN, infinities, denormals and huge numbers are sketched and compared."""
    if importlib.util.find_spec("torch") is None:
        raise Skipped("torch is not installed")
    import torch

    from validation.compare import Tolerances, compare
    from validation.trace import Event, Key, Trace, event_class
    from validation.trace.sketch import sketch

    random = attempt.random
    size = random.choice((1, 7, 24, 6144, 10_000))
    dtype = random.choice((torch.float32, torch.float64, torch.bfloat16, torch.float16))
    kind = random.choice(("denormal", "huge", "zero", "ordinary", "nan", "inf"))
    source = torch.Generator().manual_seed(random.getrandbits(32))
    values = torch.randn(size, generator=source, dtype=torch.float64)
    scale = {
        "denormal": torch.finfo(dtype).tiny / 4,
        "huge": torch.finfo(dtype).max / 8,
        "zero": 0.0,
    }
    tensor = (values * scale.get(kind, 1.0)).to(dtype)
    if kind in ("nan", "inf"):
        tensor[random.randrange(size)] = float(kind)
    moved = tensor.clone()
    if kind not in ("nan", "inf"):
        place = random.randrange(size)
        moved[place] = (
            float("nan")
            if random.random() < 0.3
            else moved[place] * 1.5
            + (torch.finfo(dtype).tiny if kind in ("denormal", "zero") else 0)
        )
    key = Key(1, 0, "forward", "m", "output")
    made = [Trace("t", {}, [Event(key, sketch(t))]) for t in (tensor, tensor.clone(), moved)]
    allowed = Tolerances({event_class(key): {1: 1e-6}})
    attempt.did = f"tensor of {size} {dtype}: {kind}"
    not_finite = not bool(torch.isfinite(tensor).all())
    same = not compare(made[0], made[1], allowed).divergences
    if same is not_finite:
        attempt.blame(WRONG, f"the same tensor {'passes' if same else 'fails'}")
    # Huge numbers and zeros are whole scales apart, one of many ordinary ones is not.
    differs = not torch.equal(tensor, moved) and (size <= 24 or kind in ("denormal", "zero"))
    if differs and not compare(made[0], made[2], allowed).divergences:
        attempt.blame(WRONG, "another tensor passes")


def _other(case: str) -> str:
    return next(name for name in CASES if name != case)


def _light_copy(state: State, folder: Path) -> Path:
    """Goldens and declaration alone: all that the gate reads of a repository here."""
    root = folder / "repository"
    root.mkdir()
    shutil.copytree(state.root / "goldens", root / "goldens")
    for name in ("pyproject.toml", "golden_cases.py", "loop.py"):
        shutil.copy(state.root / name, root / name)
    return root


KINDS = {
    "edit-golden": edit_golden,
    "edit-run": edit_run,
    "edit-verdict": edit_verdict,
    "tensors": tensors,
}
