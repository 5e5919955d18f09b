"""Automatic mutants of the gated code: which of them the cases kill, and which survive."""
