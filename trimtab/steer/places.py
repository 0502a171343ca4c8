"""choose_place: the sites that attribution ranks first tried in earnest, and how strongly, within a budget of drift."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np

from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.prose import validation_texts
from trimtab.edits.combined import NoEdit
from trimtab.edits.vectors import VectorEdit
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate.drift import drifts
from trimtab.evaluate.table import columns_of, summed_up
from trimtab.intervals import bootstrap_mean
from trimtab.progress import tracked
from trimtab.protocols import Edit, Findings, Measured, Meter
from trimtab.steer.effect import SiteRanking
from trimtab.steer.meters import Metric, meter_for
from trimtab.steer.outcome import DIRECTIONS, REPEATS, repetition
from trimtab.steer.strength import Trial, require_budget
from trimtab.steer.tries import Setting, Tries, at_budget, first_settings

Shift = TypeVar("Shift", bound=VectorEdit)
FRACTIONS = (0.75, 0.5, 1.5)
"""Of the chosen place's strength: further ones; the last may be over the budget, and shows what comes next."""
ROOM = 0.5
"""How much of `REPEATS` a setting may use up: the few prompts that say so are not those that will be asked."""
FEW, NEAR = 6, 0.75
"""Neutral texts that a first estimate takes, and the share of the budget from which on it takes all."""
FINALISTS = 3
"""How many places, the best ones, are read on more items."""


@dataclass(frozen=True)
class SiteTrial(Trial):
    """One setting of some sites, and what it did."""

    sites: tuple[Any, ...] = ()
    control: str = ""
    """Of a control, what it is; it cannot be chosen."""
    answers: tuple[str, ...] = ()
    """What was said, where the meter goes by generated texts."""
    n: int = 0
    """On how many items."""
    repeats: float = 0.0
    """How much of their word triples the answers repeat."""
    loops: bool = False
    """Whether that is too much for it to be chosen while others remain."""


class _Score(NamedTuple):
    value: float
    found: Measured
    answers: tuple[str, ...]

    @property
    def n(self) -> int:
        return len(self.found.rows)

    @property
    def repeats(self) -> float:
        return float(np.mean([repetition(text) for text in self.answers])) if self.answers else 0.0


def choose_place(
    model: Any,
    tokenizer: Any,
    items: ItemSet[Any],
    shift: Shift,
    ranking: SiteRanking,
    *,
    metric: str | Metric | Meter = "pair_margin",
    tries: Tries | None = None,
) -> Shift:
    """Return the shift on the sites, and at the strength, that do best within the budget.

    The sites that `ranking` puts first in each part of the depth are brought to the budget, where their effects can be
    compared, and to ever smaller `SHARES` of it while they are over it or their answers repeat themselves, and yet
    beat those of which neither is so. Beside them stand controls: sites drawn at random and random directions at the
    first sites, brought to the drift of the budget. If there are `Tries.more` items, the unedited model, the random
    directions and the `FINALISTS` best places are read on these too, and the last word is theirs. Further strengths
    are tried of the best.

    Where the meter goes by generated texts, none whose answers repeat themselves half of `REPEATS` more than the
    unedited model's is taken while others remain.

    The record keeps all under "sweep", as that of `choose_strength`, with the gain over the unedited model under
    "gain".

    Args:
        items: questions or pairs that it was not fitted on.
        shift: on all sites that may be shifted; `ranking` is of these.
        metric: as of `choose_strength`.

    Raises:
        BadDataset: no neutral texts.
        BadValue: a budget of no drift at all; nothing tried stays within it; a meter that says nothing of shifts.
    """
    tries = tries or Tries()
    require_budget(tries.kl_budget)
    tried = _Tried(model, tokenizer, meter_for(metric).choosing, tries)
    steps = tracked(range(4), "trying places")
    next(steps)
    settings = first_settings(shift, ranking, tries)
    levels = at_budget(settings, lambda some: tried.kls_of(some, FEW // 2), tries.kl_budget)
    next(steps)
    tried.add(levels[0], items)
    latest = {i: i for i, setting in enumerate(settings) if not setting.control}
    for level in levels[1:]:
        weaker = tried.to_weaken(latest)
        if weaker:
            latest |= dict(zip(weaker, range(len(tried.settings), len(tried.settings) + len(weaker)), strict=True))
            tried.add([level[i] for i in weaker], items)
    next(steps)
    finalists = tried.finalists()
    best = min(finalists, key=tried.rank) if finalists else tried.order()[0]
    next(steps)
    of = tried.settings[best]
    tried.add([of._replace(strength=of.strength * fraction) for fraction in FRACTIONS], items)
    chosen = tried.chosen([*finalists, *range(len(tried.settings) - len(FRACTIONS), len(tried.settings))])
    made: Any = tried.settings[chosen].made.with_record(sweep=tried.record(chosen))
    return made


class _Tried:
    """The settings that were tried so far, and what each did."""

    def __init__(self, model: Any, tokenizer: Any, meter: Meter, tries: Tries) -> None:
        self.of, self.meter, self.tries, self.findings = (model, tokenizer), meter, tries, Findings()
        self.texts = validation_texts()[: 3 * FEW] if tries.texts is None else tries.texts
        if not self.texts:
            raise BadDataset("no neutral texts to measure drift on; give some, or leave texts out for trimtab's own")
        self.settings: list[Setting] = []
        self.kls: list[float] = []
        self.scores: list[_Score] = []
        self.unedited: Any = None

    def kls_of(self, settings: Sequence[Setting], n: int = FEW) -> list[float]:
        """Return the drift on the first n texts, for n of `bounds`: these parts run unedited once for all calls."""
        texts, bounds = self.texts, (0, FEW // 2, FEW, len(self.texts))
        edits, parts = [s.made for s in settings], [texts[a:b] for a, b in pairwise(bounds) if a < min(n, len(texts))]
        how: dict[str, Any] = {"max_tokens": self.tries.max_tokens, "findings": self.findings}
        found = [drifts(*self.of, edits, texts=part, **how) for part in parts]
        return [float(np.mean([kl for d in of_edit for _, kl in d.per_text])) for of_edit in zip(*found, strict=True)]

    def scored(self, edits: Sequence[Edit], items: ItemSet[Any], before: Sequence[_Score] = ()) -> list[_Score]:
        """Return what the meter says of the edits on the items, together with what it said on others before."""
        found = self.meter.instrument.measure(*self.of, items, edits, asking=items.asking)
        return [_score(self.meter, *both) for both in zip(found, before or [None] * len(edits), strict=True)]

    def add(self, settings: Sequence[Setting], items: ItemSet[Any]) -> None:
        """Try some settings."""
        edits, first = [s.made for s in settings], self.unedited is None
        scores = self.scored([*([NoEdit()] if first else ()), *edits], items)
        if first:
            self.unedited = scores.pop(0)
        self.kls += self.kls_of(settings)
        self.settings += settings
        self.scores += scores

    def loops(self, place: int) -> bool:
        """Return whether a setting's answers repeat themselves more than the unedited model's, with room for chance."""
        return self.scores[place].repeats > self.unedited.repeats + ROOM * REPEATS

    def to_weaken(self, latest: Mapping[int, int]) -> list[int]:
        """Return the places that loop or are over the budget at their latest setting, and beat those that do not."""
        worth = {i: self.meter.sign * self.scores[at].value for i, at in latest.items()}
        strong = [i for i, at in latest.items() if self.loops(at) or not self.keeps_budget(at)]
        held = max((worth[i] for i in latest if i not in strong), default=float("-inf"))
        return [i for i in strong if worth[i] > held]

    def rank(self, place: int) -> tuple[bool, float, float]:
        """Return what settings are ordered by, the best first: those that loop come last."""
        return self.loops(place), -self.meter.sign * self.scores[place].value, self.kls[place]

    def order(self) -> list[int]:
        """Return the settings within the budget, or what is nearest, best first."""
        free = [i for i, s in enumerate(self.settings) if not s.control]
        within = [i for i in free if self.kls[i] <= self.tries.kl_budget]
        return sorted(within or [min(free, key=self.kls.__getitem__)], key=self.rank)

    def keeps_budget(self, place: int) -> bool:
        """Return whether a setting is within the budget, by all texts where it is near."""
        if self.kls[place] > NEAR * self.tries.kl_budget and len(self.texts) > FEW:
            self.kls[place] = self.kls_of([self.settings[place]], len(self.texts))[0]
        return self.kls[place] <= self.tries.kl_budget

    def finalists(self) -> list[int]:
        """Return the best setting of each of the best places, which are read on the further items."""
        found: dict[Any, int] = {}
        for place in self.order():
            sites = self.settings[place].edit.sites
            if sites not in found and len(found) < FINALISTS and self.keeps_budget(place):
                found[sites] = place
        self.read_more(list(found.values()), controls=True)
        return list(found.values())

    def chosen(self, places: Sequence[int]) -> int:
        """Return the best of these settings; others than finalists are read on further items while all before loop.

        Raises:
            BadValue: nothing stays within the budget.
        """
        read = list[int]()
        for place in places:
            known = self.tries.more is None or self.scores[place].n == self.unedited.n
            if (known or all(map(self.loops, read))) and self.keeps_budget(place):
                if not known:
                    self.read_more([place], controls=False)
                read.append(place)
        if not read:
            raise BadValue(f"nothing that was tried stays within a KL of {self.tries.kl_budget}; raise kl_budget")
        return min(read, key=self.rank)  # where each of them repeats itself, the outcome says so

    def read_more(self, places: Sequence[int], *, controls: bool) -> None:
        """Read settings on the further items too, if there are any, and what they are compared with."""
        if self.tries.more is None or not places:
            return
        places = [*(i for i, s in enumerate(self.settings) if controls and s.control == DIRECTIONS), *places]
        edits = [*([NoEdit()] if controls else ()), *(self.settings[i].made for i in places)]
        before = [*([self.unedited] if controls else ()), *(self.scores[i] for i in places)]
        scores = self.scored(edits, self.tries.more, before)
        if controls:
            self.unedited = scores.pop(0)
        for place, score in zip(places, scores, strict=True):
            self.scores[place] = score

    def record(self, chosen: int) -> dict[str, Any]:
        """Return all that was tried, for the record."""
        trials = [
            SiteTrial(
                s.edit.n_sites,
                s.strength,
                kl,
                x.value,
                s.edit.sites,
                s.control,
                x.answers,
                x.n,
                x.repeats,
                self.loops(i),
            )
            for i, (s, kl, x) in enumerate(zip(self.settings, self.kls, self.scores, strict=True))
        ]
        before = self.unedited
        unedited = SiteTrial(0, 0.0, 0.0, before.value, answers=before.answers, n=before.n, repeats=before.repeats)
        return {
            "metric": self.meter.name,
            "unit": self.meter.unit,
            "judge": before.found.record.get("judge"),
            "kl_budget": self.tries.kl_budget,
            "better": self.meter.better,
            "n_validation": before.n,
            "trials": [asdict(t) for t in (unedited, *trials)],
            "chosen": asdict(trials[chosen]),
            "n_fitted_on": sum(key in self.tries.fitted for key in before.found.rows),
            "gain": self._gain(chosen),
            "gain_held_out": self._gain(chosen, self.tries.fitted),
            "repeats": {"before": before.repeats, "after": trials[chosen].repeats},
        }

    def _gain(self, place: int, without: Collection[str] = ()) -> dict[str, float] | None:
        """Return the mean difference over items with its interval; None of a meter whose figure is no mean of rows."""
        before, after = (
            {key: row for key, row in found.rows.items() if key not in without}
            for found in (self.unedited.found, self.scores[place].found)
        )
        if self.meter.sums_up != "mean" or not before:
            return None
        one, other = (columns_of(self.meter, rows)[:, 0] for rows in (before, after))
        return bootstrap_mean([float(d) for d in np.subtract(other, one)]).as_dict()


def _score(meter: Meter, found: Measured | None, before: _Score | None) -> _Score:
    if found is not None and before is not None:
        found = Measured({**before.found.rows, **found.rows}, record=found.record)
    value = summed_up(meter, found)
    if value is None or found is None:
        raise BadValue(f"{meter.name} says nothing of shifts; choose by another meter")
    texts = [str(row[column]) for row in found.rows.values() for column in meter.shown]
    return _Score(float(value), found, tuple(texts))
