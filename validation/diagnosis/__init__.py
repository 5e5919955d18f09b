"""The first operation that differs between two runs of a case."""
