"""A Trainer by a method's recipe, and running it."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.utils import logging as hf_logging

from trimtab.devices import ran_out_of_memory
from trimtab.errors import BadValue, OutOfMemory, first_line
from trimtab.models.anatomy import base_of, input_device
from trimtab.models.processes import rank_and_count
from trimtab.peft.parts.attached import Attached
from trimtab.peft.recipe import OPTIMIZERS, SCHEDULES, Recipe
from trimtab.peft.train.examples import Batches
from trimtab.peft.train.training import TuningTrainer
from trimtab.peft.tunable import Tunable
from trimtab.progress import progress


def n_steps(n_examples: int, recipe: Recipe) -> int:
    """Return the optimiser steps of a run; each process of a launch takes a batch of its own in every step."""
    together = recipe.batch_size * rank_and_count()[1]
    return recipe.max_steps or math.ceil(math.ceil(n_examples / together) * recipe.epochs)


@contextlib.contextmanager
def checkpointed(model: Any, recipe: Recipe) -> Iterator[None]:
    """Run the block under non-reentrant gradient checkpointing if the recipe asks for it."""
    base = base_of(model)
    if not recipe.checkpointing:
        yield
        return
    if not getattr(base, "supports_gradient_checkpointing", False):
        raise BadValue(f"{type(base).__name__} has no gradient checkpointing; leave it out")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
        before = base.is_gradient_checkpointing
        # the reentrant kind gives a frozen base's adapters no gradients, silently
        base.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            yield
        finally:
            base.disable_input_require_grads()
            if not before:
                base.gradient_checkpointing_disable()


@contextlib.contextmanager
def cast_once(attached: Attached, recipe: Recipe) -> Iterator[None]:
    """Leave casting to autocast, where PEFT would first cast every adapter's input up to the adapter's float32."""
    if not recipe.precision:
        yield
        return
    # PEFT's own switch, disable_input_dtype_casting, fails on layers that never cast, such as (IA)^3's
    casting: list[Any] = [m for m in attached.model.modules() if getattr(m, "cast_input_dtype_enabled", False)]
    for module in casting:
        module.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for module in casting:
            module.cast_input_dtype_enabled = True


def make_trainer(
    attached: Attached,
    method: Tunable,
    batches: Batches,
    *,
    folder: Path,
    keep: bool,
    device: torch.device | None = None,
) -> TuningTrainer:
    """Return the Trainer of a run by the method's recipe; `keep` asks for checkpoints in `folder`.

    `device` is the model's if not given; weights that are split may be kept elsewhere.

    Raises:
        BadValue: fp16 on a CPU, or for parts that are themselves kept in 16 bits.
    """
    recipe, device = method.recipe, device or input_device(base_of(attached.model))
    if recipe.precision == "fp16":
        _require_scalable(attached, device)
    micro, steps = recipe.micro_batch or recipe.batch_size, n_steps(len(batches.data), recipe)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=recipe.batch_size // micro,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        learning_rate=recipe.learning_rate or method.learning_rate,
        lr_scheduler_type=SCHEDULES[recipe.schedule],
        # the first of them has a learning rate of 0: a run of one step must not be all warm-up
        warmup_steps=min(math.ceil(recipe.warmup * steps), steps - 1),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim=OPTIMIZERS[recipe.optimizer],
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16",
        seed=batches.seed,
        save_strategy="steps" if keep else "no",
        save_steps=recipe.save_every,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it waits for the GPU at every step; GradientCheck stops at such a loss
        report_to=list(recipe.report_to),
        log_level_replica="error",  # a warning of the first process is enough, and that one is silenced
        disable_tqdm=True,  # `run_trainer` shows the steps
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        use_cpu=device.type == "cpu",
        # of an expert that no token was sent to; looking for others would cost a walk of the graph at every step
        ddp_find_unused_parameters=any("expert" in name for name in attached.trainable()),
    )
    # without a launcher, several visible GPUs would be used by DataParallel, which copies the model at every step
    arguments._n_gpu = min(arguments.n_gpu, 1)
    try:
        with _quiet():  # that it leaves the model where it is
            return TuningTrainer(
                attached, device=device, args=arguments, train_dataset=batches.data, data_collator=batches.collator
            )
    except (ValueError, RuntimeError, ImportError) as cause:
        if not recipe.report_to:
            raise
        raise BadValue(f"report_to={', '.join(recipe.report_to)} does not run here: {first_line(cause)}") from cause


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)


def _require_scalable(attached: Attached, device: torch.device) -> None:
    """Raise `BadValue` where small gradients in fp16 could not be kept by scaling the loss."""
    if device.type == "cpu":
        raise BadValue(
            'precision "fp16" needs a GPU, whose losses are scaled against underflow; use "bf16" or leave it out'
        )
    short = next((p.dtype for p in attached.trainable().values() if p.element_size() < 4), None)
    if short is not None:
        raise BadValue(
            f'precision "fp16" cannot train weights that are {str(short).removeprefix("torch.")} themselves: gradients '
            'of that dtype cannot be unscaled; load the model in float32, or use "bf16"'
        )


def run_trainer(trainer: TuningTrainer, checkpoint: Path | None = None) -> None:
    """Train, from a checkpoint if one is given; raises `OutOfMemory`, saying what helps, if a GPU has too little."""
    try:
        with contextlib.ExitStack() as shown, _quiet():
            steps = _StepsShown(shown)
            trainer.add_callback(steps)
            shown.callback(trainer.remove_callback, steps)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except RuntimeError as cause:
        if not ran_out_of_memory(cause):
            raise
        recipe_size = trainer.args.per_device_train_batch_size
        raise OutOfMemory(
            f"{trainer.args.device} ran out of memory with {recipe_size} examples in a forward: set micro_batch to a "
            "smaller divisor of batch_size, or checkpointing=True; gradients stay those of the whole batch"
        ) from cause


class _StepsShown(TrainerCallback):
    """Shows the steps of a run that are left as all other work is shown, also where no terminal is."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Begin the bar, or the lines."""
        description = "training" if state.is_world_process_zero else ""
        self._advance = self._stack.enter_context(progress(description, state.max_steps - state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Move it on."""
        self._advance(1)
