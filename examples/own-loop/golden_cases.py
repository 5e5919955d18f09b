import contextlib
from unittest.mock import patch

from validation import Case, Fault, attach_module


def run(recorder, settings):
    import loop  # not above: `golden list` imports this file, and need not import torch

    model = loop.build_model(settings["seed"])
    if "perturb_seed" in settings:
        move_by_one_ulp(model, settings["perturb_seed"])
    place = (0, 0)

    def on_batch(step, micro_batch, tokens):
        nonlocal place
        place = (step, micro_batch)
        recorder.discrete(
            "tokens", tokens.tolist(), step=step, micro_batch=micro_batch, phase="data"
        )

    def on_step(step, loss, norm, rate):
        recorder.curve(step, "lm_loss", loss)
        recorder.curve(step, "grad_norm", norm, phase="reduction")
        recorder.curve(step, "learning_rate", rate, phase="optimizer")

    attach_module(recorder, model, lambda: place)  # every module, forward and backward
    steps = min(settings.get("stop_after", settings["steps"]), settings["steps"])
    loop.train(model, steps, settings["micro_batches"], on_batch, on_step)


def move_by_one_ulp(model, seed):
    import torch

    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            up = torch.rand(parameter.shape, generator=source) < 0.5
            parameter.copy_(torch.nextafter(parameter, torch.where(up, torch.inf, -torch.inf)))


CASES = [
    Case(
        name="plain_loss",
        description="the loss of twelve steps",
        lanes=["cpu"],
        target="golden_cases:run",
        settings={"steps": 12, "micro_batches": 2, "seed": 1},
        traced_steps=[1, 2],  # tensors of these steps; curves of every step
    ),
]


@contextlib.contextmanager
def wide_window():
    import loop

    with patch.object(loop, "WINDOW", loop.WINDOW + 1):
        yield


FAULTS = [
    Fault(
        id="wide_window",
        category="window",
        component="1",  # the module that a check should trace it to
        imitates="an off-by-one of the sliding window",
        plant="golden_cases:wide_window",
        case="plain_loss",
        canary_steps=2,  # it shows within two steps
    ),
]
