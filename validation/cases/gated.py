"""What the cases of a repository gate, as `golden coverage` and `golden mutate` need to know it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Gated:
    """The code that cases stand for, and the fields that they could set: `GATED` of their module.

    Attributes:
        packages: top-level packages, or modules, of the checkout. Modules with cases and faults are
            no part of them.
        fields: `module:function`, called as function(cases) with the cases of a lane; returns
            name -> `Field` of every flag and preset field. None where there is nothing to set.
        omitted: what is not measured -> the reason. A pattern of paths, as `my_package/gpu_*.py`;
            a function or class of a file, as `my_package/model.py:Attention.fused`; or a statement
            of it with its body, as `my_package/model.py:Attention.forward:if x.is_cuda:`.
        unvaried: name of a field that no case varies -> the reason.
    """

    packages: Sequence[str]
    fields: str | None = None
    omitted: Mapping[str, str] = field(default_factory=dict)
    unvaried: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Field:
    """A flag or a preset field, and what cases make of it.

    Attributes:
        default: its value where nobody sets it, as JSON.
        values: case -> the value that it runs with, of every case that has the field.
    """

    default: Any
    values: Mapping[str, Any]
