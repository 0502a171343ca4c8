"""DeepSpeed's ZeRO under the Trainer: its settings come from the recipe, and what it hides is watched and kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trimtab.errors import BadValue
from trimtab.models.processes import rank_and_count
from trimtab.peft.parts.sublayers import has_separate_experts
from trimtab.peft.train.checks import GradientCheck

if TYPE_CHECKING:
    from trimtab.peft.train.training import TuningTrainer


STAGES = (1, 2)


def under_deepspeed(trainer: TuningTrainer) -> bool:
    """Return whether the Trainer runs DeepSpeed's engine."""
    return trainer.accelerator.distributed_type == DistributedType.DEEPSPEED


def configure(trainer: TuningTrainer, trained: Mapping[str, nn.Parameter]) -> None:
    """Let the recipe decide what DeepSpeed's own file would otherwise decide silently.

    Raises:
        BadValue: settings that contradict the recipe, or that split more than optimiser state and gradients; fp16, an
            optimiser of bitsandbytes, parts of several dtypes, separate experts.
    """
    plugin, args = cast(Any, trainer.accelerator.state.deepspeed_plugin), trainer.args
    config = plugin.deepspeed_config
    _require_supported(plugin, config)
    if own := sorted({"optimizer", "scheduler"} & config.keys()):
        raise BadValue(
            f"DeepSpeed's configuration sets {' and '.join(own)}, which the recipe does (optimizer, learning_rate, "
            f"weight_decay, schedule, warmup): leave {own[0]} out of it"
        )
    if differing := plugin.hf_ds_config.mismatches:
        raise BadValue(
            f"DeepSpeed's configuration contradicts the recipe ({'; '.join(d.lstrip('- ') for d in differing)}): write "
            '"auto" there, or leave it out'
        )
    dtypes = {p.dtype for p in trained.values()}
    for wrong, said in (
        (args.fp16, 'precision "fp16" is not supported under DeepSpeed; use "bf16" or leave it out'),
        (args.optim != "adamw_torch", "DeepSpeed splits the state of AdamW alone; leave the optimizer out"),
        (len(dtypes) > 1, f"DeepSpeed trains parts of one dtype, these are {', '.join(map(str, dtypes))}"),
        (has_separate_experts(trained),
         "DeepSpeed cannot reduce gradients of experts that are modules of their own; launch without it"),
    ):  # fmt: skip
        if wrong:
            raise BadValue(said)
    config["gradient_clipping"] = args.max_grad_norm  # DeepSpeed clips nothing where its file names no norm
    # its own bf16 would round the parts themselves, which are float32 so that small steps are kept
    config["bf16"] = {"enabled": dtypes == {torch.bfloat16}}
    if args.bf16:
        # without the list, gradients of linear layers would be summed over processes in bf16
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}


def _require_supported(plugin: Any, config: Mapping[str, Any]) -> None:
    fsdp = "FSDP (accelerate launch --use_fsdp --fsdp_version 2)"
    if plugin.zero_stage not in STAGES:
        raise BadValue(
            f"tuning runs under ZeRO stages 1 and 2, which split the optimiser's state and gradients, not under stage "
            f"{plugin.zero_stage}; to split the weights as well, launch with {fsdp}"
        )
    zero = config.get("zero_optimization", {})
    for name in ("offload_optimizer", "offload_param"):
        if (zero.get(name) or {}).get("device", "none") not in ("none", None):
            raise BadValue(
                f"DeepSpeed's {name} is not supported; leave it out, or launch with {fsdp}, which can offload"
            )


class ZeroGradientCheck(GradientCheck):
    """The check where gradients are reduced, applied and thrown away within the backward pass.

    What is looked at is each process's own gradients: DeepSpeed's norm replaces what is no number by -1 and squares it.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], reduce: Callable[[Tensor], Any]) -> None:
        super().__init__(parameters)
        self._reduce, self._squares = reduce, {}

    def watch(self) -> list[RemovableHandle]:
        """Note the gradients of every later backward pass, until the hooks are removed."""
        return [p.register_hook(partial(self._note, name)) for name, p in self.parameters.items()]

    def _note(self, name: str, gradient: Tensor) -> None:
        self._squares[name] = self._squares.get(name, 0) + gradient.detach().float().square().sum()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Note which tensors have had a gradient on any process, and whether all are numbers."""
        self._steps += 1
        none = torch.zeros((), device=args.device)
        squares = self._reduce(torch.stack([self._squares.get(name, none) for name in self.parameters]))
        self._squares = {}
        self._norm = squares.sum()
        if self.silent:
            for name, square in zip(self.parameters, squares.tolist(), strict=True):
                if square:
                    self.silent.pop(name, None)


@contextlib.contextmanager
def storage_kept(trainer: TuningTrainer) -> Iterator[None]:
    """Give the parts their own storage back after the block, with what was learned; DeepSpeed moves them into buffers.

    Hooks, its own and the check's, go too: they would run in every later backward pass through weights that were tuned
    themselves.
    """
    if not under_deepspeed(trainer):
        yield
        return
    before = [(p, p.data, dict(vars(p))) for p in trainer.attached.trainable().values()]
    hooks = cast(ZeroGradientCheck, trainer.check).watch()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        if trainer.accelerator.deepspeed_engine_wrapped is not None:
            trainer.accelerator.deepspeed_engine_wrapped.engine.destroy()
        for parameter, data, attributes in before:
            data.copy_(parameter.data)
            parameter.data, parameter.grad = data, None
            vars(parameter).clear()
            vars(parameter).update(attributes)


def keep_state_without_pickle(trainer: TuningTrainer) -> None:
    """Let the engine write and read its state as safetensors: its own files are pickles, loaded with all they hold."""
    engine = cast(Any, trainer.accelerator.deepspeed_engine_wrapped).engine
    engine.save_checkpoint = partial(_save_state, engine)
    engine.load_checkpoint = partial(_load_state, engine, trainer)


def _place(folder: str) -> Path:
    # the Trainer looks for a folder of such a name
    return Path(folder) / "global_step" / f"{rank_and_count()[0]}.safetensors"


def _shares(engine: Any) -> list[tuple[str, dict[str, Any], Tensor]]:
    """Return a prefix, the group, and this process's share of its weights (flat, float32) by group of parameters."""
    groups = engine.optimizer.optimizer.param_groups
    return [(f"{i}.", group, group["params"][0]) for i, group in enumerate(groups)]


def _save_state(engine: Any, folder: str, **options: Any) -> None:  # noqa: ARG001
    place, kept = _place(folder), {}
    place.parent.mkdir(parents=True, exist_ok=True)
    for prefix, group, share in _shares(engine):
        rate = torch.tensor(group["lr"], dtype=torch.float64)  # a schedule sets it at its next step only
        state = {"share": share, "lr": rate, **engine.optimizer.optimizer.state[share]}
        kept |= {prefix + key: t.detach().cpu().clone() for key, t in state.items()}
    save_file(kept, place)


def _load_state(engine: Any, trainer: TuningTrainer, folder: str, **options: Any) -> tuple[str, None]:  # noqa: ARG001
    trainer._load_from_checkpoint(folder)
    held = load_file(_place(folder))
    for prefix, group, share in _shares(engine):
        mine = {key.removeprefix(prefix): t for key, t in held.items() if key.startswith(prefix)}
        share.data.copy_(mine.pop("share"))
        group["lr"] = float(mine.pop("lr"))
        # the count of steps stays on the CPU
        moments = {key: t if t.ndim == 0 else t.to(share.device) for key, t in mine.items()}
        engine.optimizer.optimizer.state[share] = moments
    return folder, None
