"""Elsewhere: a meter on items of its own, whatever the table is about: capability, off-target behaviours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trimtab.datasets.item_set import ItemSet
from trimtab.evaluate.contrast import PairContrast
from trimtab.evaluate.figure import Figure
from trimtab.evaluate.multiple_choice import AnswerChoices
from trimtab.intervals import share
from trimtab.protocols import Edit, Findings, Measured, Meter


@dataclass(frozen=True)
class Elsewhere(Meter):
    """Measures with a meter, on its own items in place of those of the table."""

    source: Meter
    items: ItemSet[Any]
    name: str
    chance: float | int | None = None
    """What a model reaches that knows nothing of the items, if that is known."""

    @property
    def columns(self) -> Sequence[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As of the meter."""
        return self.source.columns

    @property
    def shown(self) -> Sequence[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As of the meter."""
        return self.source.shown

    def with_findings(self, findings: Findings) -> Meter:
        """Return it with the meter that takes from them."""
        return replace(self, source=self.source.with_findings(findings))

    def measure(
        self, model: Any, tokenizer: Any, items: Any, edits: Sequence[Edit], *, asking: str = "plain", seed: int = 0
    ) -> Sequence[Measured | None]:
        """Return what the meter finds on its own items."""
        return self.source.measure(model, tokenizer, self.items, edits, asking=asking, seed=seed)

    def says_nothing(self, unedited: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Return that the unedited model is at chance, if it is: then there is nothing that an edit could break."""
        found = share([float(row[self.columns[0]]) for row in unedited.values()])
        if self.chance is None or not found.low <= self.chance:
            return None
        return (
            f"the unedited model answers {100 * found:.0f} % of the {len(self.items)} choices of {self.items.name} "
            f"rightly, no better than chance ({100 * self.chance:.0f} %)"
        )

    def describe(self) -> dict[str, Any]:
        """Return what measures, and on what."""
        about = {"items": self.items.name, "n": len(self.items), "fingerprint": self.items.fingerprint}
        return {"meter": type(self).__name__, **about, "measured_with": self.source.name}


def capability_meters(questions: ItemSet[Any]) -> tuple[Meter, ...]:
    """Return the share of choices (one right answer each) that the edited model gets right: what an edit may break."""
    chance = sum(1 / (1 + len(q.incorrect)) for q in questions) / len(questions)
    source = Elsewhere(AnswerChoices(), questions, f"capability {questions.name}", chance)
    heading = "capability" if questions.name == "capability" else f"capability ({questions.name})"
    return (Figure(source, f"capability_{questions.name}", heading, ("mc1",), collateral=True),)


def off_target_meters(pairs: ItemSet[Any]) -> tuple[Meter, ...]:
    """Return how likely another behaviour's positive sides are; it ought to stay, so that neither way is better."""
    source = Elsewhere(PairContrast(), pairs, f"off-target {pairs.name}")
    name, heading = f"off_target_{pairs.name}", f"P({pairs.name})"
    return (Figure(source, name, heading, ("probability",), better="neither", collateral=True),)
