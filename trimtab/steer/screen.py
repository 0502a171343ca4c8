"""screen: whether positive and negative texts differ in one and the same way, before anything is steered by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.activations.captured import HeadActivations
from trimtab.activations.labelled import Head
from trimtab.datasets.statements import Statement
from trimtab.errors import BadDataset

FLIPS = 200
"""Random exchanges of sides that the consistency is compared with."""


@dataclass(frozen=True)
class Screen:
    """What a glance at the data says of what can be steered by it."""

    n: int
    """Questions or pairs that the direction comes from."""
    place: Head
    """Where it was looked at."""
    consistency: float
    """Mean cosine between an item's difference and that of the others."""
    by_chance: float
    """The 95th percentile of the same with sides exchanged at random."""
    separation: float
    """d' of held-out items along the direction."""
    separation_by_chance: float
    """The 95th percentile of the same with sides of held-out items exchanged at random."""
    longer: float
    """Share of items whose positive texts have more words."""
    length_ratio: float
    """Words of positive texts over words of negative ones."""

    @property
    def consistent(self) -> bool:
        """Whether the sides differ in a direction that held-out ones share: as much as in 95 of 100 random exchanges.

        Of five items or fewer that directions come from (four held-out ones) no exchange is that rare, and the most
        extreme one passes.
        """
        # what does not differ at all does as well as its exchanges
        apart = self.consistency > 0 and self.separation > 0
        return apart and self.consistency >= self.by_chance and self.separation >= self.separation_by_chance

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is to be said of it, in sentences; those behind the first are warnings."""
        figures = (
            f"mean cosine {self.consistency:.2f} at layer {self.place.layer}, {self.by_chance:.2f} by chance; "
            f"d' {self.separation:.1f} on held-out ones, {self.separation_by_chance:.1f} by chance"
        )
        said = [f"the two sides of {self.n} items differ in a common direction ({figures})"]
        if not self.consistent:
            said = [
                f"the two sides of {self.n} items do not differ in a common direction ({figures}): check that every "
                "positive text shows the behaviour and every negative one does not"
            ]
        if self.longer in (0, 1) and not 2 / 3 < self.length_ratio < 1.5:
            side = "positive" if self.longer else "negative"
            said.append(
                f"the {side} texts are longer in every item ({self.length_ratio:.1f} times the words): what is steered "
                "may be length; write both sides equally long"
            )
        return tuple(said)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**vars(self), "place": list(self.place), "remarks": list(self.remarks)}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Screen | None:
        """Return what `as_dict` told; None where a version before told less."""
        known = {name: told[name] for name in cls.__dataclass_fields__ if name in told}
        whole = len(known) == len(cls.__dataclass_fields__)
        return cls(**{**known, "place": Head(*told["place"])}) if whole else None


def screen(acts: HeadActivations, held: HeadActivations, statements: Sequence[Statement], place: Head) -> Screen:
    """Return how consistently the sides differ at one place, from activations that were captured anyway.

    Args:
        acts: of the items that directions come from.
        held: of other items, which the direction is tried on.
        statements: the texts of the first.
        place: where it is looked at (a layer is its head 0).

    Raises:
        BadDataset: fewer than two items, or one without both sides.
    """
    acts, held = (part.layer(place.layer) for part in (acts, held))
    differences, unseen = (item_differences(part)[:, 0, place.head] for part in (acts, held))
    n, drawn = len(differences), torch.Generator().manual_seed(0)
    if n < 2:
        raise BadDataset("directions need two or more questions or pairs to differ in a common way; give more")
    signs, as_held = (torch.randint(0, 2, (FLIPS, m), generator=drawn) * 2.0 - 1 for m in (n, len(unseen)))
    by_chance = torch.stack([_consistency(differences * row[:, None]) for row in signs])
    direction = differences.mean(0)
    x = held.values[:, 0, place.head].double() @ direction
    true, false = x[held.labels], x[~held.labels]
    spread = ((true.var(correction=0) + false.var(correction=0)) / 2).sqrt().clamp_min(1e-12)
    as_held = torch.cat([torch.ones(1, len(unseen)), as_held]).double()
    separation, *lucky = (as_held @ (unseen @ direction) / len(unseen) / spread).tolist()
    words: dict[str, tuple[list[int], list[int]]] = {}
    for s in statements:
        words.setdefault(s.group, ([], []))[s.label].append(len(s.answer.split()))
    means = [[sum(of_side) / len(of_side) for of_side in both] for both in words.values()]
    negative, positive = (sum(side) for side in zip(*means, strict=True))
    return Screen(
        n=n,
        place=place,
        consistency=float(_consistency(differences)),
        by_chance=float(by_chance.quantile(0.95)),
        separation=separation,
        separation_by_chance=float(np.quantile(lucky, 0.95)),
        longer=sum(yes > no for no, yes in means) / n,
        length_ratio=positive / negative,
    )


def item_differences(acts: HeadActivations) -> Float[Tensor, "item layer head d_head"]:
    """Return each item's mean positive minus mean negative activation, in float64, in the order of the items.

    Raises:
        BadDataset: an item has one side only.
    """
    numbers = {group: i for i, group in enumerate(dict.fromkeys(acts.groups))}
    index = torch.tensor([numbers[g] for g in acts.groups])
    means = []
    for label in (True, False):
        chosen = acts.labels == label
        count = torch.bincount(index[chosen], minlength=len(numbers))
        if not bool(count.all()):
            group = list(numbers)[int((count == 0).nonzero()[0])]
            raise BadDataset(f"{group[:60]!r} has only {'negative' if label else 'positive'} texts; give both kinds")
        total = torch.zeros(len(numbers), *acts.values.shape[1:], dtype=torch.float64)
        total.index_add_(0, index[chosen], acts.values[chosen].double())
        means.append(total / count[:, None, None, None])
    return means[0] - means[1]


def _consistency(differences: Float[Tensor, "item d_head"]) -> Float[Tensor, ""]:
    others = differences.sum(0) - differences
    return torch.cosine_similarity(differences, others, dim=-1).mean()
