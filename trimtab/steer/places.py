"""choose_place: the sites that attribution ranks first tried in earnest, and how strongly, within a budget of drift."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np

from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.prose import validation_texts
from trimtab.edits.combined import NoEdit
from trimtab.edits.vectors import VectorEdit
from trimtab.engine.conversation import answers_many
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate.drift import drifts
from trimtab.evaluate.table import columns_of, summed_up
from trimtab.intervals import bootstrap_mean
from trimtab.progress import tracked
from trimtab.protocols import Edit, Findings, Measured, Meter
from trimtab.steer.effect import SiteRanking
from trimtab.steer.meters import Metric, meter_for
from trimtab.steer.outcome import AT_RANDOM, REPEATS, repetition
from trimtab.steer.strength import Trial, require_budget

Shift = TypeVar("Shift", bound=VectorEdit)
KL_BUDGET = 0.2
"""Nats per token on neutral text: at 0.25 some answers of a small model loop (docs/results/behaviours.md)."""
SLACK = 0.95
"""What is tried of the strength that should meet the budget: what differs from the law of squares has room there."""
FRACTIONS = (0.25, 0.5, 0.75)
"""Weaker strengths that are tried of the best place."""
FEW, NEAR = 6, 0.75
"""Neutral texts that a first estimate takes, and the share of the budget from which on it takes all."""
OVER, ATTEMPTS = 1.2, 2
"""Times the budget, on the first texts, up to which what is over it is brought within if it does best, in how many
attempts."""
BEYOND = 1.5
"""A stronger one, which is over the budget and shows what comes next."""
LONG, CHECKED = 48, 4
"""New tokens of the answers in which loops are looked for (whole sentences come again later than a meter reads), and of
how many settings they are, the best first."""


@dataclass(frozen=True)
class SiteTrial(Trial):
    """One setting of some sites, and what it did."""

    sites: tuple[Any, ...] = ()
    control: str = ""
    """Of a control, what it is; it cannot be chosen."""
    answers: tuple[str, ...] = ()
    """What was said, where the meter goes by generated texts."""


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
    """Neutral texts for the drift; eighteen of trimtab's own for choosing if not given. The first `FEW` of them say
    where the budget is far away, all of them where it is near."""
    max_tokens: int = 48
    """Of each text."""
    seed: int = 0
    """Of the controls."""


class _Setting(NamedTuple):
    edit: Any
    """At strength 1."""
    control: str
    strength: float

    @property
    def made(self) -> Any:
        return self.edit.scaled(self.strength)


class _Score(NamedTuple):
    value: float
    found: Measured
    answers: tuple[str, ...]


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
    be compared; weaker strengths are tried of the best. What does best and is over the budget on all texts is
    brought within and tried as a setting of its own. Beside them stand controls: sites drawn at random and random
    directions at the first sites, brought to the same drift. The record keeps all under "sweep", as that of
    `choose_strength`, with the gain over the unedited model under "gain". Where the meter goes by generated texts,
    longer ones are looked at before a setting is taken: of settings whose answers repeat themselves `REPEATS` more
    than the unedited model's none is taken while one of the `CHECKED` best does not.

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
    texts = validation_texts()[: 3 * FEW] if tries.texts is None else tries.texts
    if not texts:
        raise BadDataset("no neutral texts to measure drift on; give some, or leave texts out for trimtab's own")

    findings, bounds = Findings(), (0, FEW // 2, FEW, len(texts))

    def kls_of(settings: Sequence[_Setting], start: int = 0, stop: int = FEW) -> list[float]:
        """Return the drift on texts of a range of `bounds`: parts between them run unedited once for all calls."""
        edits = [s.made for s in settings]
        parts = [texts[a:b] for a, b in pairwise(bounds) if start <= a < min(stop, len(texts))]
        how: dict[str, Any] = {"max_tokens": tries.max_tokens, "findings": findings}
        found = [drifts(model, tokenizer, edits, texts=part, **how) for part in parts]
        return [float(np.mean([kl for d in of_edit for _, kl in d.per_text])) for of_edit in zip(*found, strict=True)]

    def scores_of(edits: Sequence[Edit]) -> list[_Score]:
        found = meter.instrument.measure(model, tokenizer, items, edits, asking=items.asking)
        return [_score(meter, of) for of in found]

    steps = tracked(range(6), "trying places")
    next(steps)
    settings = _at_budget(_settings(shift, ranking, tries), lambda some: kls_of(some, stop=FEW // 2), tries.kl_budget)
    next(steps)
    kls = kls_of(settings)
    unedited, *scores = scores_of([NoEdit(), *(s.made for s in settings)])
    next(steps)
    near = [i for i, s in enumerate(settings) if not s.control and kls[i] <= OVER * tries.kl_budget]
    if not near:  # weaker ones may stay within it
        near = [min((i for i, s in enumerate(settings) if not s.control), key=kls.__getitem__)]
    best = settings[max(near, key=lambda i: meter.sign * scores[i].value)]
    weaker = [best._replace(strength=best.strength * f) for f in (*FRACTIONS, BEYOND)]
    next(steps)
    settings, kls = [*settings, *weaker], [*kls, *kls_of(weaker)]
    scores += scores_of([s.made for s in weaker])
    waiting = [i for i, s in enumerate(settings) if not s.control and kls[i] <= OVER * tries.kl_budget]

    def repeated(*edits: Edit) -> list[float]:
        if not unedited.answers or not edits:
            return [0.0] * len(edits)
        asked, settings = [item.asked for item in items], {"max_new_tokens": LONG}
        several = answers_many(model, tokenizer, asked, edits, asking=items.asking, settings=settings)
        return [sum(map(repetition, texts)) / len(texts) for texts in several]

    def within() -> Iterator[int]:
        """Yield what is within the budget on all texts, best first; what is beyond is brought there, as one more."""
        whole = set[int]()
        while waiting:
            i = max(waiting, key=lambda i: (meter.sign * scores[i].value, -kls[i]))
            waiting.remove(i)
            if NEAR * tries.kl_budget < kls[i] and i not in whole and len(texts) > FEW:
                rest = kls_of([settings[i]], FEW, len(texts))[0]
                kls[i] = float(np.average([kls[i], rest], weights=[FEW, len(texts) - FEW]))
            if kls[i] <= tries.kl_budget:
                yield i
                continue
            setting, kl = settings[i], kls[i]
            for _ in range(ATTEMPTS):
                setting = _towards(setting, kl, tries.kl_budget)
                kl = kls_of([setting], stop=len(texts))[0]
                if kl <= tries.kl_budget:
                    whole.add(len(settings))
                    waiting.append(len(settings))
                    settings.append(setting)
                    kls.append(kl)
                    scores.extend(scores_of([setting.made]))
                    break

    next(steps)
    candidates = within()
    first = next(candidates, None)
    if first is None:
        raise BadValue(f"nothing that was tried stays within a KL of {tries.kl_budget}; raise kl_budget")
    next(steps)
    before, *shares = repeated(NoEdit(), settings[first].made)
    repeats = {first: shares[0]}
    if shares[0] > before + REPEATS:
        others = list(islice(candidates, CHECKED - 1))  # in one batch, which takes little longer than one of them
        repeats |= zip(others, repeated(*(settings[i].made for i in others)), strict=True)
    # the best of all, where each of them repeats itself: the outcome says so
    chosen = next((i for i, share in repeats.items() if share <= before + REPEATS), next(iter(repeats)))
    trials = [
        SiteTrial(s.edit.n_sites, s.strength, kl, score.value, s.edit.sites, s.control, score.answers)
        for s, kl, score in zip(settings, kls, scores, strict=True)
    ]
    record = {
        "metric": meter.name,
        "unit": meter.unit,
        "judge": unedited.found.record.get("judge"),
        "kl_budget": tries.kl_budget,
        "better": meter.better,
        "n_validation": len(items),
        "trials": [asdict(t) for t in (SiteTrial(0, 0.0, 0.0, unedited.value, answers=unedited.answers), *trials)],
        "chosen": asdict(trials[chosen]),
        "gain": _gain(meter, unedited.found, scores[chosen].found),
        "repeats": {"before": before, "after": repeats[chosen]},
    }
    made: Any = settings[chosen].made.with_record(sweep=record)
    return made


def _at_budget(
    settings: Sequence[_Setting], kls_of: Callable[[Sequence[_Setting]], list[float]], budget: float | int
) -> list[_Setting]:
    """Return the settings at strengths whose drift should be the budget, after two rounds of measuring.

    Drift is a power of the strength: of exponent 2 where it is small, which is assumed first, and then as measured.
    """
    before, exponents = None, [2.0] * len(settings)
    for _ in range(2):
        now = [math.log(max(kl, 1e-9)) for kl in kls_of(settings)]
        logs = [math.log(s.strength) for s in settings]
        if before is not None:
            steps = zip(logs, before[0], now, before[1], strict=True)
            exponents = [min(6.0, max(1.0, (y - v) / (x - u))) if abs(x - u) > 0.05 else 2.0 for x, u, y, v in steps]
        before = logs, now
        settings = [_towards(*of, budget, n) for *of, n in zip(settings, map(math.exp, now), exponents, strict=True)]
    return list(settings)


def _towards(setting: _Setting, kl: float, budget: float | int, exponent: float = 2.0) -> _Setting:
    """Return the setting at the strength that should meet the budget, where its drift is known at its own."""
    return setting._replace(strength=SLACK * setting.strength * (budget / kl) ** (1 / exponent))


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
