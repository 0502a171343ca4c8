"""choose_place: the sites that attribution ranks first tried in earnest, and how strongly, within a budget of drift."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.prose import validation_texts
from trimtab.edits.combined import NoEdit
from trimtab.edits.vectors import VectorEdit
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate.drift import drifts
from trimtab.evaluate.table import columns_of, summed_up
from trimtab.intervals import bootstrap_mean
from trimtab.models.tokens import encode
from trimtab.progress import tracked
from trimtab.protocols import Edit, Findings, Measured, Meter
from trimtab.steer.effect import TINY, SiteRanking
from trimtab.steer.looks import Look, looks_of
from trimtab.steer.meters import Metric, meter_for
from trimtab.steer.outcome import AT_RANDOM
from trimtab.steer.strength import Trial, require_budget

Shift = TypeVar("Shift", bound=VectorEdit)
KL_BUDGET = 0.2
"""Nats per token on neutral text: at 0.25 some answers of a small model loop (docs/results/behaviours.md)."""
SLACK = 0.95
"""What is tried of the strength that should meet the budget: what differs from the law of squares has room there."""
FRACTIONS = (0.25, 0.5, 0.75)
"""Weaker strengths that are tried of the best place."""
FEW = 4
"""Neutral texts that drift is measured on if none are given. How much of each is read says more than how many they are:
three of 96 tokens come nearer to the drift on others of 128 than eighteen of 48 (benchmarks/results/drift_texts.json).
"""
NEAR = 0.7
"""The share of the budget from which on a setting counts as brought to it."""
BEYOND = 1.5
"""A stronger one, which is over the budget and shows what comes next."""
CHECKED = 4
"""Of how many settings longer answers are looked at, the best first: in one batch, which takes little longer than one
of them."""


@dataclass(frozen=True)
class SiteTrial(Trial):
    """One setting of some sites, and what it did."""

    sites: tuple[Any, ...] = ()
    control: str = ""
    """Of a control, what it is; it cannot be chosen."""
    answers: tuple[str, ...] = ()
    """What was said, where the meter goes by generated texts."""
    spoilt: str = ""
    """What is wrong with its longer answers, where they were looked at."""


@dataclass(frozen=True)
class Tries:
    """How much is tried, within which budget, on what."""

    k: int = 1
    """Sites that are shifted."""
    kl_budget: float | int = KL_BUDGET
    """In nats per token on neutral text, the edit at all positions."""
    n_places: int = 4
    """How many sites are tried in earnest: the best of as many parts of the model's depth; where several are shifted,
    how many numbers of them."""
    texts: Sequence[str] | None = None
    """Neutral texts for the drift; the first `FEW` of trimtab's own for choosing if not given. The first quarter of
    them brings the settings about to the budget."""
    max_tokens: int = 96
    """Of each text."""
    seed: int = 0
    """Of the controls."""


class _Setting(NamedTuple):
    edit: Any
    """At strength 1."""
    control: str
    strength: float
    exponent: float = 2.0
    """Of the power of the strength that its drift is."""

    @property
    def made(self) -> Any:
        return self.edit.scaled(self.strength)


Kls: TypeAlias = Callable[..., list[float]]
"""Measures the drift of settings, on all texts or (given 1) on the first of their two parts."""


class _Score(NamedTuple):
    value: float
    found: Measured
    answers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Tried:
    setting: _Setting
    kl: float
    score: _Score

    @property
    def trial(self) -> SiteTrial:
        edit, control, strength, _ = self.setting
        return SiteTrial(edit.n_sites, strength, self.kl, self.score.value, edit.sites, control, self.score.answers)


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
    """Return the shift on the sites, and at the strength, that do best on items it was not fitted on within the budget.

    The sites that `ranking` puts first in each part of the depth are brought to the budget, where their effects can
    be compared; weaker strengths are tried of the best. Beside them stand controls: sites drawn at random and random
    directions at the first sites, brought to the same drift. The record keeps all under "sweep", as that of
    `choose_strength`, with the gain over the unedited model under "gain". Where the meter goes by generated texts,
    longer ones are looked at before a setting is taken (`Look`): of settings whose answers repeat themselves more than
    the unedited model's, or are unlikely to it, none is taken while one of the `CHECKED` best does neither and gains
    half as much or more.

    Args:
        items: questions or pairs.
        shift: on all sites that may be shifted; `ranking` is of these.
        metric: as of `choose_strength`.

    Raises:
        BadDataset: no neutral texts.
        BadValue: a budget of no drift at all; nothing tried stays within it; a meter that says nothing of shifts.
    """
    meter, tries = meter_for(metric).choosing, tries or Tries()
    require_budget(tries.kl_budget)
    texts = validation_texts()[:FEW] if tries.texts is None else tries.texts
    if not texts:
        raise BadDataset("no neutral texts to measure drift on; give some, or leave texts out for trimtab's own")
    texts = [text for text in texts if len(encode(tokenizer, text)) > 1] or texts  # shorter ones have no drift
    few = math.ceil(len(texts) / 4)
    findings, parts = Findings(), [part for part in (texts[:few], texts[few:]) if part]

    def kls_of(settings: Sequence[_Setting], n_parts: int = 2) -> list[float]:
        """Return the drift on the texts: of each part, what the unedited model says is found once for all calls."""
        edits = [s.made for s in settings]
        how: dict[str, Any] = {"max_tokens": tries.max_tokens, "findings": findings}
        found = [drifts(model, tokenizer, edits, texts=part, **how) for part in parts[:n_parts]]
        return [float(np.mean([kl for d in of_edit for _, kl in d.per_text])) for of_edit in zip(*found, strict=True)]

    def scores_of(edits: Sequence[Edit]) -> list[_Score]:
        found = meter.instrument.measure(model, tokenizer, items, edits, asking=items.asking)
        return [_score(meter, of) for of in found]

    def gain(of: _Tried) -> float:
        return meter.sign * (of.score.value - unedited.value)

    budget, steps = tries.kl_budget, tracked(range(4), "trying places")
    next(steps)
    settings, kls = _at_budget(_settings(shift, ranking, tries), kls_of, budget)
    next(steps)
    unedited, *scores = scores_of([NoEdit(), *(s.made for s in settings)])
    tried = [*map(_Tried, settings, kls, scores)]
    next(steps)
    own = [t for t in tried if not t.setting.control]
    # weaker ones may stay within the budget where none does
    best = max([t for t in own if t.kl <= budget] or [min(own, key=lambda t: t.kl)], key=gain).setting
    weaker = [best._replace(strength=best.strength * f) for f in (*FRACTIONS, BEYOND)]
    tried += map(_Tried, weaker, kls_of(weaker), scores_of([s.made for s in weaker]))
    within = [t for t in tried if t.kl <= budget and not t.setting.control]
    if not within:
        raise BadValue(f"nothing that was tried stays within a KL of {budget}; raise kl_budget")
    within.sort(key=lambda t: (-gain(t), t.kl))
    next(steps)
    looked = [t for t in within if t is within[0] or gain(t) >= gain(within[0]) / 2][:CHECKED]
    own_look, *looks = [Look()] * (1 + len(looked))
    if unedited.answers:
        own_look, *looks = looks_of(model, tokenizer, items, [NoEdit(), *(t.setting.made for t in looked)])
    faults = [look.fault(own_look) for look in looks]
    # the best of all, where each of them is spoilt: the outcome says so
    at = faults.index("") if "" in faults else 0
    chosen, spoilt = looked[at], dict(zip(map(id, looked), faults, strict=True))
    trials = [replace(t.trial, spoilt=spoilt.get(id(t), "")) for t in tried]
    unmoved = SiteTrial(0, 0.0, 0.0, unedited.value, answers=unedited.answers)
    record = {
        "metric": meter.name,
        "unit": meter.unit,
        "judge": unedited.found.record.get("judge"),
        "kl_budget": budget,
        "better": meter.better,
        "n_validation": len(items),
        "trials": [asdict(trial) for trial in (unmoved, *trials)],
        "chosen": asdict(trials[tried.index(chosen)]),
        "gain": _gain(meter, unedited.found, chosen.score.found),
        "repeats": {"before": own_look.repeats, "after": looks[at].repeats},
        "surprisal": {"before": own_look.nats, "after": looks[at].nats},
    }
    made: Any = chosen.setting.made.with_record(sweep=record)
    return made


def _at_budget(settings: Sequence[_Setting], kls_of: Kls, budget: float | int) -> tuple[list[_Setting], list[float]]:
    """Return the settings at strengths whose drift should be a little less than the budget, and their drift.

    Drift is a power of the strength: of exponent 2 where it is small, which is assumed first, and then as measured on
    some texts. What is not near the budget on all of them is moved once more.
    """

    def moved(some: Sequence[_Setting], kls: Sequence[float]) -> list[_Setting]:
        return [_towards(*of, budget) for of in zip(some, kls, strict=True)]

    first = kls_of(settings, 1)
    nearer = moved(settings, first)
    second = kls_of(nearer, 1)
    points = zip(settings, first, nearer, second, strict=True)
    settings = moved([new._replace(exponent=_exponent(old, kl, new, now)) for old, kl, new, now in points], second)
    kls = kls_of(settings)
    off = [i for i, kl in enumerate(kls) if not NEAR * budget <= kl <= budget]
    again = moved([settings[i] for i in off], [kls[i] for i in off])
    for i, setting, kl in zip(off, again, kls_of(again) if off else (), strict=True):
        if kl <= budget or kls[i] > budget:  # what was within it stays there
            settings[i], kls[i] = setting, kl
    return settings, kls


def _exponent(one: _Setting, kl: float, other: _Setting, now: float) -> float:
    """Return the exponent between two strengths; that of small ones where they are too near to tell it."""
    apart = math.log(other.strength / one.strength)
    return min(6.0, max(1.0, math.log(max(now, TINY) / max(kl, TINY)) / apart)) if abs(apart) > 0.05 else 2.0


def _towards(setting: _Setting, kl: float, budget: float | int) -> _Setting:
    """Return the setting at the strength that should meet the budget, where its drift is known at its own."""
    factor = (budget / max(kl, TINY)) ** (1 / setting.exponent)
    return setting._replace(strength=SLACK * setting.strength * factor)


def _settings(shift: Any, ranking: SiteRanking, tries: Tries) -> list[_Setting]:
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

    def setting(edit: Any, control: str = "") -> _Setting:
        return _Setting(edit, control, ranking.reach(edit.sites, tries.kl_budget))

    found = [setting(shift.on(group)) for group in groups]
    if drawn:
        found.append(setting(shift.on(drawn), "random places"))
    return [*found, setting(shift.on(groups[0]).randomised(tries.seed), AT_RANDOM)]


def _score(meter: Meter, found: Measured | None) -> _Score:
    value = summed_up(meter, found)
    if value is None or found is None:
        raise BadValue(f"{meter.name} says nothing of shifts; choose by another meter")
    texts = [str(row[column]) for row in found.rows.values() for column in meter.shown]
    return _Score(float(value), found, tuple(texts))


def _gain(meter: Meter, before: Measured, after: Measured) -> dict[str, float] | None:
    """Return the mean difference over items with its interval; None of a meter whose figure is no mean of rows."""
    if meter.sums_up != "mean" or not before.rows:
        return None
    one, other = (columns_of(meter, found.rows)[:, 0] for found in (before, after))
    return bootstrap_mean([float(d) for d in np.subtract(other, one)]).as_dict()
