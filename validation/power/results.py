"""Results of the kill matrix's finished runs, kept so that an interrupted matrix can go on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from validation.cases import Fault
from validation.compare import Divergence
from validation.files import digest, encode_json
from validation.power.ledger import Ledger, StateError, module_file
from validation.power.matrix import Harmless, Kill, Pass, Sighting
from validation.trace import RecordKind

# What describes a bug, and does not decide what is run.
_DESCRIPTION = ("id", "category", "component", "imitates", "canary", "no_op", "lanes", "case_on")


class Results:
    """Finished runs by what decides them: what is planted, the files that plant it, and where.

    Args:
        path: of the ledger.
        state: of everything else that decides them, see `validation.power.ledger.state_of`; results
            of another one are thrown away.
        lane: where the bugs are planted.
        full: whether every case is tried.
        resume: whether earlier results count; otherwise they are made anew.
    """

    def __init__(
        self,
        path: Path,
        state: Mapping[str, Any],
        *,
        lane: str,
        full: bool = False,
        resume: bool = False,
    ) -> None:
        self._lane, self._full = lane, full
        self._ledger = _opened(path, state)
        self._found = {entry["key"]: entry for entry in self._ledger.entries} if resume else {}

    def kill(self, fault: Fault) -> Kill | None:
        """What became of a fault, if it was planted before."""
        entry = self._found.get(self._key_of_fault(fault))
        if entry is None:
            return None
        sightings = tuple(
            Sighting(
                seen["case"],
                Divergence.from_json(seen["first"], RecordKind(seen["kind"])),
                # Results from before margins were recorded have none; infinity is kept as "inf".
                None if seen.get("margin") is None else float(seen["margin"]),
                seen.get("steps"),
            )
            for seen in entry["sightings"]
        )
        return Kill(fault, sightings, entry["tried"], entry["note"], entry["differs"])

    def keep_kill(self, kill: Kill) -> None:
        """Keeps what became of a fault."""
        sightings = [
            {
                "case": seen.case,
                "first": seen.first.to_json(),
                "kind": seen.first.kind,
                "margin": seen.margin,
                "steps": seen.steps,
            }
            for seen in kill.sightings
        ]
        entry = {"tried": kill.tried, "note": kill.note, "differs": kill.differs}
        self._keep(self._key_of_fault(kill.fault), {**entry, "sightings": sightings})

    def passes(self, entry: Harmless) -> list[Pass] | None:
        """What became of plants that must pass, if they were planted before."""
        found = self._found.get(self._key_of_passes(entry))
        return None if found is None else [Pass(**done) for done in found["passes"]]

    def keep_passes(self, entry: Harmless, found: Sequence[Pass]) -> None:
        """Keeps what became of plants that must pass."""
        self._keep(self._key_of_passes(entry), {"passes": [asdict(done) for done in found]})

    def _keep(self, key: str, entry: Mapping[str, Any]) -> None:
        self._ledger.append({"key": key, **entry})

    def _key_of_fault(self, fault: Fault) -> str:
        run = {name: value for name, value in asdict(fault).items() if name not in _DESCRIPTION}
        decided = {**run, "case": fault.shown_by(self._lane), "full": self._full}
        return _key(decided, [fault.plant])

    def _key_of_passes(self, entry: Harmless) -> str:
        return _key(asdict(entry), [plant for plant in entry.ids.values() if plant is not None])


def _opened(path: Path, state: Mapping[str, Any]) -> Ledger:
    try:
        return Ledger(path, state)
    except StateError:
        path.unlink()
        return Ledger(path, state)


def _key(decided: Mapping[str, Any], plants: Iterable[str]) -> str:
    files = {plant: module_file(plant) for plant in plants}
    digests = {plant: digest(file.read_bytes()) for plant, file in files.items() if file}
    return digest(encode_json({**decided, "files": digests}))
