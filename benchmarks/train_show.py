"""Tables and a picture of what `benchmarks.train` measured.

python -m benchmarks.train_show RESULTS.json ... [--picture FILE.svg]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.train_components import COMPONENTS
from benchmarks.train_models import MODELS, RANKS
from validation.throughput.figures import PEAK_FLOPS

_KERNELS = 25


def longest(operators: dict[str, float]) -> dict[str, float]:
    """The kernels that take longest, and the time of all. The host's own entries are left out."""
    kernels = {k: v for k, v in operators.items() if not k.startswith("Optimizer.step")}
    found = sorted(kernels.items(), key=lambda entry: -entry[1])[:_KERNELS]
    return {"all kernels": sum(kernels.values()), **dict(found)}


def summary(result: dict[str, Any], peak_flops: float | None) -> dict[str, float]:
    """Median figures of a model's blocks; spread is (p90 - p10) / median of a step's seconds."""
    blocks = result["blocks"]
    seconds = sorted(block["seconds"] for block in blocks)
    median = statistics.median(seconds)
    speed = statistics.median(block["tokens"] / block["seconds"] for block in blocks)
    figures = {
        "milliseconds": median * 1e3,
        "spread": (seconds[-1 - len(seconds) // 10] - seconds[len(seconds) // 10]) / median,
        "tokens_per_second": speed,
        "peak_gib": max(block["peak_bytes"] for block in blocks) / 2**30,
    }
    if peak_flops is not None:
        figures["mfu"] = speed * result["facts"]["flops_per_token"] / peak_flops
    return figures


def where_time_goes(result: dict[str, Any]) -> dict[str, float]:
    """Seconds of a step by component, and those in which the device waited for the host."""
    components: dict[str, float] = result["components"]
    step = statistics.median(block["seconds"] for block in result["blocks"])
    computed = sum(components.values())
    return {
        **{component: components[component] for component in COMPONENTS},
        "all that the device computes": computed,
        "device idle": max(0.0, step - computed),
    }


def tables(results: dict[str, Any], figures: dict[str, dict[str, float]]) -> str:
    """Both tables, in Markdown."""
    base = figures.get("stock")
    lines = [
        "| model | ms a step | spread | tokens/s | against stock | MFU | peak memory, GiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model, f in figures.items():
        ratio = f"{f['tokens_per_second'] / base['tokens_per_second']:.2f} x" if base else ""
        mfu = f"{f['mfu']:.1%}" if "mfu" in f else ""
        lines.append(
            f"| {MODELS[model]} | {f['milliseconds']:.1f} | {f['spread']:.1%} | "
            f"{f['tokens_per_second']:,.0f} | {ratio} | {mfu} | {f['peak_gib']:.1f} |"
        )
    broken = [model for model in figures if "components" in results[model]]
    if broken:
        lines += [
            "",
            f"| ms of a step | {' | '.join(MODELS[model] for model in broken)} |",
            f"| --- |{' --- |' * len(broken)}",
        ]
        rows = {model: where_time_goes(results[model]) for model in broken}
        for part in rows[broken[0]]:
            cells = (f"{row[part] * 1e3:.2f}" for row in rows.values())
            lines.append(f"| {part} | {' | '.join(cells)} |")
    return "\n".join(lines)


def kernels(results: dict[str, Any], model: str) -> str:
    """The kernels that took longest in the profiled step of a model."""
    operators = results.get(model, {}).get("operators")
    if not operators:
        return ""
    lines = [f"| kernel of {MODELS[model]} | ms | share |", "| --- | --- | --- |"]
    for name, seconds in sorted(operators.items(), key=lambda x: -x[1]):
        share = seconds / operators["all kernels"]
        lines.append(f"| `{name[:90]}` | {seconds * 1e3:.2f} | {share:.1%} |")
    return "\n".join(lines)


def picture(documents: Sequence[dict[str, Any]], path: Path) -> None:
    """A bar of components for each model that has them, the first of each, and its idle time."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    found: dict[str, dict[str, float]] = {}
    for document in documents:
        for model, result in document["results"].items():
            if "components" in result:
                found.setdefault(model, where_time_goes(result))
    shown = {name: found[model] for model, name in MODELS.items() if model in found}
    drawing = Figure(figsize=(10, 1.6 + 0.5 * len(shown)), layout="constrained")
    axes = drawing.subplots()
    left = [0.0] * len(shown)
    for index, part in enumerate((*COMPONENTS, "device idle")):
        widths = [max(0.0, times[part]) * 1e3 for times in shown.values()]
        color = "#eeeeee" if part == "device idle" else colormaps["tab20"](index)
        axes.barh(list(shown), widths, left=left, label=part, color=color)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of a step")
    drawing.legend(loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    drawing.savefig(path)


def show(document: dict[str, Any]) -> None:
    """Prints a run's tables."""
    peak = PEAK_FLOPS.get(document["environment"]["device"])
    figures = {
        model: summary(result, None if peak is None else peak * RANKS.get(model, 1))
        for model, result in document["results"].items()
        if result.get("blocks")
    }
    print(f"{document['environment']}; {document['config']}, {document['layers'] or 'all'} layers,")
    print(f"{document['tokens']} tokens a step; {document['rounds']} rounds of ", end="")
    print(f"{document['steps']} steps\n\n{tables(document['results'], figures)}")
    for model in figures:
        print("\n" + kernels(document["results"], model))


def main() -> None:
    """Shows results, and draws the components of all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", help="of benchmarks.train")
    parser.add_argument("--picture", type=Path, help="SVG of the components")
    options = parser.parse_args()
    documents = [json.loads(path.read_text()) for path in options.results]
    for document in documents:
        show(document)
    if options.picture is not None:
        picture(documents, options.picture)


if __name__ == "__main__":
    main()
