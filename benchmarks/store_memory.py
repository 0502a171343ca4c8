"""Peak memory of probing a large activation store, layer by layer, against having it all in memory.

    python benchmarks/store_memory.py --out benchmarks/results/store_memory.json
    python benchmarks/store_memory.py --tiny

A synthetic store of 8 layers x 64 heads x 128 with 6,000 examples (1.57 GB). Each way of fitting runs in a process of
its own; reported is the resident memory beyond that of the process before it begins.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trimtab.activations.manifest import Layout, Manifest
from trimtab.activations.shards import ActivationStore
from trimtab.probes import fit_logistic, fit_mass_mean
from trimtab.storage import versions, write_json

LAYERS, HEADS, WIDTH, EXAMPLES, PER_SHARD = 8, 64, 128, 6000, 512


def make_store(path: Path, layers: int, heads: int, width: int, examples: int) -> None:
    layout = Layout(tuple(range(layers)), heads, width, "float32", PER_SHARD)
    labels = tuple(i % 2 == 0 for i in range(examples))
    groups = tuple(f"question {i // 6}" for i in range(examples))
    store = ActivationStore.created(path, Manifest({"model": "synthetic"}, layout, labels, groups))
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(layers, heads, width, generator=generator)
    for shard in store.missing():
        places = store.manifest.examples_of(shard)
        side = torch.tensor([0.5 if i % 2 == 0 else -0.5 for i in places])
        noise = torch.randn(len(places), layers, heads, width, generator=generator)
        store.write(shard, noise + 0.1 * side[:, None, None, None] * direction)


def resident() -> int:
    """Return the process's anonymous resident bytes: what it holds, without the file pages that the system may drop."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("this measurement needs Linux (/proc/self/status)")


def by_layer(path: Path, fit: Callable[..., Any]) -> Any:
    return fit(ActivationStore.open(path))


def in_memory(path: Path, fit: Callable[..., Any]) -> Any:
    return fit(ActivationStore.open(path).load())


def one_layer(path: Path, fit: Callable[..., Any]) -> Any:
    """Fit on one layer that is held in memory: what the memory of the whole should be like."""
    return fit(ActivationStore.open(path).layer(0))


def measure(way: Callable[..., Any], path: Path, fit: Callable[..., Any], answers: Any) -> None:
    torch.set_num_threads(1)
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    probes = way(path, fit)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    answers.put({"peak_mb": (peak - before) / 1e6, "seconds": seconds, "accuracy": float(probes.accuracy.mean())})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--fit", choices=["mass_mean", "logistic"], default="mass_mean")
    options = parser.parse_args()
    size = (4, 4, 16, 600) if options.tiny else (LAYERS, HEADS, WIDTH, EXAMPLES)
    fit = {"mass_mean": fit_mass_mean, "logistic": fit_logistic}[options.fit]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "store"
        make_store(path, *size)
        context = multiprocessing.get_context("spawn")
        for way in (one_layer, by_layer, in_memory):
            answers = context.Queue()
            process = context.Process(target=measure, args=(way, path, fit, answers))
            process.start()
            results[way.__name__] = answers.get()
            process.join()
            print(way.__name__, json.dumps(results[way.__name__]), flush=True)
    layers, heads, width, examples = size
    record = {
        "command": " ".join(["python", "benchmarks/store_memory.py", *sys.argv[1:]]),
        "hardware": f"{platform.machine()}, 1 CPU thread",
        "versions": {"python": platform.python_version(), **versions()},
        "store": {"layers": layers, "heads": heads, "d_head": width, "examples": examples},
        "one_layer_mb": 4 * heads * width * examples / 1e6,
        "fit": options.fit,
        "results": results,
    }
    if options.out:
        write_json(options.out, record)
    print(f"one layer is {record['one_layer_mb']:.0f} MB, all {layers} are {layers * record['one_layer_mb']:.0f} MB")
    print("| fit | peak MB | seconds |\n|---|---|---|")
    for way, r in results.items():
        print(f"| {way} | {r['peak_mb']:.0f} | {r['seconds']:.1f} |")


if __name__ == "__main__":
    main()
