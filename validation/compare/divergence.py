"""A divergence: one record that differs, and where in the run it was made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from validation.files import jsonable


@dataclass(frozen=True)
class Divergence:
    """The first record, in execution order, that differs beyond its tolerance.

    Attributes:
        step: training step, from 1; 0 before training; None outside of it.
        micro_batch: within the step, from 0.
        phase: data, init, forward, backward, reduction, optimizer or resume.
        module: fully qualified name; `training` for curves.
        tensor: tensor of the module, or metric of the curve.
        rank: global rank.
        offset: index of the first differing element of a discrete sequence.
        expected: the golden's value.
        actual: the run's value.
        relative_error: distance relative to the golden; None for discrete records.
        tolerance: what it was allowed to be; None for discrete records.
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
        return {name: jsonable(getattr(self, name)) for name in self.__dataclass_fields__}
