"""Goldens: accepted traces, their provenance, and how they change."""

from validation.goldens.store import Golden, GoldenStore, MissingGoldenError

__all__ = ["Golden", "GoldenStore", "MissingGoldenError"]
