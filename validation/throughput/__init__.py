"""Throughput: two revisions trained in turns on one machine, and what their difference proves."""
