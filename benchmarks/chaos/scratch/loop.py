"""A training loop in numpy: logistic regression on a fixed problem, so that a run takes no time."""

import numpy as np

WIDTH, ROWS, RATE = 12, 16, 0.5


def train(steps, seed, perturb_seed, on_step):
    source = np.random.Generator(np.random.PCG64(seed))
    truth, weights = source.normal(size=WIDTH), source.normal(size=WIDTH)
    if perturb_seed is not None:
        up = np.random.Generator(np.random.PCG64(perturb_seed)).random(WIDTH) < 0.5
        weights = np.nextafter(weights, np.where(up, np.inf, -np.inf))
    for step in range(1, steps + 1):
        inputs = source.normal(size=(ROWS, WIDTH))
        wanted = (inputs @ truth > 0).astype(float)
        found = 1 / (1 + np.exp(-inputs @ weights))
        loss = -np.mean(wanted * np.log(found) + (1 - wanted) * np.log(1 - found))
        gradient = inputs.T @ (found - wanted) / ROWS
        weights = weights - RATE * gradient
        on_step(step, int(wanted.sum()), float(loss), float(np.linalg.norm(gradient)))
