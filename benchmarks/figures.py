"""Writes measured figures into the documents, from the JSON results that they come from.

    python -m benchmarks.figures [--check]

A figure stands between two comments, `<!-- =NAME -->` and `<!-- / -->`, in a sentence or around a
table. NAME is one of `FIGURES`. With --check nothing is written: stale figures are listed, exit 1.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
_MARK = re.compile(r"<!-- =(?P<name>[\w-]+) -->(?P<text>.*?)<!-- / -->", re.DOTALL)

_TRAINING = ("stock", "stock-window", "modes", "data-parallel", "expert-parallel", "dev")
_PLANTED = {"same": "nothing", "slow-step-3": "3 %", "slow-step-1": "1 %"}


@functools.cache
def _json(path: str) -> Any:
    return json.loads((REPOSITORY / path).read_text())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n"


def _matrix() -> Any:
    return _json("docs/power/matrix.json")


def _score(name: str) -> str:
    return str(_matrix()["scores"][name])


def _margins() -> str:
    """The caught bugs with the smallest margins."""
    killed = [f for f in _matrix()["faults"] if isinstance(f["margin"], int | float)]
    smallest = sorted(killed, key=lambda fault: fault["margin"])[:5]
    return ", ".join(f"`{fault['id']}` {fault['margin']:.0f}" for fault in smallest)


def _declared(lane: str) -> int:
    from vpmoe.cases.faults import FAULTS

    return sum(lane in fault.lanes for fault in FAULTS)


def _benign() -> int:
    from vpmoe.cases.faults import BENIGN

    return len(BENIGN)


def _trained(run: str, model: str) -> dict[str, float]:
    """Figures of a model in a run of `benchmarks.train`, as `train_show` computes them."""
    from benchmarks.train_models import RANKS
    from benchmarks.train_show import summary
    from validation.throughput.figures import PEAK_FLOPS

    document = _json(f"benchmarks/results/train/{run}.json")
    peak = PEAK_FLOPS[document["environment"]["device"]] * RANKS.get(model, 1)
    return summary(document["results"][model], peak)


def _trainings() -> Iterator[tuple[int, str, str]]:
    for number, run in enumerate(_TRAINING, start=1):
        for model, result in _json(f"benchmarks/results/train/{run}.json")["results"].items():
            if result.get("blocks"):
                yield number, run, model


def _training_table() -> str:
    from benchmarks.train_models import MODELS

    rows = []
    for number, run, model in _trainings():
        f = _trained(run, model)
        rows.append(
            [
                f"{number}, vpmoe-dev" if run == "dev" else str(number),
                MODELS[model],
                f"{f['milliseconds']:.1f}",
                f"{f['spread']:.1%}",
                f"{f['tokens_per_second']:,.0f}",
                f"{f['mfu']:.1%}",
                f"{f['peak_gib']:.1f}",
            ]
        )
    head = ("run", "model", "ms a step", "spread", "tokens/s", "MFU", "peak memory, GiB")
    return _table(head, rows)


def _speedup(run: str, model: str, base: str) -> str:
    fast, slow = _trained(run, model), _trained(run, base)
    return f"{fast['tokens_per_second'] / slow['tokens_per_second']:.2f}"


def _ms(run: str, model: str) -> str:
    return f"{_trained(run, model)['milliseconds']:.1f}"


def _two_gpus_table() -> str:
    """Two GPUs against one, of the same run."""
    rows = []
    for run, one, two, names in (
        (
            "data-parallel",
            "vpmoe-graph",
            "vpmoe-dp2",
            ("one GPU, graph", "two, data parallel, graph, `--overlap-grad-reduce`"),
        ),
        (
            "expert-parallel",
            "vpmoe-unfused",
            "vpmoe-ep2",
            (
                "one GPU, grouped experts, all logits",
                "two, data and expert parallel, the same kernels",
            ),
        ),
    ):
        for name, model in zip(names, (one, two), strict=True):
            against = "" if model == one else _speedup(run, two, one)
            speed = f"{_trained(run, model)['tokens_per_second']:,.0f}"
            rows.append([name, _ms(run, model), speed, against])
    head = ("16,384 tokens on each GPU", "ms a step", "tokens/s", "against one GPU")
    return _table(head, rows)


def _deterministic_cost() -> str:
    slow, fast = (_trained("modes", f"vpmoe-graph{m}") for m in ("-deterministic", ""))
    return f"{slow['milliseconds'] / fast['milliseconds']:.2f} times"


def _clean(arithmetic: str = "wide", file: str = "clean_runs") -> Any:
    return _json(f"benchmarks/results/{file}.json")[arithmetic]


def _equal(counts: Any) -> str:
    return f"{counts['identical']:,} of {counts['compared']:,}"


def _clean_table() -> str:
    groups = {**_clean()["by_machine"], **_clean()["by_setting"]}
    rows = [[name, str(s["checks"]), str(s["alarms"]), _equal(s)] for name, s in groups.items()]
    return _table(("machine or setting", "checks", "alarms", "bit-identical records"), rows)


def _native_table() -> str:
    rows = [
        [name, str(s["checks"]), str(s["alarms"]), _equal(s), f"{s['largest_ratio']:.2f}"]
        for name, s in _clean("native")["by_setting"].items()
    ]
    return _table(("setting", "checks", "alarms", "bit-identical records", "largest ratio"), rows)


def _bench_table() -> str:
    rows = []
    for experiment in _json("benchmarks/results/bench_power.json")["experiments"]:
        name = _PLANTED[experiment["experiment"]]
        measured = f"{experiment['ratio']:.4f} [{experiment['low']:.4f}, {experiment['high']:.4f}]"
        for level in experiment["levels"]:
            sign = "<=" if name == "nothing" else ">="
            rows.append(
                [
                    name,
                    measured,
                    str(level["pairs"]),
                    f"{level['seconds']:.1f}",
                    f"{level['alarms']} of {level['runs']}",
                    f"{sign} {level['bound']:.1%}",
                ]
            )
            measured = ""
    head = ("planted", "measured, head / base", "pairs", "seconds of steps", "alarms")
    return _table((*head, "probability, 95 % bound"), rows)


def _bench_alarms(experiment: str) -> str:
    """Alarms of the shortest runs of an experiment."""
    found = _json("benchmarks/results/bench_power.json")["experiments"]
    (level, *_) = next(e for e in found if e["experiment"] == experiment)["levels"]
    return f"{level['alarms']} of {level['runs']}"


def _bench_seconds() -> str:
    processes = _json("benchmarks/results/bench_power.json")["processes"]
    return f"{sum(process['seconds'] for process in processes):,.0f}"


def _peers() -> Any:
    return _json("benchmarks/results/peers.json")


def _peers_table() -> str:
    rows = [
        [
            rule["rule"],
            f"{rule['killed']} (>= {rule['killed_lower_bound_95']:.0%})",
            f"{rule['small_killed']} (>= {rule['small_killed_lower_bound_95']:.0%})",
            f"{rule['false_alarms']} of {rule['clean_runs']}"
            f" (<= {rule['false_alarms_upper_bound_95']:.1%})",
        ]
        for rule in _peers()["rules"]
    ]
    found = _peers()
    head = (f"caught of {found['faults']}", f"of {found['small']} small ones")
    return _table(("rule", *head, "false alarms in clean runs"), rows)


def _idle(run: str, model: str) -> str:
    """Milliseconds of a step in which the device waits for the host."""
    result = _json(f"benchmarks/results/train/{run}.json")["results"][model]
    step = statistics.median(block["seconds"] for block in result["blocks"])
    return f"{(step - sum(result['components'].values())) * 1e3:.1f}"


def _computed(run: str, model: str) -> str:
    """Milliseconds of a step in which the device computes."""
    result = _json(f"benchmarks/results/train/{run}.json")["results"][model]
    return f"{sum(result['components'].values()) * 1e3:.1f}"


def _flips() -> Any:
    return _json("benchmarks/results/bit_flips.json")


FIGURES: dict[str, Callable[[], str]] = {
    "killed": lambda: f"{_matrix()['killed']} of {_matrix()['total']} bugs",
    "killed-of-all": lambda: _score("killed, of all"),
    "localised": lambda: _score("first divergence in the right place"),
    "harmless": lambda: _score("harmless changes passed").partition(" (")[0] + " harmless changes",
    "harmless-passed": lambda: _score("harmless changes passed"),
    "controls-passed": lambda: _score("twins passed"),
    "smallest-margins": _margins,
    "faults": lambda: str(_declared("cpu")),
    "unmeasured": lambda: str(_declared("cpu") - int(_matrix()["total"])),
    "gpu-faults": lambda: str(_declared("h200")),
    "benign": lambda: str(_benign()),
    "clean-checks": lambda: f"{_clean()['checks']} checks",
    "clean-alarms": lambda: str(_clean()["alarms"]),
    "clean-records": lambda: _equal(_clean()),
    "clean-table": _clean_table,
    "earlier-checks": lambda: f"{_clean(file='clean_runs_earlier')['checks']} checks",
    "earlier-alarms": lambda: str(_clean(file="clean_runs_earlier")["alarms"]),
    "earlier-records": lambda: _equal(_clean(file="clean_runs_earlier")),
    "later-checks": lambda: f"{_clean(file='clean_runs_later')['checks']} checks",
    "later-alarms": lambda: str(_clean(file="clean_runs_later")["alarms"]),
    "later-records": lambda: _equal(_clean(file="clean_runs_later")),
    "last-checks": lambda: f"{_clean(file='clean_runs_last')['checks']} checks",
    "last-alarms": lambda: str(_clean(file="clean_runs_last")["alarms"]),
    "last-records": lambda: _equal(_clean(file="clean_runs_last")),
    "native-checks": lambda: f"{_clean('native')['checks']} checks",
    "native-alarms": lambda: str(_clean("native")["alarms"]),
    "native-table": _native_table,
    "speedup": lambda: _speedup("stock", "vpmoe-graph", "stock"),
    "speedup-dev": lambda: _speedup("dev", "vpmoe-graph", "stock"),
    "training-table": _training_table,
    "stock-computed": lambda: _computed("stock", "stock"),
    "stock-idle": lambda: _idle("stock", "stock"),
    "two-gpus-table": _two_gpus_table,
    "dev-stock-ms": lambda: _ms("dev", "stock"),
    "dev-graph-ms": lambda: _ms("dev", "vpmoe-graph"),
    "graph-ms": lambda: _ms("modes", "vpmoe-graph"),
    "deterministic-ms": lambda: _ms("modes", "vpmoe-graph-deterministic"),
    "deterministic-cost": _deterministic_cost,
    "bench-table": _bench_table,
    "bench-clean-alarms": lambda: _bench_alarms("same"),
    "bench-3-percent-alarms": lambda: _bench_alarms("slow-step-3"),
    "bench-seconds": _bench_seconds,
    "peers-table": _peers_table,
    "flips": lambda: f"{_flips()['flips']:,}",
    "flips-recorded": lambda: str(_flips()["counts"]["recorded"]),
    "flips-beyond": lambda: str(_flips()["counts"]["within tolerances: HARDWARE"]),
    "flips-within": lambda: str(_flips()["counts"]["within tolerances: PASS"]),
    "flips-bound": lambda: f"{_flips()['upper_bound_95']:.2%}",
    "peers-small": lambda: f"{_peers()['small']} of {_peers()['faults']}",
}


def documents() -> list[Path]:
    """The documents that may have figures."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def renewed(text: str, path: Path) -> str:
    """A document's text with every figure as its result has it.

    Raises:
        SystemExit: a mark names no figure.
    """

    def figure(mark: re.Match[str]) -> str:
        name = mark["name"]
        if name not in FIGURES:
            raise SystemExit(
                f"{path}: there is no figure {name!r}; add it to benchmarks/figures.py"
            )
        return f"<!-- ={name} -->{FIGURES[name]()}<!-- / -->"

    return _MARK.sub(figure, text)


def main() -> int:
    """Writes the figures, or lists the documents whose figures are stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if one is stale"
    )
    check = parser.parse_args().check
    stale = 0
    for path in documents():
        text = path.read_text()
        new = renewed(text, path)
        if new != text:
            stale += 1
            print(f"{path.relative_to(REPOSITORY)}: {'stale' if check else 'written'}")
            if not check:
                path.write_text(new)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
