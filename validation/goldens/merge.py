"""Goldens in git: the merge driver, the text of diffs, and their setup in a clone.

A golden that both sides of a merge have accepted belongs to neither merged tree. The driver picks
no side: it leaves a conflict, and a `golden.json` that names both acceptances, which is INVALID
until `golden rebase` has recorded the merged code, before the merge is committed or after.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from validation.files import (
    SCHEMA,
    DamagedFileError,
    decode_json,
    digest,
    encode_json,
    read_file,
    write_atomically,
)
from validation.goldens.canaries import KEY
from validation.running.source import git

ATTRIBUTES = (
    "goldens/*/*/** -merge",
    "goldens/**/golden.json merge=golden diff=golden",
)
"""Lines of `.gitattributes`, the last that fits decides: git never merges a golden's records by
lines, and asks the driver about its head."""
_CONFLICT = "conflict"
_MARKERS = (b"<<<<<<<", b">>>>>>>")


class ConflictedGoldenError(DamagedFileError):
    """A golden that two branches accepted; the message names both acceptances."""


def merge_heads(base: Path, ours: Path, theirs: Path) -> bool:
    """The merge driver's work: replaces `ours` by a head that names both acceptances.

    Canaries alone are no acceptance. Where one side has changed nothing else, the other side's head
    stands; where neither has, both lists are joined.

    Args:
        base: the common ancestor's `golden.json`; empty when both sides added it.
        ours: this branch's, overwritten.
        theirs: the other branch's.

    Returns:
        Whether the merge is settled; False leaves git's conflict.
    """
    mine, other, before = _head(ours), _head(theirs), _head(base)
    if _accepted(mine) == _accepted(other):
        write_atomically(ours, encode_json(_joined(mine, other)))
        return True
    if before and _accepted(before) == _accepted(mine):
        write_atomically(ours, read_file(theirs))
        return True
    if before and _accepted(before) == _accepted(other):
        return True
    write_atomically(
        ours,
        encode_json(
            {
                "schema": SCHEMA,
                "case": mine.get("case") or other.get("case"),
                "lane": mine.get("lane") or other.get("lane"),
                _CONFLICT: {"base": before, "ours": mine, "theirs": other},
            }
        ),
    )
    return False


def refuse_conflict(path: Path, content: bytes, case: str) -> None:
    """Raises `ConflictedGoldenError` when a `golden.json` holds a merge of two acceptances.

    Args:
        path: of the file, for the message.
        content: its bytes, which need not be JSON.
        case: its name, for the command to run.

    Raises:
        ConflictedGoldenError: the golden was accepted on both sides of a merge.
    """
    sides = conflict_reasons(path, content)
    if sides is None:
        return
    reasons = "; ".join(f"{name}: {reason!r}" for name, reason in sides)
    raise ConflictedGoldenError(
        f"{path}: two branches accepted this golden ({reasons}); "
        f"record the merged code with `golden rebase {case}`"
    )


def conflict_reasons(path: Path, content: bytes) -> list[tuple[str, str]] | None:
    """The (side, reason) of both acceptances in a merged `golden.json`; None when not merged."""
    if any(marker in content for marker in _MARKERS):
        found = re.findall(rb'"reason": "((?:[^"\\]|\\.)*)"', content)
        reasons = [reason.decode(errors="replace") for reason in found]
        return [("one", reasons[0]), ("other", reasons[-1])] if reasons else [("both", "unknown")]
    try:
        conflict = decode_json(content, path).get(_CONFLICT)
    except DamagedFileError:
        return None
    if not isinstance(conflict, dict):
        return None
    return [(side, _reason(conflict.get(side))) for side in ("ours", "theirs")]


def conflicting_heads(path: Path) -> Mapping[str, Any]:
    """Both heads of a conflict that the driver wrote, by side; empty for git's own markers."""
    try:
        conflict = decode_json(read_file(path), path).get(_CONFLICT)
    except DamagedFileError:
        return {}
    return conflict if isinstance(conflict, dict) else {}


def describe_head(path: Path, content: bytes | None = None) -> list[str]:
    """Describes a `golden.json` alone in lines, one of a merge included: what git's diff compares.

    Args:
        path: of the file, for messages at least.
        content: what it holds; None reads it.

    Returns:
        The lines.

    Raises:
        DamagedFileError: missing, or not JSON; the message begins with `path`.
    """
    content = read_file(path) if content is None else content
    sides = conflict_reasons(path, content)
    if sides is not None:
        return ["accepted on both sides of a merge:", *(f"  {s}: {reason}" for s, reason in sides)]
    return [
        line
        for name, value in decode_json(content, path).items()
        for line in (
            [f"{name}: {part}: {json.dumps(value[part])}" for part in sorted(value)]
            if isinstance(value, dict)
            else [f"{name}: {json.dumps(value)}"]
        )
    ]


def set_up(root: Path, python: str = sys.executable) -> list[str]:
    """Tells this clone's git how goldens merge and diff.

    The drivers name the interpreter, since git runs them outside of the environment as well, and
    leave the work to git alone where `golden` is gone or fails. `.gitattributes` is committed once
    for everybody; git's configuration is each clone's own.

    Args:
        root: the repository.
        python: an interpreter that has this package.

    Returns:
        What was done, in lines.
    """
    # -P: in a merge or a bisection the checkout's own `validation` may be any.
    golden = f"{shlex.quote(python)} -P -m validation.cli"
    text = f'{golden} show - <"$1" 2>/dev/null || cat "$1"'
    plain_merge = "git merge-file -L ours -L base -L theirs %A %O %B"
    done = []
    for name, value in (
        ("merge.golden.name", "mark goldens that both sides accepted"),
        ("merge.golden.driver", f"{golden} merge-driver %O %A %B || {plain_merge}"),
        ("diff.golden.textconv", f"sh -c {shlex.quote(text)} golden"),
    ):
        git(root, "config", name, value)
        done.append(f"git config {name} {shlex.quote(value)}")
    attributes = root / ".gitattributes"
    lines = attributes.read_text().splitlines() if attributes.exists() else []
    if [line for line in lines if line in ATTRIBUTES] != list(ATTRIBUTES):
        lines = [line for line in lines if line not in ATTRIBUTES] + list(ATTRIBUTES)
        write_atomically(attributes, "".join(f"{line}\n" for line in lines).encode())
        done.append(f"{attributes.name}: {'; '.join(ATTRIBUTES)} (commit it)")
    return done


def _accepted(head: Mapping[str, Any]) -> dict[str, Any]:
    """What of a head was accepted or measured: everything but its canaries."""
    return {name: value for name, value in head.items() if name not in (KEY, "digest")}


def _joined(mine: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """One head of two that differ in their canaries at most, of which it has both sides'."""
    lists = [head[KEY] for head in (other, mine) if head.get(KEY)]
    rest = _accepted(mine)
    if lists:
        # Proofs against something else than the rest count for nothing, in either list.
        known = [x for x in lists if x["proven_against"] == lists[-1]["proven_against"]]
        faults = {name: proof for x in known for name, proof in x["faults"].items()}
        rest[KEY] = {**lists[-1], "faults": faults}
    return {**rest, "digest": digest(encode_json(rest))}


def _head(path: Path) -> dict[str, Any]:
    """A side's head, or what can be told of one that cannot be read."""
    content = read_file(path)
    if not content:
        return {}
    try:
        return decode_json(content, path)
    except DamagedFileError as error:
        return {"damaged": str(error)}


def _reason(head: Any) -> str:
    accepted = head.get("accepted") if isinstance(head, dict) else None
    if isinstance(accepted, dict) and accepted.get("reason"):
        return str(accepted["reason"])
    return "unknown"
