"""Full fine-tuning: the model's own weights are trained, all of them or those of the top layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trimtab.devices import free_bytes, in_bytes
from trimtab.errors import BadValue, OutOfMemory
from trimtab.models.anatomy import base_of, decoder_layers, input_device
from trimtab.models.plain import skeleton
from trimtab.models.processes import is_split
from trimtab.models.twin import is_twin
from trimtab.models.weights import own_memory
from trimtab.peft.methods.base import TuningMethod
from trimtab.peft.parts.attached import Attached
from trimtab.peft.parts.attaching import AttachedParts, frozen_base
from trimtab.peft.tunable import Capabilities


@dataclass(frozen=True)
class FullFineTuning(TuningMethod):
    """Trains the weights themselves: `"all"`, or those of the `layers` topmost decoder layers.

    Two layers are FT-Top2 of Li and Liang 2021 (also in Hu et al. 2022, table 3). While training, the untuned
    weights are kept in the CPU's memory, in their own dtype, and the plan counts them; in use, where they are, if the
    device has room for both. Tied embeddings
    are one tensor, trained and stored once.

    Raises:
        BadValue: `layers` is neither "all" nor a number of layers.
    """

    capabilities: ClassVar[Capabilities] = Capabilities("full", mergeable=True, four_bit=False)
    """Needs the weights themselves."""
    learning_rate: ClassVar[float] = 2e-5
    """A usual step for whole models."""
    scales_from_start: ClassVar[bool] = True

    layers: int | Literal["all"] = "all"

    def __post_init__(self) -> None:
        if self.layers != "all" and (not isinstance(self.layers, int) or self.layers < 1):
            raise BadValue(f"layers is 'all' or how many of the topmost layers to tune, got {self.layers!r}")

    @property
    def name(self) -> str:
        """All, or which part."""
        return "Full fine-tuning" if self.layers == "all" else f"FT-Top{self.layers}"

    def attach(self, model: Any, *, seed: int) -> AttachedParts:  # noqa: ARG002 - tuning starts from the weights
        """Return the chosen weights as what is trained.

        Raises:
            BadValue: quantised weights, more layers than the model has, or no room for the untuned weights.
        """
        self.require_runs_on(model)
        require_float_weights(model, self.name)
        chosen = self._chosen(model)
        # a twin's weights are split into memory of their own, and none of them is ever put back
        size = 0 if is_twin(model) else sum(p.nbytes for p in chosen.values())
        require_room_on_cpu(size)
        with frozen_base(model) as undo:
            if size:
                undo.callback(_restore, [(p, p.detach().to("cpu", copy=True)) for p in chosen.values()])
            for parameter in chosen.values():
                parameter.requires_grad_(True)
            return AttachedParts(model, chosen, undo, f"the {self.name}", untuned=size, in_place=True)

    def attach_for_use(self, model: Any, *, seed: int) -> AttachedParts:
        """Return the chosen weights; the untuned ones keep their memory where the device has room for both.

        Raises:
            BadValue: quantised weights, more layers than the model has, or no room for the untuned weights.
        """
        self.require_runs_on(model)
        require_float_weights(model, self.name)
        chosen = self._chosen(model)
        # room for a second copy, and as much again twice over for what the model computes
        room = 4 * sum(parameter.nbytes for parameter in chosen.values()) < free_bytes(input_device(model))
        if is_twin(model) or not room or any(map(is_split, chosen.values())):
            return self.attach(model, seed=seed)
        with frozen_base(model) as undo:
            undo.enter_context(own_memory([*chosen.values()]))
            return AttachedParts(model, chosen, undo, f"the {self.name}", in_place=True)

    def load(self, attached: Attached, tensors: Mapping[str, Tensor], strength: float | int) -> None:
        """Put the weights in place, at a share of their way from the untuned ones (Ilharco et al. 2023, section 2).

        Raises:
            Incompatible: they are another model's.
        """
        if strength != 1:
            untuned = attached.tensors()
            alike = {name for name, t in tensors.items() if name in untuned and untuned[name].shape == t.shape}
            tensors = {k: _between(untuned[k], t, strength) if k in alike else t for k, t in tensors.items()}
        attached.load(tensors)

    def _chosen(self, model: Any) -> dict[str, nn.Parameter]:
        base = base_of(model)
        if self.layers == "all":
            return dict(base.named_parameters())
        layers = decoder_layers(model)
        if self.layers > len(layers):
            raise BadValue(f"{self.layers} layers to tune asked for; the model has {len(layers)}")
        wanted = {id(p) for layer in layers[-self.layers :] for p in layer.parameters()}
        return {name: p for name, p in base.named_parameters() if id(p) in wanted}

    def parameter_count(self, model_or_config: Any) -> int:
        """Return the number of weights; tied ones count once."""
        return sum(p.numel() for p in self._chosen(skeleton(model_or_config)).values())


def require_float_weights(model: Any, name: str) -> None:
    """Raise `BadValue` if some weights are integers (8-bit), which no step can change."""
    for key, parameter in base_of(model).named_parameters():
        if not parameter.is_floating_point():
            raise BadValue(
                f"{name} cannot run on quantised weights ({key} is {parameter.dtype}): it works on the weights "
                "themselves; load the model without quantization, or choose a method that leaves them alone"
            )


def require_room_on_cpu(wanted: int, free: int | None = None) -> None:
    """Raise `OutOfMemory` if the CPU's memory has no room for `wanted` bytes of weights kept as they were."""
    free = free_bytes(torch.device("cpu")) if free is None else free
    if wanted > free:
        raise OutOfMemory(
            f"keeping the untuned weights takes {in_bytes(wanted)} of the CPU's memory, {in_bytes(free)} are free; "
            "tune fewer of the topmost layers, or take a method that leaves the weights alone (see trimtab methods)"
        )


def _between(untuned: Tensor, tuned: Tensor, strength: float | int) -> Tensor:
    wide = torch.promote_types(untuned.dtype, torch.float32)
    start = untuned.to(wide)
    return start + strength * (tuned.to(start) - start)


@torch.no_grad()
def _restore(before: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, value in before:
        parameter.copy_(value)
