"""The error of a declaration."""

from __future__ import annotations


class CaseError(ValueError):
    """What a repository declares wrongly, or does not: its lanes, a case, a fault, its place."""
