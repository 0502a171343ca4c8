"""ShiftSpec: which shift `fit` makes, where, and how strongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trimtab.activations.labelled import Head
from trimtab.datasets.item_set import ItemSet
from trimtab.edits.vectors import VectorEdit
from trimtab.engine.capture import SITES
from trimtab.errors import BadValue
from trimtab.steer.directions import MassMean
from trimtab.steer.effect import RankBy
from trimtab.steer.fitting import fit_residual_shift, fit_shift
from trimtab.steer.sites import Position, ReadAs, Site, SiteProbes, are_pairs, read_at

EARLY = 0.25
"""The share of a model's layers, from the first on, that is not tried by default: shifts there break its prose."""


@dataclass(frozen=True)
class ShiftSpec:
    """Which shift `fit` makes.

    Raises:
        BadValue: a direction of heads for the residual stream; heads named for it; layers and heads both.
    """

    site: Site | None = None
    """`"heads"`: Inference-Time Intervention; `"residual"`: Contrastive Activation Addition. If not given, what is
    named (`layers`, `heads`); else residual for contrast pairs and heads for questions."""
    n_sites: int | None = None
    """Heads (16, or those that are named) or layers (1) to shift at most."""
    direction: str = "mass_mean"
    """Of head shifts, as in `fit_shift`."""
    strength: float | int | None = None
    """In sigmas (heads) or multiples of the mean difference (residual); chosen if not given."""
    layers: Sequence[int] | None = None
    """Layers to choose among. If not given: all; for a residual shift by effect all but the first (`EARLY`)."""
    heads: Sequence[Head] | None = None
    """Heads to shift."""
    rank_by: RankBy | None = None
    """What ranks the places: `"effect"` (pairs, if not given) or the probes' `"accuracy"` (questions)."""
    position: Position | None = None
    """Where a text's activations are read: at its `"last"` token (questions, if not given), or `"mean_answer"`, the
    mean over its tokens (pairs), as `read_at` has it."""
    texts: Sequence[str] | None = None
    """Neutral texts for the drift; some of trimtab's own if not given."""
    asking: str = "auto"
    """How prompts and questions are asked, as in `ItemSet.asked_as`: in the chat template of a model that has one."""
    quick: bool = False
    """Whether the place that attribution puts first is taken without trying others, and no answers are generated."""

    def __post_init__(self) -> None:
        if self.heads is not None and (self.layers is not None or self.site == "residual"):
            raise BadValue("name heads (--heads) or layers (--layers) to shift, not both; heads are of --site heads")
        if self.for_site == "residual" and self.direction != "mass_mean":
            raise BadValue(f"direction {self.direction!r} is for head shifts; residual shifts use the mean difference")
        if self.rank_by not in (None, "effect", "accuracy"):
            raise BadValue(f"places are ranked by effect or accuracy, got {self.rank_by!r}")

    @property
    def for_site(self) -> Site | None:
        """The site that is given or follows from what is named."""
        return self.site or ("residual" if self.layers is not None else "heads" if self.heads is not None else None)

    def on(self, items: ItemSet[Any]) -> ShiftSpec:
        """Return the specification with what depends on the data filled in."""
        pairs = are_pairs(items)
        site = self.for_site or ("residual" if pairs else "heads")
        rank_by = self.rank_by or ("effect" if pairs else "accuracy")
        return replace(self, site=site, rank_by=rank_by, position=self.position or read_at(items))

    @property
    def read(self) -> ReadAs:
        """How sites are read; where probes choose nothing, and give no directions, class means do."""
        quick = self.rank_by == "effect" and self.direction != "probe"
        return ReadAs(self.site or "heads", None, self.position or "last", "mass_mean" if quick else "logistic")

    def require_named(self, model: Any) -> None:
        """Raise `BadValue` for a layer or head that is named and that the model lacks, before anything is computed."""
        known, _, (n_heads, _) = SITES[self.site or "heads"].places(model)
        missing = sorted(set(self.layers or ()) - set(known))
        if missing:
            raise BadValue(f"no layer {missing[0]} to shift; the model has layers {min(known)} to {max(known)}")
        for layer, head in self.heads or ():
            if layer not in known or not 0 <= head < n_heads:
                raise BadValue(
                    f"no head {head} in layer {layer}: the model has layers {min(known)} to {max(known)} of {n_heads} "
                    "heads"
                )

    def places(self, found: SiteProbes) -> list[Head]:
        """Return every place that may be shifted, in the order of the probes (a layer is its head 0)."""
        known = found.probes.layers
        if self.heads is not None:
            return [Head(*head) for head in self.heads]
        every = found.probes.top(found.probes.accuracy.numel())
        moving = MassMean.of(found.acts).values.any(dim=-1)  # not in a head that was pruned
        layers = self.layers
        if layers is None and self.site == "residual" and self.rank_by == "effect":
            layers = known[int(EARLY * len(known)) :]
        allowed = [at for at in every if layers is None or at.layer in layers]
        return [at for at in allowed if bool(moving[known.index(at.layer), at.head])]

    def count(self, places: Sequence[Head]) -> int:
        """Return how many of these places are to be shifted; raises `BadValue` for more than there are."""
        if self.n_sites is None:
            most = len(places) if self.heads is not None else 1 if self.site == "residual" else 16
            return min(most, len(places))
        if not 1 <= self.n_sites <= len(places):
            what = "layers" if self.site == "residual" else "heads"
            raise BadValue(f"top {self.n_sites} {what} asked for; there are {len(places)} to choose among (--layers)")
        return self.n_sites

    def made(self, found: SiteProbes, places: Sequence[Head]) -> VectorEdit:
        """Return the shift of strength 1 on these places."""
        if self.site == "residual":
            return fit_residual_shift(found.acts, found.probes, layers=[place.layer for place in places])
        return fit_shift(found.acts, found.probes, heads=places, direction=self.direction)
