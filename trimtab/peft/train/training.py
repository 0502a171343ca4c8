"""The training run: the Hugging Face Trainer with a loss on labelled positions and guards against silent failure."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer

from trimtab.errors import Incompatible
from trimtab.models.anatomy import base_of
from trimtab.models.calling import logits_limit
from trimtab.models.processes import is_split, on_cpu, split_like, wait, whole
from trimtab.peft.parts.attached import Attached
from trimtab.peft.train.checks import COMPLETE, GradientCheck, MovementCheck
from trimtab.peft.train.examples import IGNORED, bucketed
from trimtab.peft.train.masters import Masters
from trimtab.storage import write_errors, write_json

STATE = "trimtab.safetensors"


class Tuned(nn.Module):
    """What the Trainer holds: the parts to train, wherever those live, and the way to call the model.

    The model is no submodule: the Trainer walks over all of what it holds several times a step, and a large model's
    thousands of modules, of which it would move, clip and clear nothing but the parts, took 40 ms a step.
    """

    def __init__(self, attached: Attached, device: torch.device | None = None) -> None:
        super().__init__()
        base = base_of(attached.model)
        self.parts = nn.ParameterList(attached.trainable().values())
        self.config = copy.deepcopy(base.config)  # the Trainer switches the cache off in it
        # the Trainer leaves a model where it is whose map does not say that it lives on the Trainer's own device
        self.hf_device_map = getattr(base, "hf_device_map", None) or {"": device or base.device}
        self._held = (attached.model,)
        self._one_head = bool(logits_limit(base, 1))
        self._mode: bool | None = None

    def train(self, mode: bool = True) -> Tuned:
        """Set the model's mode where it changes."""
        if mode != self._mode:
            self._held[0].train(mode)
            self._mode = mode
        return super().train(mode)

    def forward(self, columns: Tensor, **inputs: Tensor) -> Float[Tensor, "batch column vocab"]:
        """Return the logits at the given positions; the model's head runs on those alone where it can."""
        limit = {"logits_to_keep": columns} if self._one_head else {}
        logits = self._held[0](**inputs, use_cache=False, **limit).logits
        return logits if self._one_head else logits[:, columns]


class TuningTrainer(Trainer):
    """A Trainer whose loss is the sum over labelled tokens divided by their number in the whole batch."""

    def __init__(self, attached: Attached, device: torch.device, **options: Any) -> None:
        tuned = Tuned(attached, device)
        super().__init__(model=tuned, **options)
        self.split = any(map(is_split, attached.trainable().values()))
        if self.split:
            # prepared already, they are not wrapped for averaging gradients: FSDP does that, and DDP cannot
            self.accelerator.prepare_model(tuned, device_placement=False, evaluation_mode=True)
        self.remove_callback(PrinterCallback)
        self.check = GradientCheck(attached.trainable())
        self.add_callback(self.check)
        self.masters = Masters(attached.trainable())
        self.add_callback(MovementCheck(attached.trainable(), self.masters.tensors()))
        self.attached = attached
        self.tokens_seen = 0
        self.examples_seen = 0
        # the loss below is normalised over the accumulated batch, by the count of labels that this asks for
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return LengthBuckets(self, train_dataset or self.train_dataset)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of what weight decay applies to: not the model's biases and norms, nor what has no scale."""
        inside = self.attached.model
        decayed = set(super().get_decay_parameter_names(inside))
        spared = {id(p) for name, p in inside.named_parameters() if name not in decayed}
        spared |= {id(p) for p in self.attached.undecayed()}
        return [name for name, p in model.named_parameters() if id(p) not in spared]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the summed loss of the labelled tokens over their number in the whole optimiser batch."""
        columns, sign, dense = inputs.pop("columns"), inputs.pop("sign", None), inputs.pop("dense")
        labels = inputs.pop("labels")[:, columns]
        inputs.pop("shift_labels")
        logits = model(columns=columns, **inputs)
        # choosing copies the logits, which are large: not where all are wanted
        chosen = slice(None) if dense else (labels != IGNORED).flatten()
        flat = labels.flatten()[chosen]
        signs = None if sign is None else sign[:, columns].flatten()[chosen]
        total = signed_loss(logits.flatten(0, 1)[chosen], flat, signs)
        count = len(flat) if num_items_in_batch is None else num_items_in_batch
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            total = total * self.accelerator.num_processes  # gradients are averaged over processes
        loss = total / count
        return (loss, {"logits": logits}) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Return the loss of one forward and backward."""
        self.tokens_seen += inputs.pop("n_tokens")
        self.examples_seen += inputs.pop("n_examples")
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.check.losses.append(loss.detach())
        return loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        place = f"a checkpoint of step {self.state.global_step} in {self.args.output_dir}"
        tokens, examples = self.seen_by_all()
        try:
            with write_errors(place):
                super()._save_checkpoint(*args, **kwargs)
                wait()  # each process writes its random state beside
                if self.args.should_save:
                    folder = Path(self.args.output_dir or ".") / f"checkpoint-{self.state.global_step}"
                    write_json(folder / COMPLETE, {"tokens": tokens, "examples": examples})
        except RuntimeError as cause:  # as which torch reports a disk that takes no more
            if "PytorchStreamWriter" not in str(cause):
                raise
            raise Incompatible(
                f"cannot write {place} (torch: file write failed); make room or name another disk"
            ) from cause

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what training goes on from; every process must come here."""
        folder = Path(output_dir or self.args.output_dir or ".")
        tensors = on_cpu({**self.attached.resume_tensors(), **self.masters.tensors()})
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / STATE)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Return the optimiser; what it keeps of split weights is whole in its state dict."""
        optimizer = super().create_optimizer(*args, **kwargs)
        self.masters.take_over(optimizer)
        if self.split:
            optimizer.register_state_dict_post_hook(_whole_state)
            optimizer.register_load_state_dict_pre_hook(_split_state)
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.split and not self.args.should_save:  # the first process writes it, but cannot gather it alone
            cast(Optimizer, self.optimizer).state_dict()
        super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ARG002
        folder = Path(resume_from_checkpoint)
        held = load_file(folder / STATE)
        self.attached.load(held)
        self.masters.load(held)
        seen = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        if self.is_world_process_zero():  # the marks hold the sums over processes
            self.tokens_seen, self.examples_seen = seen["tokens"], seen["examples"]

    def seen_by_all(self) -> tuple[int, int]:
        """Return the tokens and examples that all processes together have seen; every process must ask."""
        seen = torch.tensor([self.tokens_seen, self.examples_seen], device=self.args.device)
        tokens, examples = cast(Tensor, self.accelerator.reduce(seen, "sum")).tolist()
        return tokens, examples


class LengthBuckets(Sampler):
    """Examples in the order of `bucketed`.

    The Trainer's own draws from the global generator, so that a run resumed in a later epoch sees another order.
    """

    def __init__(self, trainer: TuningTrainer, data: Any) -> None:
        self._trainer, self._lengths = trainer, [len(data[i]["input_ids"]) for i in range(len(data))]

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        arguments, epoch = self._trainer.args, int(self._trainer.state.epoch or 0)
        # of the whole step on all processes: each then takes a stretch of the batch that one process would have
        size = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        yield from bucketed(self._lengths, size, seed=arguments.seed, epoch=epoch)


def _whole_state(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    kept = {i: {k: whole(v) for k, v in entries.items()} for i, entries in state["state"].items()}
    return {**state, "state": kept}


def _split_state(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    places = [p for group in optimizer.param_groups for p in group["params"]]
    kept = {
        i: {k: split_like(v, places[i]) if isinstance(v, Tensor) and v.ndim else v for k, v in entries.items()}
        for i, entries in state["state"].items()
    }
    return {**state, "state": kept}


def signed_loss(logits: Float[Tensor, "token vocab"], labels: Tensor, sign: Tensor | None = None) -> Float[Tensor, ""]:
    """Return the sum over tokens of -log p where the sign is 1, and of -log(1 - p) where it is -1."""
    negative_log_p = cross_entropy(logits.float(), labels, reduction="none")
    if sign is None:
        return negative_log_p.sum()
    # unlikelihood (Welleck et al. 2020): cross-entropy itself has no lower bound to move away to
    away = -torch.log1p(-torch.exp(-negative_log_p).clamp(max=1 - 1e-6))
    return torch.where(sign > 0, negative_log_p, away).sum()
