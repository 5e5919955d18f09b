"""NorMuon with Polar Express, and its place in Megatron's optimizer construction."""

from vpmoe.optimizer.chunks import MatrixLayout
from vpmoe.optimizer.normuon import NorMuon
from vpmoe.optimizer.polar_express import (
    load_coefficients,
    polar_express,
    polar_express_coefficients,
)

__all__ = [
    "MatrixLayout",
    "NorMuon",
    "load_coefficients",
    "polar_express",
    "polar_express_coefficients",
]
