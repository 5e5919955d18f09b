"""A divergence: one record that differs, and where in the run it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from validation.files import jsonable
from validation.trace.model import CurveKey, RecordKind, TableKey


@dataclass(frozen=True)
class Divergence:
    """The first record, in execution order, that differs beyond its tolerance.

    Attributes:
        step: training step, from 1; 0 before training; None outside of it.
        micro_batch: within the step, from 0.
        phase: data, init, forward, backward, reduction, optimizer or resume.
        module: fully qualified name; `training` for curves, their name for tables.
        tensor: tensor of the module, or metric of the curve; `table` for tables.
        rank: global rank; None for a table of the first rank.
        offset: index of the first differing element of a discrete sequence.
        expected: the golden's value.
        actual: the run's value.
        relative_error: distance relative to the golden; None for discrete records.
        tolerance: what it was allowed to be; None for discrete records.
        kind: of the record; None where it was read from `verdict.json`, which does not say it.
    """

    step: int | None = None
    micro_batch: int | None = None
    phase: str | None = None
    module: str | None = None
    tensor: str | None = None
    rank: int | None = None
    offset: int | None = None
    expected: Any = None
    actual: Any = None
    relative_error: float | None = None
    tolerance: float | None = None
    kind: RecordKind | None = None

    @property
    def name(self) -> str:
        """What the record is called, whatever the step, as people write it."""
        if self.kind is RecordKind.CURVE:
            return str(CurveKey(str(self.tensor), self.rank or 0))
        if self.kind is RecordKind.TABLE:
            return str(TableKey(str(self.module), self.rank or 0))
        return ".".join(part for part in (self.module, self.tensor) if part)

    @property
    def place(self) -> str:
        """Where it is in one line, outermost first; names are as the trace has them."""
        parts = []
        if self.step is not None:
            parts.append(f"step {self.step}")
        if self.micro_batch is not None:
            parts.append(f"micro-batch {self.micro_batch}")
        parts += [str(part) for part in (self.phase, self.module, self.tensor) if part]
        if self.rank is not None:
            parts.append(f"rank {self.rank}")
        if self.offset is not None:
            parts.append(f"offset {self.offset}")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """The contract's `first_divergence` object."""
        return {name: jsonable(getattr(self, name)) for name in _CONTRACT}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], kind: RecordKind | None = None) -> Divergence:
        """Reads the contract's JSON object of a divergence; keys that are not its own are left out.

        Args:
            document: the object.
            kind: of the record, which the object does not say.

        Returns:
            The divergence.
        """
        return cls(**{name: document.get(name) for name in _CONTRACT}, kind=kind)


# The keys of the contract's object; the kind of a record is for this program alone.
_CONTRACT = tuple(field.name for field in fields(Divergence) if field.name != "kind")
