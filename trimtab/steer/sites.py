"""Where a model carries what is to be steered: probes fitted on some questions rank its sites on others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch

from trimtab.activations.captured import HeadActivations
from trimtab.datasets.given import Rows, as_items
from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.statements import Format
from trimtab.edits.vectors import VectorEdit
from trimtab.engine.capture import capture_heads
from trimtab.errors import BadDataset, BadValue
from trimtab.probes.head_probes import HeadProbes
from trimtab.probes.logistic import fit_logistic, fit_mass_mean
from trimtab.protocols import Findings, Knobs, Method, stopwatch

Site: TypeAlias = Literal["heads", "residual"]
StatementForm: TypeAlias = Literal["plain", "iti", "bare"] | Format | None
Position: TypeAlias = Literal["last", "mean_answer"]
RANKING = 0.2
"""The share of a method's training questions that rank sites, one question at least."""


def are_pairs(items: ItemSet[Any]) -> bool:
    """Return whether these are contrast pairs rather than questions with answers."""
    return items.measured_by == "pairs"


def read_at(items: ItemSet[Any]) -> Position:
    """Return where the texts of such items are read: style shows in every word, and a last token may be a full stop."""
    return "mean_answer" if are_pairs(items) else "last"


class ReadAs(NamedTuple):
    """Where and how sites are read."""

    site: Site = "heads"
    form: StatementForm = None
    """Of statements; the set's own if None."""
    position: Position = "last"
    probe: Literal["logistic", "mass_mean"] = "logistic"
    """What is fitted at every site; class means take a moment where a regression of wide sites takes many."""


class SiteProbes(NamedTuple):
    """What was read at every site of a model."""

    acts: HeadActivations
    """Of the questions that the probes were fitted on."""
    held: HeadActivations
    """Of the questions that rank the sites."""
    probes: HeadProbes

    @property
    def all_acts(self) -> HeadActivations:
        """The activations of both, as a protocol that draws no line between them takes them."""
        values, labels = (torch.cat([getattr(part, name) for part in self[:2]]) for name in ("values", "labels"))
        return replace(self.acts, values=values, labels=labels, groups=self.acts.groups + self.held.groups)


def read_sites(
    model: Any,
    tokenizer: Any,
    train: ItemSet[Any],
    ranking: ItemSet[Any],
    read: ReadAs | None = None,
    *,
    seed: int = 0,
) -> SiteProbes:
    """Return the probes of every head (or layer), fitted on `train` and ranked on `ranking`, and what they read.

    The only way in which trimtab's own steering starts: directions, ranking and the choice of a setting can then rest
    on disjoint questions.

    Raises:
        BadValue: the two share a question; NaN activations.
    """
    read = read or ReadAs()
    acts, held = (
        capture_heads(
            model,
            tokenizer,
            part.asked_as("auto", tokenizer).statements(read.form),
            site=read.site,
            position=read.position,
        )
        for part in (train, ranking)
    )
    fitted = fit_mass_mean if read.probe == "mass_mean" else fit_logistic
    return SiteProbes(acts, held, fitted(acts, validation=held, seed=seed))


class SteeringMethod(Method):
    """Vectors at the sites that probes read best, at a strength that whoever compares chooses.

    Directions and probes come from one part of the training questions, the ranking from the other; settings are to be
    chosen on questions that are in neither.
    """

    site: ClassVar[Site]
    format: StatementForm
    """The statements' form: `"iti"` is the original one-line form; the question set's own if None."""

    @abstractmethod
    def shift(self, found: SiteProbes, knobs: Knobs, *, seed: int) -> VectorEdit:
        """Return the shift of strength 1 at the sites that the knobs name."""

    def fit(self, model: Any, tokenizer: Any, train: Rows, *, knobs: Knobs | None = None, seed: int = 0) -> VectorEdit:
        """Return the shift fitted on the training questions' statements.

        Raises:
            BadDataset: fewer than two questions.
            BadValue: more sites asked for than the model has; other knobs than the method's.
        """
        return self.fitter(model, tokenizer, train, seed=seed)(knobs or self.grid[0])

    def fitter(
        self, model: Any, tokenizer: Any, train: Rows, *, seed: int = 0
    ) -> Callable[[Mapping[str, Any]], VectorEdit]:
        """Return a function from knobs to shifts that all use one capture and one set of probes.

        Raises:
            BadDataset: fewer than two questions.
            BadValue: as `fit`, by the function returned.
        """
        return self.fitter_with(Findings(), model, tokenizer, train, seed=seed)

    def fitter_with(
        self, findings: Findings, model: Any, tokenizer: Any, train: Rows, *, seed: int = 0
    ) -> Callable[[Mapping[str, Any]], VectorEdit]:
        """Return the `fitter`; methods that read the same sites of the same questions share what they read."""
        asked: ItemSet[Any] = as_items(train).asked_as("auto", tokenizer)
        if len(asked) < 2:
            raise BadDataset(f"{self.name} needs two or more training questions, got {len(asked)}: some rank the sites")
        read = ReadAs(self.site, self.format, read_at(asked))

        def timed() -> tuple[SiteProbes, float]:
            with stopwatch() as seconds:
                parts = asked.split(test=max(RANKING, 1 / len(asked)), seed=seed)
                found = read_sites(model, tokenizer, *parts, read, seed=seed)
            return found, seconds[0]

        found, seconds = findings.once((read, asked.fingerprint, asked.asking, seed), timed)

        def at(knobs: Mapping[str, Any]) -> VectorEdit:
            if set(knobs) != set(self.space):
                given, known = ", ".join(map(str, knobs)) or "none", " and ".join(self.space)
                raise BadValue(f"{self.name} takes the knobs {known}, got {given}; give both and no other")
            made = self.shift(found, knobs, seed=seed)
            # what every setting of the knobs would have had to pay if it had been made alone
            cost = replace(made.cost, seconds=made.cost.seconds + seconds)
            how = {} if self.format else {"asking": asked.asking}
            return replace(made, name=self.name, cost=cost, record={**made.record, **how}).scaled(knobs["alpha"])

        return at
