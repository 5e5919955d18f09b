"""Dataset build against a one-process loop of tiktoken and Megatron's IndexedDatasetBuilder.

    python benchmarks/data_build.py [--rows 20000] [--workers 2] [--repeats 3] [--memory]

Runs are interleaved, each from a process that has imported what it needs; the table gives medians
and spread. Rows are those of ../shared/data if they are there, else the shipped sample, repeated
with other ids. `--memory` builds 10,000 and 100,000 rows and prints the peaks instead.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared" / "data" / "synth_rows_valid.jsonl"
SAMPLE = REPOSITORY / "data" / "sample" / "conversations.jsonl"


def write_input(path: Path, rows: int) -> None:
    """Writes `rows` rows."""
    source = SHARED if SHARED.exists() else SAMPLE
    known = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            row = known[number % len(known)] | {"synth_id": f"r{number}"}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def peer(source: str, output: str, arrays: int) -> dict[str, Any]:
    """tiktoken and IndexedDatasetBuilder, row by row; 1 array (tokens) or 3 (with masks)."""
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    from vpmoe.data.profiles import get_profile
    from vpmoe.tokenizer import O200kHarmonyTokenizer
    from vpmoe.tokenizer.encoder import reference_encoding
    from vpmoe.tokenizer.harmony import HarmonyRenderer
    from vpmoe.tokenizer.special import BASE_SIZE

    torch.set_num_threads(1)
    tokenizer = O200kHarmonyTokenizer(default_vocabulary())
    encoding = reference_encoding([tokenizer.inv_vocab[n] for n in range(BASE_SIZE)])
    encode = encoding.encode_ordinary
    prefix = HarmonyRenderer(tokenizer).render_conversation(get_profile("synth_kd_v1").messages)
    start, channel, message, end, done, eod = 200006, 200005, 200008, 200007, 200002, 199999
    user = [start, *encode("user"), message]
    analysis = [start, *encode("assistant"), channel, *encode("analysis"), message]
    final = [start, *encode("assistant"), channel, *encode("final"), message]
    Path(output).mkdir()
    names = ("tokens", "lossmask", "span")[:arrays]
    types = (np.int32, np.uint8, np.uint8)
    builders = [
        IndexedDatasetBuilder(f"{output}/{name}.bin", dtype=dtype)
        for name, dtype in zip(names, types, strict=False)
    ]
    began, cpu, total = time.perf_counter(), cpu_seconds(), 0
    with Path(source).open(encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            head = [*prefix.tokens, *user, *encode(row["query"]), end]
            middle = [*analysis, *encode(row["synthetic_reasoning"]), end]
            tail = [*final, *encode(row["synthetic_answer"]), done]
            tokens = [*head, *middle, *tail, eod]
            total += len(tokens)
            spans = [0] * (len(head) - 1) + [1] * len(middle) + [2] * len(tail) + [0, 0]
            values = (tokens, [int(s > 0) for s in spans] if arrays > 1 else [], spans)
            for builder, value in zip(builders, values, strict=False):
                builder.add_document(torch.tensor(value), [len(value)])
    for builder, name in zip(builders, names, strict=True):
        builder.finalize(f"{output}/{name}.idx")
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "cpu_seconds": cpu_seconds() - cpu, "tokens": total}


def ours(source: str, output: str, workers: int) -> dict[str, Any]:
    """`build_dataset`, from start to manifest; the encoder is loaded before, as the peer's is."""
    from vpmoe.data.build import build_dataset
    from vpmoe.tokenizer import O200kHarmonyTokenizer

    O200kHarmonyTokenizer(default_vocabulary())
    began, cpu = time.perf_counter(), cpu_seconds()
    result = build_dataset(
        [source], output, workers=workers, profile="synth_kd_v1", vocabulary=default_vocabulary()
    )
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokens = result.manifest["splits"]["train"]["tokens"]
    peak = [own // 1024, children // 1024]
    return {"seconds": seconds, "cpu_seconds": cpu, "tokens": tokens, "peak_mb": peak}


def profile(source: str, output: str) -> None:
    """Where one worker's time goes."""
    import cProfile
    import pstats

    from vpmoe.data.build import build_dataset

    with cProfile.Profile() as profiler:
        build_dataset([source], output, profile="synth_kd_v1", vocabulary=default_vocabulary())
    pstats.Stats(profiler).sort_stats("tottime").print_stats(16)


def default_vocabulary() -> Path:
    """The vocabulary in the repository, installed when missing."""
    from vpmoe.tokenizer.asset import ensure_asset

    return ensure_asset(REPOSITORY / "data" / "tokenizer" / "o200k_base.tiktoken")


def run(kind: str, source: Path, folder: Path, *words: str) -> dict[str, Any]:
    """One run in a process of its own."""
    output = folder / "out"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, __file__, "--run", kind, str(source), str(output), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def cpu_seconds() -> float:
    """CPU time of this process and of those it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """Prints the table."""
    if sys.argv[1:2] == ["--run"]:
        kind, source, output, number = sys.argv[2:6]
        made = peer(source, output, int(number)) if kind == "peer" else None
        print(json.dumps(made or ours(source, output, int(number))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "rows.jsonl"
        if options.memory:
            for rows in (10_000, 100_000):
                write_input(source, rows)
                print(rows, "rows:", run("ours", source, folder, str(options.workers)))
            return
        write_input(source, options.rows)
        plan = {
            "peer, tokens and masks": ("peer", "3"),
            "peer, tokens only": ("peer", "1"),
            "vpmoe, 1 worker": ("ours", "1"),
            f"vpmoe, {options.workers} workers": ("ours", str(options.workers)),
        }
        rates: dict[str, list[float]] = {name: [] for name in plan}
        cpu_rates: dict[str, list[float]] = {name: [] for name in plan}
        for _ in range(options.repeats):
            for name, (kind, number) in plan.items():
                made = run(kind, source, folder, number)
                rates[name].append(made["tokens"] / made["seconds"] / 1e6)
                cpu_rates[name].append(made["tokens"] / made["cpu_seconds"] / 1e6)
        packages = ("tiktoken", "quicktok-v1", "megatron-core", "torch", "numpy")
        print(", ".join(f"{package} {version(package)}" for package in packages))
        print(f"Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores")
        print("| build | M tokens/s, median | spread | M tokens per CPU second | spread |")
        print("| --- | --- | --- | --- | --- |")
        for name in plan:
            cells = [name]
            for values in (rates[name], cpu_rates[name]):
                median = statistics.median(values)
                spread = 100 * (max(values) - min(values)) / median
                cells += [f"{median:.2f}", f"{spread:.0f} %"]
            print("|", " | ".join(cells), "|")
        profile(str(source), str(folder / "profiled"))


if __name__ == "__main__":
    main()
