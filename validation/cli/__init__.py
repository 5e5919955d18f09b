"""`golden`: the command line."""

from validation.cli.main import main

__all__ = ["main"]
