"""Where training runs: the lane a machine serves and what must be mapped to run there."""

from vpmoe.runtime.lane import Lane, detect_lane

__all__ = ["Lane", "detect_lane"]
