"""Random traces with every kind of record, made without training."""

from random import Random

from validation.compare import Tolerances
from validation.trace import CurveKey, Event, Key, Sketch, TableKey, Trace, curve_class, event_class
from validation.trace.sketch import PROJECTIONS

TOLERANCE = 1e-5


def random_trace(seed: int) -> Trace:
    """Two steps of four modules, three curves, a table and discrete facts."""
    random = Random(seed)
    events = [
        Event(Key(0, 0, "init", "model", "config"), {"layers": 2, "eps": 1e-5, "tied": True}),
        Event(Key(0, 0, "init", "schedule", "window"), [4, 4, 4, None]),
    ]
    for step in (1, 2):
        tokens = [random.randrange(1000) for _ in range(8)]
        events.append(Event(Key(step, 0, "data", "batch", "tokens"), tokens))
        for phase, tensor in (("forward", "output"), ("backward", "output.grad")):
            for module in ("embedding", "layers.0.attention", "layers.0.mlp", "layers.1.mlp"):
                events.append(Event(Key(step, 0, phase, module, tensor), random_sketch(random)))
    return Trace(
        case="tiny",
        provenance={"environment": {"lane": "cpu"}},
        events=events,
        curves={
            CurveKey(name): {step: random.uniform(1, 9) for step in range(1, 6)}
            for name in ("lm_loss", "grad_norm", "update_rms/experts")
        },
        curve_phases={
            CurveKey("lm_loss"): "forward",
            CurveKey("grad_norm"): "reduction",
            CurveKey("update_rms/experts"): "optimizer",
        },
        tables={
            TableKey("window/0"): [[i, max(0, i - 3), i + 1] for i in range(8)],
            TableKey("window/1"): [[0, 8]],
        },
    )


def random_sketch(random: Random) -> Sketch:
    """A sketch as of a tensor of 32 numbers."""
    projections = tuple(random.randrange(-(2**20), 2**20) / 2**18 for _ in range(PROJECTIONS))
    norm = sum(p * p for p in projections) ** 0.5
    digest = f"{random.getrandbits(64):016x}"
    return Sketch("float32", (4, 8), norm, random.gauss(0, 0.1), norm / 2, digest, projections)


def tolerances_of(trace: Trace) -> Tolerances:
    """The same tolerance for every class and step."""
    names = {curve_class(metric) for metric in trace.curves}
    names |= {event_class(event.key) for event in trace.events if event.floating}
    return Tolerances({name: {0: TOLERANCE, 100: TOLERANCE} for name in names})
