"""NorMuon in fp64, one matrix at a time, written down from the formulas alone."""

from __future__ import annotations

import math

import torch

TABLE = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def polar(u: torch.Tensor, sf: float = 2e-2) -> torch.Tensor:
    """The polynomials through the singular values: no matrix products to share a mistake with."""
    left, sigma, right = torch.linalg.svd(u.double(), full_matrices=False)
    x = sigma / (u.double().norm() * (1 + sf) + 1e-6)
    for a, b, c in TABLE:
        x = a * x + b * x**3 + c * x**5
    return left @ torch.diag(x) @ right


class ReferenceNorMuon:
    """State and update of one matrix."""

    def __init__(self, shape: tuple[int, int], mu: float = 0.95, b2: float = 0.95) -> None:
        self.m = torch.zeros(shape, dtype=torch.float64)
        self.v = torch.zeros(shape[0], 1, dtype=torch.float64)
        self.mu, self.b2 = mu, b2

    def update(self, gradient: torch.Tensor, eps: float = 1e-10) -> torch.Tensor:
        """What is subtracted from the weight at a learning rate of 1."""
        g = gradient.double()
        self.m = self.mu * self.m + (1 - self.mu) * g
        o = polar((1 - self.mu) * g + self.mu * self.m)
        self.v = self.b2 * self.v + (1 - self.b2) * (o * o).mean(dim=1, keepdim=True)
        hat = o / (self.v + eps).sqrt()
        size = hat.norm()
        if size > 0:
            hat = hat * (o.norm() / size)
        rows, columns = o.shape
        return math.sqrt(max(1.0, rows / columns)) * hat
