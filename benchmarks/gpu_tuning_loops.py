"""The two training loops that gpu_tuning.py times: what a user would write with PEFT, and the one that `fit` runs."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from trimtab import peft
from trimtab.peft.train.examples import Batches, Collator, Encoded, Examples
from trimtab.peft.train.trainer_run import cast_once, checkpointed, make_trainer, run_trainer

WARM = 3
"""Steps before the clock starts."""


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
    try:
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
        return measured(name, times, tokens) | {"last_loss": round(float(loss.detach()), 4)}
    finally:
        model.gradient_checkpointing_disable()
        tuned.unload()
        vars(model).pop("peft_config", None)
        del tuned, optimizer, trained
        free()


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
    method: peft.TuningMethod,
) -> dict[str, Any]:
    """The Trainer that `fit` runs, on rows that are tokens already."""
    method = method.with_knobs({"batch_size": batch_size, "max_steps": steps + WARM})
    free()
    modes = model.training
    attached = method.attach(model, seed=0)
    reset_peak()
    ticks = Clock()
    try:
        with tempfile.TemporaryDirectory() as name_of_folder:
            folder = Path(name_of_folder)
            trainer = make_trainer(attached, method, Batches(data, Collator(0, packing)), folder=folder, keep=False)
            seen = Seen(trainer)
            trainer.add_callback(ticks)
            trainer.add_callback(seen)
            with checkpointed(model, method.recipe), cast_once(attached, method.recipe):
                run_trainer(trainer)
        losses = [h["loss"] for h in trainer.state.log_history if "loss" in h]
        row = measured(name, ticks.times, seen.tokens) | {"last_loss": round(losses[-1], 4)}
        return row | {"trained_numbers": attached.trained().n}
    finally:
        attached.detach()
        model.train(modes)
        trainer = seen = None
        free()


class Seen(TrainerCallback):
    """Notes the tokens of each step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.tokens, self.before = trainer, [], 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.tokens.append(self.trainer.tokens_seen - self.before)
        self.before = self.trainer.tokens_seen


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
