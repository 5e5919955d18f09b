"""A tiny language model in plain PyTorch: somebody's training loop, which knows no harness."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

VOCABULARY, WIDTH, LENGTH, ROWS, WINDOW = 32, 48, 16, 4, 6
OnBatch = Callable[[int, int, Tensor], None]
OnStep = Callable[[int, float, float, float], None]


class Attention(nn.Module):
    """Causal attention to the last WINDOW positions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.scale = WIDTH**-0.5

    def forward(self, x: Tensor) -> Tensor:
        """x: [rows, length, WIDTH]."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scores = (q @ k.transpose(1, 2) * self.scale).masked_fill(~window_mask(), -1e9)
        return x + self.out(scores.softmax(dim=-1) @ v)


class Feed(nn.Sequential):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))


def window_mask() -> Tensor:
    """Bool [query, key]: what a position may attend to."""
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)[None, :]
    return (distance >= 0) & (distance < WINDOW)


def build_model(seed: int = 1) -> nn.Sequential:
    """The same weights for the same seed."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Embedding(VOCABULARY, WIDTH), Attention(), Feed(), nn.Linear(WIDTH, VOCABULARY)
    )


def batches(seed: int = 2) -> Iterator[Tensor]:
    """Endless sequences [ROWS, LENGTH + 1] that count upwards in random strides."""
    source = torch.Generator().manual_seed(seed)
    while True:
        start = torch.randint(VOCABULARY, (ROWS, 1), generator=source)
        stride = torch.randint(1, 4, (ROWS, 1), generator=source)
        yield (start + stride * torch.arange(LENGTH + 1)) % VOCABULARY


def train(
    model: nn.Module, steps: int, micro_batches: int, on_batch: OnBatch, on_step: OnStep
) -> None:
    """Trains with Adam; tells each micro-batch, and loss, gradient norm and learning rate."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
    data = batches()
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        total = 0.0
        for micro_batch in range(micro_batches):
            tokens = next(data)
            on_batch(step, micro_batch, tokens)
            logits = model(tokens[:, :-1]).flatten(0, 1)
            loss = nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()) / micro_batches
            loss.backward()
            total += loss.item()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
        on_step(step, total, norm.item(), rate)
