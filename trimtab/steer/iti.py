"""ITI: Inference-Time Intervention as a Method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from trimtab.edits.vectors import HeadShift
from trimtab.errors import BadValue
from trimtab.protocols import Knobs
from trimtab.steer.fitting import DIRECTIONS, direction_named, fit_shift
from trimtab.steer.sites import Site, SiteProbes, StatementForm, SteeringMethod


@dataclass(frozen=True)
class ITI(SteeringMethod):
    """Inference-Time Intervention (Li et al. 2023): probes rank the heads, the best are shifted.

    The knobs are K (`top_k`) and alpha. Its control is `RandomDirection`.
    """

    site: ClassVar[Site] = "heads"

    direction: str = "mass_mean"
    """`"mass_mean"` or `"probe"`."""
    top_ks: tuple[int, ...] = (8, 16, 32)
    alphas: tuple[float | int, ...] = (0.5, 1, 2, 4, 8, 16)
    format: StatementForm = None

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS or DIRECTIONS[self.direction].random:
            known = " or ".join(name for name, way in DIRECTIONS.items() if not way.random)
            raise BadValue(f"ITI's direction must be {known}, got {self.direction!r}; RandomDirection is the control")

    @property
    def name(self) -> str:
        """The name of the direction's row."""
        return direction_named(self.direction).shift

    @property
    def space(self) -> Mapping[str, Sequence[Any]]:
        """K and alpha."""
        return {"top_k": self.top_ks, "alpha": self.alphas}

    def shift(self, found: SiteProbes, knobs: Knobs, *, seed: int) -> HeadShift:
        """Return the shift of the K best heads; its record keeps every head's accuracy."""
        acts, _, probes = found
        made = fit_shift(acts, probes, top_k=knobs["top_k"], direction=self.direction, seed=seed)
        every = {"probe_accuracy": probes.accuracy.tolist(), "layers": list(probes.layers)}
        return replace(made, record={**made.record, **every})
