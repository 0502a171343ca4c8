"""Weights split over processes (FSDP2), on a twin of the model.

Not by accelerate's own FSDP, which leaves processes without an accelerator unsplit and has no place for parameters that
every process keeps whole: it would take those that hooks hold out of training.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trimtab.devices import ran_out_of_memory
from trimtab.errors import BadValue, Incompatible, OutOfMemory, first_line
from trimtab.models.anatomy import base_of, decoder_layers
from trimtab.models.processes import FSDP, from_all, is_split, launch_asks, rank_and_count
from trimtab.models.stored_bits import has_four_bit
from trimtab.peft.parts.attached import Attached
from trimtab.peft.parts.attaching import AttachedParts
from trimtab.peft.tunable import Tunable


@dataclass(frozen=True)
class Sharding:
    """How a launch wants the weights split."""

    processes: int
    device: torch.device
    """Of this process's shards."""
    reshard: bool
    """Whether a layer's gathered weights are dropped between forward and backward."""
    offload: bool
    """Whether shards stay in the CPU's memory."""

    @classmethod
    def asked(cls) -> Sharding | None:
        """Return what `accelerate launch --use_fsdp` asked for; None without it, or in a process alone.

        Raises:
            BadValue: FSDP's first version, its own activation checkpointing, or a setting that accelerate cannot read.
        """
        processes = rank_and_count()[1]
        if not launch_asks(FSDP) or processes == 1:
            return None
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise BadValue(
                f"this launch asks for version {os.environ.get('FSDP_VERSION', '1')} of FSDP, trimtab shards with "
                "version 2: say --fsdp_version 2 (fsdp_version: 2 in the configuration of accelerate)"
            )
        from accelerate import PartialState
        from accelerate.utils import FullyShardedDataParallelPlugin
        from torch.distributed.fsdp import CPUOffloadPolicy

        try:
            plugin = FullyShardedDataParallelPlugin()
        except ValueError as cause:  # FULL_SHARD of the first version, say
            raise BadValue(
                f"accelerate cannot read this launch's settings of FSDP ({first_line(cause)}): version 2 "
                "takes --fsdp_reshard_after_forward true or false; correct the command, or accelerate's configuration"
            ) from cause
        if plugin.activation_checkpointing:
            raise BadValue(
                "fsdp_activation_checkpointing is the recipe's own matter: leave it out, and say checkpointing=True "
                "(trimtab tune --set checkpointing=true)"
            )
        offload = isinstance(plugin.cpu_offload, CPUOffloadPolicy)
        device = PartialState().device or torch.device("cpu")
        return cls(processes, device, bool(plugin.reshard_after_forward), offload)

    def require_runs_on(self, method: Tunable, model: Any, found: Any) -> None:
        """Raise unless the method can be trained on the model, whose fingerprint is `found`, split.

        Raises:
            BadValue: a method that needs whole weights, 4-bit weights, weights on several devices, or other weights in
                another process; for full fine-tuning also fp16 or an optimiser of bitsandbytes.
        """
        if not method.capabilities.sharding:
            raise BadValue(
                f"{method.name} cannot be trained on weights that are split over processes (trimtab methods lists what "
                "can); launch the processes without FSDP (torchrun, accelerate launch --multi_gpu)"
            )
        recipe = method.recipe
        for what, value, known in (
            ("optimizer", recipe.optimizer, ("adamw",)),
            ("precision", recipe.precision, (None, "bf16")),
        ):
            if method.capabilities.family == "full" and value not in known:
                raise BadValue(
                    f"{what} {value!r} cannot train weights that are split over processes; leave it out, or launch the "
                    "processes without FSDP"
                )
        if has_four_bit(model):
            raise BadValue(
                "4-bit weights cannot be split over processes; launch the processes without FSDP (torchrun, accelerate "
                "launch --multi_gpu): each then holds the 4-bit model whole"
            )
        names = [name for name, _ in model.named_parameters()] if method.capabilities.family == "full" else []
        if any(re.search(r"\.experts\.\d", name) for name in names):
            # a process that sent such an expert no token has no gradient of it, and others would wait for one
            raise BadValue(
                "experts that are modules of their own cannot be trained on weights that are split over processes; "
                "launch the processes without FSDP, or take a method that leaves the weights alone (lora)"
            )
        devices = sorted({str(p.device) for p in base_of(model).parameters()})
        if len(devices) > 1:
            raise BadValue(
                f"the model lies on {', '.join(devices)} and cannot be split over processes as well: load it on one "
                'device (device="cpu" if no GPU holds it whole)'
            )
        if any(other != found for other in from_all(found)):
            raise BadValue(
                "the processes hold different weights, which is what fsdp_cpu_ram_efficient_loading leaves: set it to "
                "false, and load the model whole in every process"
            )

    def apply(self, attached: Attached) -> None:
        """Split a twin's weights layer by layer, and put the parts on this process's device.

        Parts beside the weights are few: every process keeps them whole and averages their gradients, as without
        sharding. Parts that are the weights themselves are split with them, and so are their gradients and what the
        optimiser keeps of them.

        Raises:
            Incompatible: torch cannot split the model.
            OutOfMemory: a GPU has no room for its part.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

        in_place, parts = attached.trained().in_place, attached.trainable()
        if not in_place:
            for part in parts.values():  # some may be weights of the model, whose storage the twin shares
                part.data = part.data.to(self.device, copy=True)
        whole = set() if in_place else set(parts.values())
        mesh = init_device_mesh(self.device.type, (self.processes,))
        policy = CPUOffloadPolicy(pin_memory=self.device.type == "cuda") if self.offload else OffloadPolicy()
        options: dict[str, Any] = {"mesh": mesh, "offload_policy": policy, "ignored_params": whole}
        try:
            for layer in decoder_layers(attached.model):
                _on_device(layer, self.device, whole)
                fully_shard(layer, reshard_after_forward=self.reshard, **options)
            # what is called, and not the model inside, which PEFT's wrapper calls past its hooks
            _on_device(attached.model, self.device, whole)
            fully_shard(attached.model, **options)
        except (ValueError, RuntimeError, NotImplementedError, AssertionError, TypeError) as cause:
            if ran_out_of_memory(cause):
                raise OutOfMemory(
                    "the GPU ran out of memory while this process's part of the weights was put there: load the model "
                    'on the CPU (device="cpu"), or split it over more processes'
                ) from cause
            raise Incompatible(
                f"torch cannot split this model over processes ({first_line(cause)}); launch the processes without FSDP"
            ) from cause
        if isinstance(attached, AttachedParts) and in_place:
            split = dict(base_of(attached.model).named_parameters())
            attached.places |= {name: split[name] for name in parts}


def _on_device(module: nn.Module, device: torch.device, left: Collection[nn.Parameter]) -> None:
    """Put the module's weights that are not split yet on a device, as new objects.

    Whoever holds the old ones, such as what undoes attaching, would keep the whole model on the device otherwise.
    """
    moved: dict[nn.Parameter, nn.Parameter] = {}  # tied weights stay tied
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and weight not in left and not is_split(weight):
                if weight not in moved:
                    moved[weight] = nn.Parameter(weight.detach().to(device), weight.requires_grad)
                part._parameters[name] = moved[weight]
