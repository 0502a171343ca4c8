"""Tries: how much `choose_place` tries; the first settings, and the strengths at which they meet a budget of drift."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from trimtab.datasets.item_set import ItemSet
from trimtab.steer.effect import SiteRanking
from trimtab.steer.outcome import DIRECTIONS

SLACK = 0.9
"""What is tried of the strength that should meet the budget: what differs from the law of squares has room there."""
SHARES = (1.0, 0.5, 0.25, 0.125)
"""Of the budget, at which a place is tried one after the other, while it is over the budget or its answers repeat
themselves: how much a model bears is not known beforehand."""


@dataclass(frozen=True)
class Tries:
    """How much is tried, within which budget, on what."""

    k: int = 1
    """Sites that are shifted."""
    kl_budget: float | int = 0.4
    """In nats per token on neutral text, the edit at all positions."""
    n_places: int = 4
    """How many sites are tried in earnest: the best of as many parts of the model's depth; where several are shifted,
    how many numbers of them."""
    texts: Sequence[str] | None = None
    """Neutral texts for the drift; eighteen of trimtab's own for choosing if not given. The first `FEW` of them say
    where the budget is far away, all of them where it is near."""
    max_tokens: int = 48
    """Of each text."""
    seed: int = 0
    """Of the controls."""
    more: ItemSet[Any] | None = None
    """Further items, on which the last candidates are read."""
    fitted: frozenset[str] = frozenset()
    """Keys of those of them that the shift was fitted on; the gain is recorded without them, too."""


class Setting(NamedTuple):
    """An edit at a strength."""

    edit: Any
    """At strength 1."""
    control: str
    """What it is compared for; empty of what may be chosen."""
    strength: float

    @property
    def made(self) -> Any:
        """The edit at this strength."""
        return self.edit.scaled(self.strength)


def first_settings(shift: Any, ranking: SiteRanking, tries: Tries) -> list[Setting]:
    """Return what is tried first, at the strengths that are expected to meet the budget."""
    k, sites = tries.k, ranking.sites
    if k == 1:
        layers = sorted({place.layer for place in shift.probed})
        part = {place: layers.index(place[0]) * tries.n_places // len(layers) for place in ranking.effects}
        best = dict(zip(reversed(part.values()), reversed(sites), strict=True))  # the first of each part stays
        groups = sorted(((site,) for site in best.values()), key=lambda group: sites.index(group[0]))
    else:
        groups = [tuple(sites[: max(1, k >> n)]) for n in range(tries.n_places)]
    groups = list(dict.fromkeys(groups))
    left = sorted(set(sites) - {site for group in groups for site in group}) or sorted(set(sites) - set(groups[0]))
    drawn = random.Random(tries.seed).sample(left, min(k, len(left)))

    def setting(edit: Any, control: str = "") -> Setting:
        return Setting(edit, control, ranking.reach(edit.sites, tries.kl_budget))

    found = [setting(shift.on(group)) for group in groups]
    if drawn:
        found.append(setting(shift.on(drawn), "random places"))
    return [*found, setting(shift.on(groups[0]).randomised(tries.seed), DIRECTIONS)]


def at_budget(
    settings: Sequence[Setting], kls_of: Callable[[Sequence[Setting]], list[float]], budget: float | int
) -> list[list[Setting]]:
    """Return for each of the `SHARES` the settings at strengths whose drift should be that much of the budget.

    Two rounds of measuring tell. Drift is a power of the strength: of exponent 2 where it is small, which is assumed
    first, and then as measured.
    """
    before, exponents, met = None, [2.0] * len(settings), [list(settings)]
    for _ in range(2):
        now = [math.log(max(kl, 1e-9)) for kl in kls_of(met[0])]
        logs = [math.log(s.strength) for s in met[0]]
        if before is not None:
            steps = zip(logs, before[0], now, before[1], strict=True)
            exponents = [min(6.0, max(1.0, (y - v) / (x - u))) if abs(x - u) > 0.05 else 2.0 for x, u, y, v in steps]
        before, met = (logs, now), []
        for share in SHARES:
            steps = zip(logs, now, exponents, strict=True)
            wanted = [math.log(SLACK) + x + (math.log(share * budget) - y) / n for x, y, n in steps]
            met.append([s._replace(strength=math.exp(x)) for s, x in zip(settings, wanted, strict=True)])
    return met
