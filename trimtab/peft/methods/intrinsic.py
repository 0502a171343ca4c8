"""Intrinsic-dimension tuning: all weights move together in a seeded random subspace of a few dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trimtab.errors import BadValue
from trimtab.models.anatomy import base_of, decoder_layers
from trimtab.peft.methods.base import TuningMethod
from trimtab.peft.methods.full import require_float_weights
from trimtab.peft.parts.attaching import AttachedParts, frozen_base, hold, master_dtype
from trimtab.peft.parts.projection import Lift
from trimtab.peft.parts.sublayers import config_of
from trimtab.peft.tunable import Capabilities


@dataclass(frozen=True)
class IntrinsicDimension(TuningMethod):
    """theta = theta_0 + P z, with z of d numbers and P a random projection made anew from a seed at each use.

    Li et al. 2018 (eq. 1, their sparse projection) and, with `structure_aware`, Aghajanyan et al. 2021 (SAID,
    section 3): the part of each decoder layer, and of what stands outside the layers, is multiplied by a learned
    scale of its own, and those scales are among the d numbers. z starts at 0: the start is the base to the bit. The
    edit stores z, the scales and the seed. Load the model in float32: half precision rounds small moves away.

    Raises:
        BadValue: `d` below 1.
    """

    capabilities: ClassVar[Capabilities] = Capabilities("parameter composition", mergeable=True, four_bit=False)
    """Needs the weights themselves."""
    learning_rate: ClassVar[float] = 1e-2
    """Large: a step of z is spread over all weights (P's columns have unit length)."""

    d: int = 1000
    """How many numbers are trained, scales included."""
    structure_aware: bool = False

    def __post_init__(self) -> None:
        if self.d < 1:
            raise BadValue(f"the intrinsic dimension must be 1 or more, got {self.d}")

    @property
    def name(self) -> str:
        """The kind and the dimension."""
        return f"{'SAID' if self.structure_aware else 'Intrinsic dimension'} d={self.d}"

    def attach(self, model: Any, *, seed: int) -> AttachedParts:
        """Return z (and the scales) on the model, whose weights become functions of them.

        Raises:
            BadValue: quantised weights, or more dimensions than the model has weights (or fewer than scales).
        """
        self.require_runs_on(model)
        require_float_weights(model, self.name)
        base, groups = base_of(model), _groups(model)
        weights = list(base.parameters())
        n_scales = self._n_scales(len(decoder_layers(model)))
        if self.d > (total := sum(w.numel() for w in weights)):
            raise BadValue(f"{self.d} dimensions asked for; the model has {total} weights")
        device, dtype = weights[0].device, master_dtype(base.dtype)
        z = nn.Parameter(torch.zeros(self.d - n_scales, dtype=dtype, device=device))
        places: dict[str, Tensor] = {"z": z, "seed": torch.tensor(seed)}
        with frozen_base(model) as undo:
            hold(base, "intrinsic_z", z, undo)
            scales = None
            if n_scales:
                scales = places["scales"] = nn.Parameter(torch.ones(n_scales, dtype=dtype, device=device))
                hold(base, "intrinsic_scales", scales, undo)
            offsets = dict(zip(map(id, weights), accumulate((w.numel() for w in weights), initial=0), strict=False))
            for module, name, weight in _owned(base, offsets):
                move = _Moved(z, scales, places["seed"], offsets[id(weight)], groups.get(id(weight), -1), total)
                order = list(module._parameters)
                parametrize.register_parametrization(module, name, move, unsafe=True)
                undo.callback(_restore, module, name, order)
            remade = sum(w.nbytes for w in weights)
            return AttachedParts(model, places, undo, f"the {self.name}", remade=remade)

    def _n_scales(self, n_layers: int) -> int:
        n_scales = n_layers + 1 if self.structure_aware else 0
        if self.d <= n_scales:
            raise BadValue(f"{self.d} dimensions are too few: {n_scales} of them are the layers' scales; raise d")
        return n_scales

    def parameter_count(self, model_or_config: Any) -> int:
        """Return d."""
        self._n_scales(config_of(model_or_config).num_hidden_layers)
        return self.d

    def scaled_tensors(self, tensors: Mapping[str, Tensor], factor: float | int) -> dict[str, Tensor]:
        """Return the tensors with z multiplied: the move is linear in it."""
        return {**tensors, "z": tensors["z"] * factor}


def _groups(model: Any) -> dict[int, int]:
    """Return the place of each layer's scale by the identity of its weights; the last scale is of all others."""
    return {id(p): index for index, layer in enumerate(decoder_layers(model)) for p in layer.parameters()}


def _owned(base: nn.Module, known: dict[int, int]) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Return every (module, name, weight); a tied weight stands there once for each of its owners."""
    return [
        (m, name, p) for m in base.modules() for name, p in m._parameters.items() if p is not None and id(p) in known
    ]


def _restore(module: nn.Module, name: str, order: list[str]) -> None:
    parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    # the parameter comes back as the module's last; optimisers and fingerprints go by the order
    parameters = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({key: parameters[key] for key in order})


class _Moved(nn.Module):
    """One weight's parametrisation: its base value plus its part of P z."""

    def __init__(
        self, z: nn.Parameter, scales: nn.Parameter | None, seed: Tensor, start: int, group: int, total: int
    ) -> None:
        super().__init__()
        # not as submodule state: z is held once, by the model
        self.parts = (z, scales, seed)
        self.start, self.group, self.total = start, group, total

    def forward(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the moved weight, rounded once to the weight's dtype."""
        z, scales, seed = self.parts
        z = z if scales is None else z * scales[self.group]
        move = Lift.apply(z.to(weight.device), int(seed), self.start, weight.shape, self.total)
        return (weight.to(move.dtype) + move).to(weight.dtype)
