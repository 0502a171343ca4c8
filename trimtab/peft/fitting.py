"""fit_method: attach, plan, train, take what was learned; the one way in which every method is fitted."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments
from transformers.utils import logging as hf_logging

from trimtab.datasets import QuestionSet, SftExample
from trimtab.edits import Cost
from trimtab.errors import BadValue, Incompatible
from trimtab.models.fingerprint import fingerprint
from trimtab.models.heads import base_of
from trimtab.models.hooks import is_compiled
from trimtab.models.processes import PRECISION, plain_launch, rank_and_count
from trimtab.models.tokens import input_device, pad_id
from trimtab.peft import zero
from trimtab.peft.attaching import require_whole
from trimtab.peft.data import Collator, Examples, encode
from trimtab.peft.edit import TunedEdit
from trimtab.peft.memory import PeakMemory
from trimtab.peft.method import Attached, TuningMethod
from trimtab.peft.packing import packs_exactly
from trimtab.peft.plan import Plan, make_plan
from trimtab.peft.recipe import Recipe
from trimtab.peft.runs import RunFolder
from trimtab.peft.sharding import Sharding, twin_of
from trimtab.peft.snapshot import Snapshot
from trimtab.peft.speed import ms_per_token
from trimtab.peft.trackers import require_lasting
from trimtab.peft.training import TuningTrainer, on_cpu

PLANS = logging.getLogger(__name__)
"""Where plans go that no terminal shows."""
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}


def fit_method(
    method: TuningMethod,
    model: Any,
    tokenizer: Any,
    train: QuestionSet | Sequence[SftExample],
    *,
    seed: int,
    out: str | Path | None,
    resume: bool,
) -> TunedEdit:
    """Return the tuned edit; see `TuningMethod.fit`, which keeps the random state around it."""
    if is_compiled(model):
        raise Incompatible("the model was compiled before it is tuned; tune the uncompiled model")
    require_whole(model)
    require_lasting(method.recipe.report_to, out)
    start, sharding = time.perf_counter(), Sharding.asked()
    device = sharding.device if sharding else input_device(base_of(model))
    _require_launched_for(device, method.recipe)
    peak = PeakMemory(device)
    data = encode(model, tokenizer, train, method.recipe)
    made_on, untuned = fingerprint(model), ms_per_token(model)
    if sharding:
        sharding.require_runs_on(method, model, made_on)
    specification = {
        "model": made_on,
        "method": method.describe(),
        "recipe": method.recipe.as_dict(),
        "data": data.fingerprint,
        "seed": seed,
    }
    if (processes := rank_and_count()[1]) > 1:
        specification["processes"] = processes
    if zero.asked():  # its checkpoints are of its own, one file a process
        specification["deepspeed"] = True
    run = _Run(method, tokenizer, data, specification, seed, out, resume, device, sharding)
    learned = run.on(model)
    size = sum(t.numel() * t.element_size() for t in learned.tensors.values())
    record = {
        **specification,
        "data": {"fingerprint": data.fingerprint, "name": getattr(train, "name", "pairs"), "n": len(data)},
        "plan": learned.plan.as_dict(),
        "sharded": sharding is not None,
        "seconds": {"prepare": learned.prepared - start, "train": learned.trained - learned.prepared},
        "examples_seen": learned.examples_seen,
        "tokens_seen": learned.tokens_seen,
        "steps": learned.steps,
        "losses": learned.losses,
        "peak_bytes": peak.read(),
        "ms_per_token": {"untuned": untuned, "tuned": learned.ms_per_token},
    }
    cost = Cost(time.perf_counter() - start, learned.plan.n_trainable, size)
    return TunedEdit(method, learned.tensors, method.name, cost, record)


@dataclass(frozen=True)
class _Learned:
    """What a run gives; two of its times on the clock of `time.perf_counter`."""

    tensors: dict[str, Tensor]
    plan: Plan
    prepared: float
    trained: float
    tokens_seen: int
    examples_seen: int
    steps: int
    losses: list[float]
    ms_per_token: float


@dataclass(frozen=True)
class _Run:
    """One training run, from attaching to what was learned."""

    method: TuningMethod
    tokenizer: Any
    data: Examples
    specification: dict[str, Any]
    seed: int
    out: str | Path | None
    resume: bool
    device: torch.device
    sharding: Sharding | None

    def on(self, model: Any) -> _Learned:
        """Return what training on the model gives; it is then as before."""
        packing = _packing(self.method, model)
        if self.sharding is None:
            with _attached(self.method, model, self.seed) as attached:
                learned = self._trained(attached, packing)
                return replace(learned, ms_per_token=ms_per_token(attached.model))
        learned = self._trained(self.method.attach(twin_of(model), seed=self.seed), packing)
        gc.collect()  # the twin, whose modules and shards refer to each other
        edit = TunedEdit(self.method, learned.tensors, record={"seed": self.seed})
        with edit.applied(model) as tuned:
            return replace(learned, ms_per_token=ms_per_token(tuned))

    def _trained(self, attached: Attached, packing: bool) -> _Learned:
        method, recipe, data = self.method, self.method.recipe, self.data
        plan = make_plan(
            method,
            attached,
            self.tokenizer,
            data,
            steps=n_steps(len(data), recipe),
            packing=packing,
            seed=self.seed,
            sharding=self.sharding,
        )
        if rank_and_count()[0] == 0:
            _tell(plan.to_text())
        with RunFolder.opened(self.out, self.specification, resume=self.resume) as folder, plain_launch():
            if self.sharding:
                self.sharding.apply(attached)
            collator, keep = Collator(pad_id(self.tokenizer), packing), self.out is not None
            trainer = make_trainer(
                attached, method, data, collator, seed=self.seed, folder=folder.path, keep=keep, device=self.device
            )
            prepared = time.perf_counter()
            with checkpointed(attached.model, recipe), cast_once(attached, recipe):
                run_trainer(trainer, folder.checkpoint)
            trained = time.perf_counter()
            tokens_seen, examples_seen = trainer.seen_by_all()
        return _Learned(
            tensors=on_cpu(attached.tensors()),
            plan=plan,
            prepared=prepared,
            trained=trained,
            tokens_seen=tokens_seen,
            examples_seen=examples_seen,
            steps=trainer.state.global_step,
            losses=[round(h["loss"], 6) for h in trainer.state.log_history if "loss" in h],
            ms_per_token=math.nan,
        )


def _require_launched_for(device: torch.device, recipe: Recipe) -> None:
    """Raise `BadValue` if the launch asks for another precision than the recipe, or reaches GPUs and not the CPU."""
    asked = os.environ.get(PRECISION, "no")
    if asked not in ("no", "", recipe.precision):
        # the Trainer would follow it, and the record would name the recipe's
        raise BadValue(
            f"this launch asks for mixed precision {asked!r}, the recipe for {recipe.precision or 'none'}: launch with "
            '--mixed_precision no, and say precision="bf16" (trimtab tune --set precision=bf16) if it is wanted'
        )
    if device.type == "cpu" and rank_and_count()[1] > 1 and torch.distributed.get_backend() == "nccl":
        raise BadValue(
            "the model is on the CPU, and the processes of this launch are GPUs': load it on each one's GPU, split it "
            "over them (accelerate launch --use_fsdp --fsdp_version 2), or launch with --cpu"
        )


def n_steps(n_examples: int, recipe: Recipe) -> int:
    """Return the optimiser steps of a run; each process of a launch takes a batch of its own in every step."""
    together = recipe.batch_size * rank_and_count()[1]
    return recipe.max_steps or math.ceil(math.ceil(n_examples / together) * recipe.epochs)


def _packing(method: TuningMethod, model: Any) -> bool:
    asked = method.recipe.packing
    if asked and not method.capabilities.packing:
        raise BadValue(
            f"{method.name} cannot be trained on packed rows: examples in a row would see each other; leave packing out"
        )
    wanted = method.capabilities.packing if asked is None else asked
    if not wanted or packs_exactly(model):
        return wanted
    if asked:
        raise BadValue("this model's attention mixes examples that share a row (measured on it); leave packing out")
    return False


@contextlib.contextmanager
def _attached(method: TuningMethod, model: Any, seed: int) -> Iterator[Attached]:
    modes = Snapshot(base_of(model))
    attached = method.attach(model, seed=seed)
    try:
        yield attached
    finally:
        attached.detach()
        modes.restore_modes()  # the Trainer trains in training mode


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


def _tell(plan: str) -> None:
    if sys.stderr.isatty():
        print(plan, file=sys.stderr)
    else:
        PLANS.info(plan)


def make_trainer(
    attached: Attached,
    method: TuningMethod,
    data: Examples,
    collator: Collator,
    *,
    seed: int,
    folder: Path,
    keep: bool,
    device: torch.device | None = None,
) -> TuningTrainer:
    """Return the Trainer of a run by the method's recipe; `keep` asks for checkpoints in `folder`.

    `device` is the model's if not given; weights that are split may be kept elsewhere.

    Raises:
        BadValue: fp16 on a CPU, or for parts that are themselves kept in it.
    """
    recipe, device = method.recipe, device or input_device(base_of(attached.model))
    if recipe.precision == "fp16":
        _require_scalable(attached, device)
    micro, steps = recipe.micro_batch or recipe.batch_size, n_steps(len(data), recipe)
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
        seed=seed,
        save_strategy="steps" if keep else "no",
        save_steps=recipe.save_every,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it waits for the GPU at every step; GradientCheck stops at such a loss
        report_to=list(recipe.report_to),
        log_level_replica="error",  # a warning of the first process is enough, and that one is silenced
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        use_cpu=device.type == "cpu",
        # of an expert that no token was sent to; looking for others would cost a walk of the graph at every step
        ddp_find_unused_parameters=any("expert" in name for name in attached.trainable()),
    )
    # without a launcher, several visible GPUs would be used by DataParallel, which copies the model at every step
    arguments._n_gpu = min(arguments.n_gpu, 1)
    with _quiet():  # that it leaves the model where it is
        return TuningTrainer(attached, device=device, args=arguments, train_dataset=data, data_collator=collator)


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
    if any(p.dtype == torch.float16 for p in attached.trainable().values()):
        raise BadValue(
            'precision "fp16" cannot train weights that are float16 themselves: gradients of that dtype cannot be '
            'unscaled; load the model in float32 or bfloat16, or use "bf16"'
        )


def run_trainer(trainer: TuningTrainer, checkpoint: Path | None = None) -> None:
    """Train, from a checkpoint if one is given; raises `BadValue`, saying what helps, if a GPU runs out of memory."""
    try:
        with _quiet(), zero.storage_kept(trainer):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.cuda.OutOfMemoryError as cause:
        recipe_size = trainer.args.per_device_train_batch_size
        raise BadValue(
            f"the GPU ran out of memory with {recipe_size} examples in a forward: set micro_batch to a smaller divisor "
            "of batch_size, or checkpointing=True; gradients stay those of the whole batch"
        ) from cause
