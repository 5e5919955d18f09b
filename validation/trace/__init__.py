"""Traces: events, curves, tables; sketches; storage."""

from validation.trace.model import PHASES, Event, Key, Trace
from validation.trace.sketch import Sketch, relative_distance, sketch
from validation.trace.storage import load_trace, save_trace

__all__ = [
    "PHASES",
    "Event",
    "Key",
    "Sketch",
    "Trace",
    "load_trace",
    "relative_distance",
    "save_trace",
    "sketch",
]
