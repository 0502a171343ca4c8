"""fit_method: attach, plan, train, take what was learned; the one way in which every method is fitted."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from trimtab.datasets.given import Rows, as_items
from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.questions import QuestionSet
from trimtab.datasets.statements import SftExample
from trimtab.errors import BadValue
from trimtab.evaluate.cost import peak_memory
from trimtab.models.anatomy import base_of, input_device
from trimtab.models.identity import fingerprint
from trimtab.models.processes import (
    COMPILER,
    ENGINES,
    PRECISION,
    all_or_none,
    launch_asks,
    on_cpu,
    plain_launch,
    rank_and_count,
)
from trimtab.models.tokens import pad_id
from trimtab.models.twin import twin_of
from trimtab.peft.parts.attached import Attached
from trimtab.peft.parts.attaching import require_no_compiled_graph, require_whole
from trimtab.peft.parts.snapshot import Snapshot
from trimtab.peft.recipe import Recipe
from trimtab.peft.train.examples import Batches, Collator, Examples, encode_examples
from trimtab.peft.train.packing import packs_exactly
from trimtab.peft.train.plan import TuningPlan, make_plan
from trimtab.peft.train.runs import TuningRunFolder, require_lasting
from trimtab.peft.train.sharding import Sharding
from trimtab.peft.train.trainer_run import cast_once, checkpointed, make_trainer, n_steps, run_trainer
from trimtab.peft.tunable import Tunable
from trimtab.peft.tuned_edit import TunedEdit
from trimtab.protocols import Cost

PLANS = logging.getLogger(__name__)
"""Where plans go that no terminal shows."""


def fit_method(
    method: Tunable,
    model: Any,
    tokenizer: Any,
    train: Rows,
    *,
    seed: int,
    out: str | Path | None,
    resume: bool,
) -> TunedEdit:
    """Return the tuned edit; see `TuningMethod.fit`, which keeps the random state around it."""
    require_no_compiled_graph(model)
    pairs = isinstance(train, list | tuple) and all(isinstance(e, SftExample) for e in train)
    examples: Any = train if pairs else as_items(train)
    require_whole(model)
    require_lasting(method.recipe.report_to, out)
    start, sharding = time.perf_counter(), Sharding.asked()
    device = sharding.device if sharding else input_device(base_of(model))
    _require_launched_for(device, method.recipe)
    data = encode_examples(model, tokenizer, examples, method.recipe)
    made_on = fingerprint(model)
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
    run = _Run(method, tokenizer, data, specification, seed, out, resume, device, sharding, start)
    with peak_memory(device) as peak:
        plan, tensors, found = run.on(model)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    record = {
        **specification,
        "data": {"fingerprint": data.fingerprint, "name": getattr(examples, "name", "pairs"), "n": len(data)},
        **found,
        "peak_bytes": {peak.kind: peak.bytes},
        "questions": [q.key for q in examples] if isinstance(examples, QuestionSet) else [],
        "asking": examples.asked_as("auto", tokenizer).asking if isinstance(examples, ItemSet) else "",
    }
    cost = Cost(time.perf_counter() - start, plan.n_trainable, size)
    return TunedEdit(method, tensors, method.name, cost, record)


_Learned: TypeAlias = tuple[TuningPlan, dict[str, Tensor], dict[str, Any]]
"""What was planned, what was learned, and what the record says of the run."""


@dataclass(frozen=True)
class _Run:
    """One training run, from attaching to what was learned."""

    method: Tunable
    tokenizer: Any
    data: Examples
    specification: dict[str, Any]
    seed: int
    out: str | Path | None
    resume: bool
    device: torch.device
    sharding: Sharding | None
    start: float
    """By `time.perf_counter`."""

    def on(self, model: Any) -> _Learned:
        """Return what training on the model gives; it is then as before."""
        packing = _packing(self.method, model)
        if self.sharding is None:
            with _attached(self.method, model, self.seed) as attached:
                return self._trained(attached, packing)
        learned = self._trained(self.method.attach(twin_of(model), seed=self.seed), packing)
        gc.collect()  # the twin, whose modules and shards refer to each other
        return learned

    def _trained(self, attached: Attached, packing: bool) -> _Learned:
        method, recipe, data = self.method, self.method.recipe, self.data
        batches = Batches(data, Collator(pad_id(self.tokenizer), packing), self.seed)
        made = partial(make_plan, method, attached, self.tokenizer, batches, steps=n_steps(len(data), recipe))
        # one process alone may have too little memory, and the others would wait for it
        plan = all_or_none(partial(made, sharding=self.sharding))
        if rank_and_count()[0] == 0:
            _tell(plan.to_text())
        with TuningRunFolder.opened(self.out, self.specification, resume=self.resume) as folder, plain_launch():
            if self.sharding:
                self.sharding.apply(attached)
            kept = {"folder": folder.path, "keep": self.out is not None}
            trainer = make_trainer(attached, method, batches, **kept, device=self.device)
            prepared = time.perf_counter()
            with checkpointed(attached.model, recipe), cast_once(attached, recipe):
                run_trainer(trainer, folder.checkpoint)
            trained = time.perf_counter()
            tokens_seen, examples_seen = trainer.seen_by_all()
        found = {
            "plan": plan.as_dict(),
            "sharded": self.sharding is not None,
            "seconds": {"prepare": prepared - self.start, "train": trained - prepared},
            "examples_seen": examples_seen,
            "tokens_seen": tokens_seen,
            "steps": trainer.state.global_step,
            "losses": [round(h["loss"], 6) for h in trainer.state.log_history if "loss" in h],
        }
        return plan, on_cpu(attached.tensors()), found


def _require_launched_for(device: torch.device, recipe: Recipe) -> None:
    """Raise `BadValue` if the launch asks for an engine or another precision, or compiles, or reaches GPUs alone."""
    for engine in (name for name, variable in ENGINES.items() if launch_asks(variable)):
        # DeepSpeed's moves weights into buffers of its own, hides their gradients and writes its state as pickles
        raise BadValue(
            f"tuning does not run under {engine}: launch with FSDP (accelerate launch --use_fsdp --fsdp_version 2), "
            "which splits weights, gradients and the optimiser's state, or without sharding (torchrun)"
        )
    asked = os.environ.get(PRECISION, "no")
    if asked not in ("no", "", recipe.precision):
        # the Trainer would follow it, and the record would name the recipe's
        raise BadValue(
            f"this launch asks for mixed precision {asked!r}, the recipe for {recipe.precision or 'none'}: launch with "
            '--mixed_precision no, and say precision="bf16" (trimtab tune --set precision=bf16) if it is wanted'
        )
    if os.environ.get(COMPILER, "no").lower() != "no":
        raise BadValue(
            "this launch asks for torch.compile, which would ignore parts that stand in hooks: launch with "
            "--dynamo_backend no"
        )
    if device.type == "cpu" and rank_and_count()[1] > 1 and torch.distributed.get_backend() == "nccl":
        raise BadValue(
            "the model is on the CPU, and the processes of this launch are GPUs': load it on each one's GPU, split it "
            "over them (accelerate launch --use_fsdp --fsdp_version 2), or launch with --cpu"
        )


def _packing(method: Tunable, model: Any) -> bool:
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
def _attached(method: Tunable, model: Any, seed: int) -> Iterator[Attached]:
    modes = Snapshot(base_of(model))
    attached = method.attach(model, seed=seed)
    try:
        yield attached
    finally:
        attached.detach()
        modes.restore_modes()  # the Trainer trains in training mode


def _tell(plan: str) -> None:
    if sys.stderr.isatty():
        print(plan, file=sys.stderr)
    else:
        PLANS.info(plan)
