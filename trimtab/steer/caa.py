"""CAA: Contrastive Activation Addition as a Method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.edits.vectors import ResidualShift
from trimtab.errors import BadValue
from trimtab.protocols import Knobs
from trimtab.steer.fitting import fit_residual_shift
from trimtab.steer.sites import Site, SiteProbes, StatementForm, SteeringMethod


@dataclass(frozen=True)
class CAA(SteeringMethod):
    """Contrastive Activation Addition (Rimsky et al. 2023): one vector added after one decoder layer.

    The knobs are the layer (`rank` 1 is the one whose residual stream the probes read best) and the multiplier. With
    `layers` the knob is one of these, so that the layer is chosen by what shifting it does, as the paper chooses it.
    """

    site: ClassVar[Site] = "residual"

    ranks: tuple[int, ...] = (1, 2, 3)
    alphas: tuple[float | int, ...] = (0.25, 0.5, 1, 2, 4, 8)
    layers: tuple[int, ...] | None = None
    format: StatementForm = None
    name: str = "CAA"

    @property
    def space(self) -> Mapping[str, Sequence[Any]]:
        """The layer, or its rank, and the multiplier."""
        at = {"rank": self.ranks} if self.layers is None else {"layer": self.layers}
        return {**at, "alpha": self.alphas}

    def shift(self, found: SiteProbes, knobs: Knobs, *, seed: int) -> ResidualShift:  # noqa: ARG002
        """Return the shift of this layer, or of the layer of this rank."""
        if self.layers is not None:
            return fit_residual_shift(found.acts, found.probes, layers=[knobs["layer"]])
        rank, n_layers = knobs["rank"], len(found.acts.layers)
        if not 1 <= rank <= n_layers:
            raise BadValue(f"layer rank {rank} asked for; the model has {n_layers} layers, counted from rank 1")
        return fit_residual_shift(found.acts, found.probes, layers=[found.probes.top(rank)[-1].layer])
