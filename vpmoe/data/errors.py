"""Errors of data: they say what was wrong, where, and what to do."""


class DataError(ValueError):
    """Input or a dataset that cannot be used."""


class CorruptDatasetError(DataError):
    """A dataset that is not what its manifest says."""
