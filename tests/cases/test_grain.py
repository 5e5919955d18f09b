"""The grain of an update covers what storing its weights rounded does to it."""

import pytest
import torch

from vpmoe.cases.grain import moved_square, update_grain


@pytest.mark.parametrize(("count", "scale"), [(4, 129.0), (4096, 1.0), (4096, 0.02)])
def test_the_grain_covers_roundings_to_either_neighbour(count: int, scale: float) -> None:
    random = torch.Generator().manual_seed(count)
    before = scale * torch.randn(count, generator=random).abs() + scale
    wanted = 1e-3 * torch.randn(count, generator=random, dtype=torch.float64)
    weight = (before.double() + wanted).float()
    update = weight - before
    size = float(update.norm())
    grain = update_grain(weight, update)
    assert grain is not None
    norm_grain = moved_square(weight, update) / size**2
    assert norm_grain <= grain
    for _ in range(20):
        up = torch.rand(count, generator=random) < 0.5
        other = torch.nextafter(weight, torch.where(up, torch.inf, -torch.inf)) - before
        assert float((other - update).norm()) / size <= 1.01 * grain
        # Independent roundings: four standard deviations, and what their own squares add.
        assert abs(float(other.norm()) / size - 1.0) <= 4.0 * norm_grain + grain**2


def test_no_update_and_copies_of_wider_weights_have_no_grain() -> None:
    weight = torch.ones(4)
    assert update_grain(weight, torch.zeros(4)) is None
    assert update_grain(weight.bfloat16(), torch.ones(4)) is None
    assert moved_square(weight.bfloat16(), torch.ones(4)) == 0.0
