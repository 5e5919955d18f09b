"""Bugs in the export of a checkpoint, its import, and the reference forward pass."""

from __future__ import annotations

from typing import Any

from vpmoe.cases.faults.planting import Planted, fault, patched


@fault(
    "export-rotation-reversed",
    "export",
    "export",
    "inference code that rotates the other way than training",
    case="export",
    steps=None,
)
def export_rotation_reversed() -> Planted:
    """The reference rotates queries and keys by minus their angle."""

    def wrap(original: Any) -> Any:
        return lambda x, cos, sin: original(x, cos, -sin)

    return patched("vpmoe.export.reference", "_rotate", wrap)


@fault(
    "export-norm-weight-forgotten",
    "export",
    "export",
    "a converter that drops the norms' weights, which begin as ones",
    case="export",
    steps=None,
)
def export_norm_weight_forgotten() -> Planted:
    """The reference normalises without the norms' weights."""

    def wrap(original: Any) -> Any:
        def norm(self: Any, x: Any, name: str) -> Any:
            weight = self.weights[name]
            self.weights[name] = weight.new_ones(weight.shape)
            try:
                return original(self, x, name)
            finally:
                self.weights[name] = weight

        return norm

    return patched("vpmoe.export.reference", "ReferenceModel._norm", wrap)


@fault(
    "import-rows-rolled",
    "export",
    "linear_proj",
    "an import that lays heads out in another order",
    case="export",
    steps=None,
)
def import_rows_rolled() -> Planted:
    """The import gives each row of the attention's output weight the next one's place."""

    def wrap(original: Any) -> Any:
        def fill(place: Any, tensors: Any) -> None:
            moved = {
                name: tensor.roll(1, dims=0) if name.endswith("linear_proj.weight") else tensor
                for name, tensor in tensors.items()
            }
            original(place, moved)

        return fill

    return patched("vpmoe.export.convert", "_fill", wrap)
