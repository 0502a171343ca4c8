"""Editing facts in a random LLaMA-7B on one GPU: seconds and memory of the statistics, of one fact, of a hundred.

    python benchmarks/gpu_editing.py --out benchmarks/results/gpu_editing.json

A random model knows nothing, so these are costs alone. `--tiny` tries it out on a tiny model, on the CPU too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from speed_common import SIZES, command, random_llama, setting, timed, trained_tokenizer

from trimtab.cells import table_lines
from trimtab.cli.setup import quiet
from trimtab.datasets import atlas, folklore
from trimtab.knowledge import MEMIT, ROME
from trimtab.knowledge.moments import own_statistics
from trimtab.storage import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu_editing.json")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and four facts, to try the script out")
    options = parser.parse_args()
    quiet()
    size, n = ("tiny", 4) if options.tiny else ("llama-7b", 100)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = trained_tokenizer(folklore(), SIZES[size][4])
    # every token of a random model must be text, or its own texts would be shorter than what it wrote
    tokenizer.add_tokens([f"<{i}>" for i in range(len(tokenizer), SIZES[size][4])])
    model = random_llama(size, device=device, dtype=getattr(torch, options.dtype))
    facts = atlas()[:n]
    layers = tuple(range(1, 3)) if options.tiny else tuple(range(4, 9))
    held = _peak()
    result: dict[str, Any] = {"command": command(), **setting(), "model": f"random {size}, {options.dtype}"}
    result |= {"layers": list(layers), "facts": n, "model, GB": held}

    def record(name: str, work: Any) -> Any:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        seconds, found = timed(work)
        result[name] = {"seconds": seconds, "peak beyond the model, GB": _peak() - held}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out.resolve(), result)
        print(f"{name}: {result[name]}", flush=True)
        return found

    sites = MEMIT(layers=layers).sites(model)
    statistics = record(
        f"statistics of {len(layers)} layers, 10 x d_in tokens",
        lambda: own_statistics(model, tokenizer, sites, n_tokens=None, seed=0, cache=None),
    )
    record("ROME, one fact", lambda: ROME(layers=layers[:1], moment=statistics).fit(model, tokenizer, facts[:1]))
    record(f"MEMIT, {n} facts", lambda: MEMIT(layers=layers, moment=statistics).fit(model, tokenizer, facts))
    timings = {key: value for key, value in result.items() if isinstance(value, dict) and "seconds" in value}
    rows = [[key, *(f"{number:.1f}" for number in value.values())] for key, value in timings.items()]
    print("\n".join(table_lines(["", "s", "GB beyond the model"], rows)))


def _peak() -> float:
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


if __name__ == "__main__":
    main()
