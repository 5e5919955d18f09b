"""What a lane asks of a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LaneNeeds:
    """What a machine must have to serve a lane.

    Attributes:
        gpus: CUDA devices.
        capabilities: CUDA capabilities that the goldens know, such as "9.0"; empty: any.
        modules: importable Python modules.
    """

    gpus: int
    capabilities: Sequence[str] = ()
    modules: Sequence[str] = ()
