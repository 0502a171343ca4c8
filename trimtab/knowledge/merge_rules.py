"""TIES and DARE: how several changes of the same weights become one, where their plain sum would interfere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trimtab.errors import BadValue
from trimtab.plain_values import hash_of

Vector = Mapping[str, Tensor]
"""Parameter's name -> what is added to it; a weight that is not named is left alone."""


@dataclass(frozen=True)
class MergeRule(ABC):
    """A rule by which weighted task vectors become one."""

    @abstractmethod
    def merged(self, vectors: Sequence[Vector], weights: Sequence[float | int]) -> dict[str, Tensor]:
        """Return one vector."""

    def describe(self) -> dict[str, Any]:
        """Return plain values for records."""
        return {"rule": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class TIES(MergeRule):
    """Trim, elect sign and merge (Yadav et al. 2023): each entry is the mean of those vectors that agree on its sign.

    Of each vector the `density` largest entries stay, the sign of an entry is that of the weighted sum (plus where that
    is 0), and the weighted mean is taken over the vectors of that sign. With equal positive weights that is what
    mergekit's and PEFT's `ties` give. Deviations: PEFT elects the sign before weighting, and divides by how many agree,
    mergekit by the sum of their weights; here the divisor is the sum of the weights' sizes, so that a subtracted vector
    keeps its sign.

    Raises:
        BadValue: a density outside (0, 1]; another way of trimming.
    """

    density: float | int = 0.2
    """The share of the entries that stays."""
    trim: Literal["tensor", "vector"] = "tensor"
    """What the share is of: each tensor (as mergekit and PEFT do) or the whole vector (as the paper does)."""

    def __post_init__(self) -> None:
        require_density(self.density)
        if self.trim not in ("tensor", "vector"):
            raise BadValue(f"trim is 'tensor' or 'vector', got {self.trim!r:.40}")

    def merged(self, vectors: Sequence[Vector], weights: Sequence[float | int]) -> dict[str, Tensor]:
        """Return the disjoint mean of the trimmed vectors."""
        trimmed = [_trimmed(vector, self.density, whole=self.trim == "vector") for vector in vectors]
        found = {}
        for name in dict.fromkeys(name for vector in trimmed for name in vector):
            here = [(vector[name], weight) for vector, weight in zip(trimmed, weights, strict=True) if name in vector]
            total, divisor = torch.zeros_like(here[0][0]), torch.zeros_like(here[0][0])
            for tau, weight in here:
                total += weight * tau
            sign = torch.where(total >= 0, 1.0, -1.0)
            total.zero_()
            for tau, weight in here:
                agrees = (weight * tau).sign() == sign
                total += torch.where(agrees, weight * tau, 0)
                divisor += torch.where(agrees, abs(weight), 0)
            found[name] = total / torch.where(divisor == 0, 1, divisor)
        return found


@dataclass(frozen=True)
class DARE(MergeRule):
    """Drop and rescale (Yu et al. 2024): each entry is dropped with probability `1 - density`, the others divided by
    `density`, and the vectors are added up.

    The expected value of each vector is the vector; large deltas (above 0.002, by the paper) do not bear small
    densities. The draw hangs on the seed, the vector's place and the tensor's name alone. Deviation: mergekit's
    `rescale` matches each tensor's L1 norm instead of dividing.

    Raises:
        BadValue: a density outside (0, 1].
    """

    density: float | int = 0.1
    """The share of the entries that stays, `1 - p` in the paper."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_density(self.density)

    def merged(self, vectors: Sequence[Vector], weights: Sequence[float | int]) -> dict[str, Tensor]:
        """Return the sum of the thinned vectors."""
        found: dict[str, Tensor] = {}
        for place, (vector, weight) in enumerate(zip(vectors, weights, strict=True)):
            for name, tau in vector.items():
                thinned = weight * torch.where(self._kept(place, name, tau), tau, 0) / self.density
                found[name] = found[name] + thinned if name in found else thinned
        return found

    def _kept(self, place: int, name: str, tau: Tensor) -> Bool[Tensor, "..."]:
        seed = int(hash_of(f"{self.seed} {place} {name}")[:15], 16)
        return torch.rand(tau.shape, generator=torch.Generator().manual_seed(seed)) < self.density


def require_density(density: float | int) -> None:
    """Raise `BadValue` for a share that keeps nothing or is none."""
    if not 0 < density <= 1:
        raise BadValue(
            f"density is the share of entries that stays, above 0 and at most 1; got {density:g} (DARE drops the rest, "
            "p = 1 - density)"
        )


def _trimmed(vector: Vector, density: float | int, *, whole: bool) -> Vector:
    if density == 1:
        return vector
    if not whole:
        return {name: _largest(tau.flatten(), density).view_as(tau) for name, tau in vector.items()}
    flat = _largest(torch.cat([tau.flatten() for tau in vector.values()]), density)
    parts = flat.split([tau.numel() for tau in vector.values()])
    return {name: part.view_as(tau) for (name, tau), part in zip(vector.items(), parts, strict=True)}


def _largest(flat: Float[Tensor, " n"], density: float | int) -> Float[Tensor, " n"]:
    # one entry at least: a share of a short tensor, such as a bias, is not to be nothing
    chosen = flat.abs().topk(max(1, int(density * len(flat))), sorted=False).indices
    return torch.zeros_like(flat).index_copy_(0, chosen, flat[chosen])
