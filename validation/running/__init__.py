"""Runs of a case: their processes, environment, source and what they record."""
