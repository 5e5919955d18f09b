"""Traces: events, curves, tables; sketches; storage."""

from validation.trace.classes import curve_class, event_class
from validation.trace.model import (
    PHASES,
    CurveKey,
    Event,
    HeldInvariant,
    Key,
    RecordKind,
    TableKey,
    Trace,
)
from validation.trace.sketch import Sketch, relative_distance, sketch
from validation.trace.storage import load_trace, save_trace

__all__ = [
    "PHASES",
    "CurveKey",
    "Event",
    "HeldInvariant",
    "Key",
    "RecordKind",
    "Sketch",
    "TableKey",
    "Trace",
    "curve_class",
    "event_class",
    "load_trace",
    "relative_distance",
    "save_trace",
    "sketch",
]
