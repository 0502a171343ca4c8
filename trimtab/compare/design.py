"""What a comparison will do: its folds, seeds and trials, which questions each part sees, and with what it measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from trimtab.compare.search import Search
from trimtab.datasets.item_set import ItemSet
from trimtab.edits.combined import NoEdit
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate.defaults import default_meters
from trimtab.evaluate.drift import drift_meters
from trimtab.evaluate.table import instruments
from trimtab.protocols import Control, Meter, Method, Ready, as_entrant, methods_and_controls, settings_of

BASELINE = NoEdit().name


@dataclass(frozen=True)
class Design:
    """How often and on what share of the questions: equal for every method."""

    folds: int = 2
    seeds: tuple[int, ...] = (0, 1, 2)
    trials: int = 8
    """Settings that each method may try; a method with fewer settings tries them all."""
    kl_budget: float | int = 0.1
    """For the second result: largest KL(unedited || edited) in nats per token on the choosing texts."""
    validation: float = 0.25
    """Share of a training fold on which knobs are chosen."""
    train_sizes: tuple[int | None, ...] = (None,)
    """Numbers of training questions, validation part included, for a low-data curve; None is all of the fold. They are
    kept by size; the last one is that of the main table."""
    choose_by: str = ""
    """The meter that settings are chosen by; the first one if not given."""
    asking: str = "auto"
    """How questions are asked in fitting and measuring alike, as in `ItemSet.asked_as`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", tuple(self.seeds))
        if self.folds < 1 or self.trials < 1 or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise BadValue(
                f"a comparison needs folds, trials and seeds, each seed once; got folds={self.folds}, "
                f"trials={self.trials}, seeds={self.seeds}"
            )
        if not self.kl_budget > 0 or not 0 < self.validation < 1:
            raise BadValue(
                f"kl_budget must be positive and validation between 0 and 1, got {self.kl_budget} and {self.validation}"
            )
        if not self.train_sizes or any(n is not None and n < 3 for n in self.train_sizes):
            raise BadValue(
                f"train_sizes must be numbers of 3 questions or more, or None for all, got {self.train_sizes}: two "
                "are trained on and one chosen on"
            )
        by_size = sorted(set(self.train_sizes), key=lambda n: (n is None, n or 0))
        object.__setattr__(self, "train_sizes", tuple(by_size))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; how is asked, where it is not plainly."""
        plain = {**asdict(self), "seeds": list(self.seeds), "train_sizes": list(self.train_sizes)}
        return {name: value for name, value in plain.items() if (name, value) != ("asking", "plain")}


class Unit(NamedTuple):
    """One method in one fold under one seed with one number of training questions."""

    method: str
    fold: int
    seed: int
    size: int | None


class Parts(NamedTuple):
    """The questions that a unit trains on, chooses on and is measured on."""

    train: ItemSet[Any]
    validation: ItemSet[Any]
    test: ItemSet[Any]


@dataclass(frozen=True)
class Job:
    """A comparison: methods by name, questions, design and meters."""

    methods: Mapping[str, Method | Control]
    questions: ItemSet[Any]
    test: ItemSet[Any] | None
    """The questions to measure on; each fold's held-out part if not given."""
    design: Design
    meters: Sequence[Meter] = ()
    """What is measured; what speaks of such questions if not given."""
    low_data: tuple[str, ...] | None = None
    """The methods that are measured at the smaller numbers of training questions too; all of them if not given."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the files of the user's own that methods, by their names, and meters (`meter FILE.py:NAME`) come from:
    what is kept of others is not gone on with."""

    def __post_init__(self) -> None:
        meters = tuple(self.meters) or default_meters(self.questions, divide_texts=True, broken=True)
        instruments(meters)
        object.__setattr__(self, "meters", meters)
        object.__setattr__(self, "design", replace(self.design, choose_by=self.design.choose_by or meters[0].name))
        known = [meter.name for meter in meters if meter.better != "neither"]
        # what facts were fitted on may be looked at; by anything else, settings would be chosen on what is reported
        known = known[:1] if self.questions.taught else known
        if self.design.choose_by not in known:
            raise BadValue(f"settings cannot be chosen by {self.design.choose_by!r}; choose {', '.join(known)}")
        self._require_followed()
        if self.questions.taught and self.test is not None:
            raise BadValue(f"{self.questions.name} is measured by the very facts that are written; leave out `test`")
        if self.test is None and self.design.folds < 2 and not self.questions.taught:
            raise BadValue("one fold leaves no questions to test on; choose two or more folds, or give test questions")
        if self.test is not None:
            shared = {q.key for q in self.questions} & {q.key for q in self.test}
            if shared:
                raise BadValue(f"{len(shared)} test questions are also training questions, such as {min(shared)!r}")
        if not self.questions.taught:
            self._require_unseen()
        for seed, fold, size in product(self.design.seeds, range(self.design.folds), self.design.train_sizes):
            self.parts(Unit("", fold, seed, size))

    def asked(self, tokenizer: Any) -> Job:
        """Return the comparison with its questions asked as the design says; raises `BadValue` where they cannot be."""
        questions, test = (
            part and part.asked_as(self.design.asking, tokenizer) for part in (self.questions, self.test)
        )
        assert questions is not None
        return replace(self, questions=questions, test=test, design=replace(self.design, asking=questions.asking))

    def _require_unseen(self) -> None:
        measured = {item.key for item in self.test or self.questions}
        for name, method in self.fitted.items():
            if seen := measured & set(method.fitted_on):
                raise BadValue(
                    f"{name!r} was made with {len(seen)} of the items that it would be measured on, such as "
                    f"{min(seen)!r:.60}; give others as `test`, or its method in its place"
                )

    def _require_followed(self) -> None:
        unknown = set(self.low_data or ()) - set(self.methods)
        if unknown:
            raise BadValue(f"the low-data curve asks for {min(unknown)!r}; the methods are {', '.join(self.methods)}")
        for name, method in self.fitted.items():
            if method.control_of is not None and method.control_of not in self.methods:
                raise BadValue(f"{name!r} stands beside {method.control_of!r}, which is not among the methods; add it")
        for name, control in self.controls.items():
            if control.follows not in self.methods or control.follows in self.controls:
                raise BadValue(
                    f"{name!r} takes the setting that {control.follows!r} chose, which is not among the methods; add it"
                )
            if self.low_data is not None and name in self.low_data and control.follows not in self.low_data:
                raise BadValue(f"the low-data curve asks for {name!r} and lacks {control.follows!r}, which it follows")

    @property
    def fitted(self) -> dict[str, Method]:
        """Those of the methods that choose their own setting."""
        return methods_and_controls(self.methods)[0]

    @property
    def controls(self) -> dict[str, Control]:
        """Those that take the setting that another one chose."""
        return methods_and_controls(self.methods)[1]

    @property
    def chooser(self) -> Meter:
        """The meter that settings are chosen by, on the items for choosing."""
        return next(meter for meter in self.meters if meter.name == self.design.choose_by).choosing

    def chosen_by(self, meter: str) -> Job:
        """Return the job with its settings chosen by another meter."""
        return replace(self, design=replace(self.design, choose_by=meter))

    @property
    def budgeted(self) -> Meter:
        """The drift that the KL budget limits, on the texts for choosing."""
        return next(meter for meter in (*self.meters, *drift_meters()) if meter.name == "kl").choosing

    def methods_at(self, size: int | None) -> list[str]:
        """Return the methods to measure at one number of training questions, in their order; the baseline at all."""
        if self.low_data is None or size == self.design.train_sizes[-1]:
            return list(self.methods)
        return [name for name in self.methods if name == BASELINE or name in self.low_data]

    def _folds(self, seed: int) -> list[tuple[ItemSet[Any], ItemSet[Any]]]:
        n = self.design.folds
        if n > len(self.questions):
            raise BadDataset(self._too_few(f"{n} folds of {len(self.questions)} questions"))
        if n == 1:
            return [(self.questions, self.test or self.questions)]
        return [(train, self.test or held) for train, held in self.questions.folds(n, seed)]

    @property
    def units(self) -> list[Unit]:
        """Every unit, cheap to lose first: all methods of one fold and seed before the next, controls last."""
        d, units = self.design, []
        for size in d.train_sizes:
            names = sorted(self.methods_at(size), key=lambda name: name in self.controls)
            units += [Unit(m, f, s, size) for s in d.seeds for f in range(d.folds) for m in names]
        return units

    def parts(self, unit: Unit) -> Parts:
        """Return a unit's questions: they depend on fold, seed and size only, so they are the same for every method.

        Smaller training sets are parts of larger ones (before the validation part is taken).

        Raises:
            BadDataset: fewer than two questions to train on or none to choose on.
        """
        fold, held = self._folds(unit.seed)[unit.fold]
        if unit.size is not None and unit.size > len(fold):
            raise BadDataset(
                f"{unit.size} training questions asked for, and fold {unit.fold} has {len(fold)}; ask for fewer, or "
                "for all of them"
            )
        if unit.size is not None:
            order = np.random.default_rng([unit.seed, unit.fold, 1]).permutation(len(fold))
            fold = fold.select(sorted(order[: unit.size]))
        if self.questions.taught:
            return Parts(fold, fold, fold)
        n_validation = max(1, round(self.design.validation * len(fold)))
        if len(fold) - n_validation < 2 or len(held) < 2:
            raise BadDataset(self._too_few(f"fold {unit.fold} with {len(fold)} to train on and {len(held)} to test on"))
        order = np.random.default_rng([unit.seed, unit.fold, 2]).permutation(len(fold))
        train, validation = (fold.select(sorted(o)) for o in (order[n_validation:], order[:n_validation]))
        return Parts(train, validation, held)

    def _too_few(self, what: str) -> str:
        return (
            f"{self.questions.name}: {what} is too small: every fold needs two questions to train on, one to choose on "
            "and two to test on; give more questions or fewer folds"
        )

    def search(self, unit: Unit) -> Search:
        """Return which settings a method tries in a fold under a seed: as many as there are on so few questions."""
        method = self.fitted[unit.method].limited_to(len(self.parts(unit).train))
        return Search.of(method, self.design.trials, (unit.seed, unit.fold))

    def n_tries(self, unit: Unit) -> int:
        """Return how many settings a unit's method tries, or how many draws its control makes."""
        control = self.controls.get(unit.method)
        return control.draws if control else self.search(unit).n


def named(methods: Sequence[Any] | Mapping[str, Any]) -> dict[str, Method | Control]:
    """Return methods by name, ready edits made into methods, and the unedited model first.

    Raises:
        BadValue: no methods; two of one name; something that is neither a method nor an edit.
    """
    pairs = methods.items() if isinstance(methods, Mapping) else [(as_entrant(m).name, m) for m in methods]
    if not pairs:
        raise BadValue("no methods to compare; give one or more, such as trimtab.steer.ITI()")
    found: dict[str, Method | Control] = {BASELINE: Ready(NoEdit())}
    for name, value in pairs:
        entrant = as_entrant(value)
        if name == BASELINE and entrant != found[BASELINE]:
            raise BadValue(f"{BASELINE!r} is the name of the unedited model; give the method another one")
        if name in found and name != BASELINE:
            raise BadValue(
                f"two methods are called {name!r}; leave one out, or in Python pass a mapping from names to methods"
            )
        found[name] = entrant
    for name, method in methods_and_controls(found)[0].items():
        if not settings_of(method):
            raise BadValue(f"the method {name!r} has an empty space; it needs one setting or more, {{}} if no knobs")
    return found
