"""Tuning on one GPU: QLoRA at 7B against a plain PEFT + bitsandbytes loop, and every kind of method at GPT-2 Medium.

    python benchmarks/gpu_tuning.py --out gpu_tuning.json            # all stages
    python benchmarks/gpu_tuning.py --stages methods --out m.json
    python benchmarks/gpu_tuning.py --tiny --out tiny.json           # the same on a CPU in a minute

Models are random-init from configs: speed and memory do not depend on what the weights say. Both loops train the same
rows of tokens with the same settings; tokens are real ones, padding is not counted. Peak memory is what PyTorch had
allocated at most.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from gpu_tuning_loops import WARM, free, plain_loop, trimtab_loop
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig
from transformers.utils import logging as hf_logging

from trimtab import peft
from trimtab.activations import Head
from trimtab.embedded import EMBEDDED_FOLDER
from trimtab.errors import TrimtabError
from trimtab.models import load_model
from trimtab.peft.recipe import Recipe
from trimtab.peft.train.examples import Encoded, Examples

STAGES = ("qlora", "instructions", "methods")
ROUNDS = 3
"""Turns of each loop where both train with the same settings."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each run")
    parser.add_argument("--tiny", action="store_true", help="tiny models, for trying the script on a CPU")
    options = parser.parse_args()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    report: dict[str, Any] = {"command": " ".join(sys.argv), "tiny": options.tiny, **hardware()}
    for stage in options.stages:
        start, rows = time.perf_counter(), []
        report[stage] = {"rows": rows}
        for row in {"qlora": qlora, "instructions": instructions, "methods": methods}[stage](
            options.tiny, options.steps
        ):
            # after each row, so that a run that is cut off loses nothing
            rows.append(row)
            report[stage]["seconds"] = round(time.perf_counter() - start, 1)
            options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            print(f"{report[stage]['seconds']:6.1f} s  {row['name']}: {row.get('error', 'done')}", flush=True)
    for stage in options.stages:
        print_table(stage, report[stage]["rows"])


def tried(loop: Callable[..., dict[str, Any]], *given: Any, **options: Any) -> dict[str, Any]:
    """Return the loop's row, or one that says why there is none; the model is as before either way."""
    try:
        return loop(*given, **options)
    except (RuntimeError, TrimtabError) as cause:
        free()
        return {"name": given[4], "error": f"{type(cause).__name__}: {cause}"[:500]}


def hardware() -> dict[str, Any]:
    packages = {}
    for name in ("trimtab", "torch", "transformers", "peft", "accelerate", "bitsandbytes"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = getattr(sys.modules.get(name), "__version__", "unknown")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"versions": packages, "gpu": gpu, "python": platform.python_version()}


# --- QLoRA at 7B ------------------------------------------------------------------------------------------------------


def qlora(tiny: bool, steps: int) -> Iterator[dict[str, Any]]:
    """Same settings: full rows, every token learned. Both loops in turns: a machine's speed changes while it works."""
    model = four_bit_llama(tiny)
    vocab, length = model.config.vocab_size, 64 if tiny else 512
    full = Examples([Encoded(row, 1) for row in random_rows([length] * 8 * (steps + WARM), vocab)])
    loops = {
        "plain PEFT + bitsandbytes loop": plain_loop,
        "trimtab": partial(trimtab_loop, method=lora(), packing=False),
    }
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in loops}
    for number in range(ROUNDS):
        for name in list(loops)[:: 1 if number % 2 else -1]:
            row = tried(loops[name], model, full, 8, steps, f"{name}, 8 x 512, all learned, round {number + 1}")
            seen[name].append(row)
            yield row
    medians = [[row["ms_per_step"] for row in rows if "error" not in row] for rows in seen.values()]
    if all(len(own) == ROUNDS for own in medians):
        yield {"name": "trimtab's time / the plain loop's", "of rounds": [b / a for a, b in zip(*medians, strict=True)]}


def instructions(tiny: bool, steps: int) -> Iterator[dict[str, Any]]:
    """Rows as instruction data has them: short, a part learned."""
    model = four_bit_llama(tiny)
    vocab, length, n = model.config.vocab_size, 64 if tiny else 512, 8 * (steps + WARM)
    lengths = instruction_lengths(3 * n, length)
    short = Examples([Encoded(row, max(1, int(0.7 * len(row)))) for row in random_rows(lengths, vocab)])
    ours, packed = {"method": lora(), "packing": False}, {"method": lora(), "packing": True}
    yield tried(plain_loop, model, short, 24, steps, "plain loop, 24 short rows, 30 % learned")
    yield tried(trimtab_loop, model, short, 24, steps, "trimtab, the same rows, label-only head", **ours)
    yield tried(trimtab_loop, model, short, 24, steps, "trimtab, the same rows, label-only head, packed", **packed)


def four_bit_llama(tiny: bool) -> Any:
    big = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=4096 if tiny else 32000, max_position_embeddings=2048, **(small if tiny else big))
    with tempfile.TemporaryDirectory() as folder, torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(EMBEDDED_FOLDER).save_pretrained(folder)
        free()
        with torch.device("cpu"):
            return load_model(folder, quantization="nf4-dq", dtype="bfloat16").model


def lora() -> peft.LoRA:
    settings = Recipe(optimizer="paged_adamw", checkpointing=True, precision="bf16", learning_rate=2e-4)
    return peft.LoRA(r=64, alpha=16, recipe=settings)


# --- every kind of method at GPT-2 Medium -----------------------------------------------------------------------------


def methods(tiny: bool, steps: int) -> Iterator[dict[str, Any]]:
    config = (
        GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4)
        if tiny
        else GPT2Config(n_embd=1024, n_layer=24, n_head=16)
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config).eval()
    length = 64 if tiny else 512
    data = Examples([Encoded(r, 1) for r in random_rows([length] * 8 * (steps + WARM), config.vocab_size)])
    recipe = Recipe(precision="bf16")
    width = 8 if tiny else 112
    chosen = [
        peft.FullFineTuning(recipe=recipe),
        peft.FullFineTuning(2, recipe=recipe),
        peft.LoRA(r=4, targets="qv", recipe=recipe),
        peft.LoRA(r=8, recipe=recipe),
        peft.Bottleneck("houlsby", width, recipe=recipe),
        peft.Bottleneck("lin", 6, recipe=recipe),
        peft.IA3(recipe=recipe),
        peft.PromptTuning(100 if not tiny else 10, recipe=recipe),
        peft.PrefixTuning(10, recipe=recipe),
        peft.HeadOffsets(heads=(Head(0, 0), Head(1, 1)), recipe=recipe),
        peft.IntrinsicDimension(1000, recipe=recipe),
    ]
    for method in chosen:
        yield tried(trimtab_loop, model, data, 8, steps, method.name, packing=False, method=method)


# --- measuring --------------------------------------------------------------------------------------------------------


def random_rows(lengths: list[int], vocab: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in lengths]


def instruction_lengths(n: int, longest: int) -> list[int]:
    """Lengths as instruction data has them: log-normal around a quarter of the longest."""
    generator = torch.Generator().manual_seed(1)
    draws = torch.exp(math.log(longest / 4) + 0.6 * torch.randn(n, generator=generator))
    return [int(x) for x in draws.clamp(16, longest)]


def print_table(stage: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{stage}: {'':55} tokens/s   ms/step   peak GB")
    for row in rows:
        if "peak_gb" not in row:
            print(f"  {row['name']:60} {row.get('error', row.get('of rounds'))}")
            continue
        peak = "-" if row["peak_gb"] is None else f"{row['peak_gb']:.2f}"
        print(f"  {row['name']:60} {row['tokens_per_second']:9.0f} {row['ms_per_step']:9.1f} {peak:>9}")


if __name__ == "__main__":
    main()
