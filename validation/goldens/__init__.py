"""Goldens: accepted traces, their provenance, and how they change."""

from validation.goldens.golden import Golden
from validation.goldens.store import GoldenStore, MissingGoldenError

__all__ = ["Golden", "GoldenStore", "MissingGoldenError"]
