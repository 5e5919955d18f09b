import torch
from torch import nn

VOCABULARY, WIDTH, LENGTH, ROWS, WINDOW = 32, 48, 16, 4, 6


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = WIDTH**-0.5

    def forward(self, x):
        distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)[None, :]
        allowed = (distance >= 0) & (distance < WINDOW)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scores = (q @ k.transpose(1, 2) * self.scale).masked_fill(~allowed, -1e9)
        return x + self.out(scores.softmax(dim=-1) @ v)


def build_model(seed):
    torch.manual_seed(seed)
    feed = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU())
    return nn.Sequential(
        nn.Embedding(VOCABULARY, WIDTH), Attention(), feed, nn.Linear(WIDTH, VOCABULARY)
    )


def batches():
    source = torch.Generator().manual_seed(2)
    while True:
        start = torch.randint(VOCABULARY, (ROWS, 1), generator=source)
        stride = torch.randint(1, 4, (ROWS, 1), generator=source)
        yield (start + stride * torch.arange(LENGTH + 1)) % VOCABULARY


def train(model, steps, micro_batches, on_batch, on_step):
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
