"""Tuning on one GPU: QLoRA at 7B against a plain PEFT + bitsandbytes loop, and every kind of method at GPT-2 Medium.

    python benchmarks/gpu_tuning.py --out gpu_tuning.json            # all stages, about five minutes on one H100
    python benchmarks/gpu_tuning.py --stages methods --out m.json
    python benchmarks/gpu_tuning.py --tiny --out tiny.json           # the same on a CPU in a minute

Models are random-init from configs: speed and memory do not depend on what the weights say. Both loops train the same
rows of tokens with the same settings; tokens are real ones, padding is not counted. Peak memory is what PyTorch had
allocated at most.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, TrainerCallback
from transformers.utils import logging as hf_logging

from trimtab import peft
from trimtab.activations import Head
from trimtab.models import load_model
from trimtab.models.loading import embedded_folder
from trimtab.peft.data import Collator, Encoded, Examples
from trimtab.peft.fitting import make_trainer, run_trainer
from trimtab.peft.recipe import Recipe

STAGES = ("qlora", "methods")
WARM = 3
"""Steps before the clock starts."""


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
        start = time.perf_counter()
        rows = (qlora if stage == "qlora" else methods)(options.tiny, options.steps)
        report[stage] = {"rows": rows, "seconds": round(time.perf_counter() - start, 1)}
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for stage in options.stages:
        print_table(stage, report[stage]["rows"])


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


def qlora(tiny: bool, steps: int) -> list[dict[str, Any]]:
    """Same settings: full rows, every token learned. Then rows as instruction data has them: short, a part learned."""
    model = four_bit_llama(tiny)
    vocab, length = model.config.vocab_size, 64 if tiny else 512
    n = 8 * (steps + WARM)
    full = Examples([Encoded(row, 1) for row in random_rows([length] * n, vocab)])
    lengths = instruction_lengths(3 * n, length)
    short = Examples([Encoded(row, max(1, int(0.7 * len(row)))) for row in random_rows(lengths, vocab)])
    rows = [
        plain_loop(model, full, 8, steps, "plain PEFT + bitsandbytes loop, 8 x 512, all learned"),
        trimtab_loop(model, full, 8, steps, "trimtab, 8 x 512, all learned", packing=False),
        plain_loop(model, short, 24, steps, "plain loop, 24 short rows, 30 % learned"),
        trimtab_loop(model, short, 24, steps, "trimtab, the same rows, label-only head", packing=False),
        trimtab_loop(model, short, 24, steps, "trimtab, the same rows, label-only head, packed", packing=True),
    ]
    del model
    free()
    return rows


def four_bit_llama(tiny: bool) -> Any:
    big = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=4096 if tiny else 32000, max_position_embeddings=2048, **(small if tiny else big))
    with tempfile.TemporaryDirectory() as folder, torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(embedded_folder()).save_pretrained(folder)
        free()
        with torch.device("cpu"):
            return load_model(folder, quantization="nf4-dq", dtype="bfloat16").model


def lora() -> peft.LoRA:
    settings = Recipe(optimizer="paged_adamw", checkpointing=True, precision="bf16", learning_rate=2e-4)
    return peft.LoRA(r=64, alpha=16, recipe=settings)


def plain_loop(model: Any, data: Examples, batch_size: int, steps: int, name: str) -> dict[str, Any]:
    """What a user would write: pad on the right, mask the labels, let the model compute its loss."""
    import bitsandbytes as bnb
    import peft as hf_peft

    config = hf_peft.LoraConfig(r=64, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    free()
    tuned = hf_peft.get_peft_model(model, config)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    tuned.train()
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = bnb.optim.PagedAdamW32bit(trained, lr=2e-4)
    reset_peak()
    times, tokens = [], []
    for step in range(steps + WARM):
        examples = data.encoded[step * batch_size : (step + 1) * batch_size]
        batch = right_padded(examples, model.device)
        start = clock()
        with torch.autocast(model.device.type, torch.bfloat16):
            loss = tuned(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(clock() - start)
        tokens.append(sum(len(e.ids) for e in examples))
    row = measured(name, times, tokens)
    model.gradient_checkpointing_disable()
    tuned.unload()
    vars(model).pop("peft_config", None)
    del tuned, optimizer, trained
    free()
    return row


def right_padded(examples: tuple[Encoded, ...], device: Any) -> dict[str, torch.Tensor]:
    width = max(len(e.ids) for e in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, e in enumerate(examples):
        ids[row, : len(e.ids)], mask[row, : len(e.ids)] = torch.tensor(e.ids), 1
        labels[row, e.start : len(e.ids)] = torch.tensor(e.ids[e.start :])
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": labels.to(device)}


class Clock(TrainerCallback):
    """Notes when each step starts and ends, as the plain loop does."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.start = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.start = clock()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.times.append(clock() - self.start)


def trimtab_loop(
    model: Any,
    data: Examples,
    batch_size: int,
    steps: int,
    name: str,
    *,
    packing: bool,
    method: peft.TuningMethod | None = None,
) -> dict[str, Any]:
    """The Trainer that `fit` runs, on rows that are tokens already."""
    method = lora() if method is None else method
    knobs = {"batch_size": batch_size, "max_steps": steps + WARM}
    method = method.with_knobs(knobs)
    free()
    modes = model.training
    attached = method.attach(model, seed=0)
    if method.recipe.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    reset_peak()
    ticks = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(attached, method, data, Collator(0, packing), seed=0, folder=Path(folder), keep=False)
        trainer.add_callback(ticks)
        seen = Seen(trainer)
        trainer.add_callback(seen)
        run_trainer(trainer)
    row = measured(name, ticks.times, seen.tokens)
    row["trained_numbers"] = sum(p.numel() for p in attached.trainable().values())
    model.gradient_checkpointing_disable()
    attached.detach()
    model.train(modes)
    del trainer, attached, seen
    free()
    return row


class Seen(TrainerCallback):
    """Notes the tokens of each step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.tokens, self.before = trainer, [], 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.tokens.append(self.trainer.tokens_seen - self.before)
        self.before = self.trainer.tokens_seen


# --- every kind of method at GPT-2 Medium -----------------------------------------------------------------------------


def methods(tiny: bool, steps: int) -> list[dict[str, Any]]:
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
    rows = [trimtab_loop(model, data, 8, steps, m.name, packing=False, method=m) for m in chosen]
    del model
    free()
    return rows


# --- measuring --------------------------------------------------------------------------------------------------------


def random_rows(lengths: list[int], vocab: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in lengths]


def instruction_lengths(n: int, longest: int) -> list[int]:
    """Lengths as instruction data has them: log-normal around a quarter of the longest."""
    generator = torch.Generator().manual_seed(1)
    draws = torch.exp(math.log(longest / 4) + 0.6 * torch.randn(n, generator=generator))
    return [int(x) for x in draws.clamp(16, longest)]


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measured(name: str, times: list[float], tokens: list[int]) -> dict[str, Any]:
    timed, counted = times[WARM:], tokens[WARM:]
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    return {
        "name": name,
        "tokens_per_second": round(sum(counted) / sum(timed), 1),
        "ms_per_step": round(1000 * statistics.median(timed), 2),
        "ms_of_steps": [round(1000 * t, 2) for t in timed],
        "tokens_of_steps": counted,
        "peak_gb": None if peak is None else round(peak, 3),
    }


def print_table(stage: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{stage}: {'':55} tokens/s   ms/step   peak GB")
    for row in rows:
        peak = "-" if row["peak_gb"] is None else f"{row['peak_gb']:.2f}"
        print(f"  {row['name']:60} {row['tokens_per_second']:9.0f} {row['ms_per_step']:9.1f} {peak:>9}")


if __name__ == "__main__":
    main()
