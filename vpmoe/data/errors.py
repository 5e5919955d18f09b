"""Errors of data: they say what was wrong, where, and what to do."""


class DataError(ValueError):
    """Input or a dataset that cannot be used."""


class CorruptDatasetError(DataError):
    """A dataset that is not what its manifest says; its message ends with what to do."""

    def __str__(self) -> str:
        """Returns what is damaged, and what to do."""
        return f"{super().__str__()}; restore the file from a copy, or build the data again"
