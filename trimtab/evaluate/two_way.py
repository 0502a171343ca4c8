"""TwoWayChoices: a question with two lettered options, in both orders, answered by a letter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.datasets.questions import Question, QuestionSet
from trimtab.evaluate.multiple_choice import AnswerChoices
from trimtab.protocols import Edit, Measured, Meter

LETTERS = ("A", "B")


@dataclass(frozen=True)
class TwoWayChoices(Meter):
    """The best answer against the first false one, as options (Evans, Chua & Lin 2025), each in both places.

    A row is the share of the two orders in which the letter of the true option is the likelier one: a model that always
    says the same letter gets one half of every question. Beside it stands the mean probability of the right letter.
    """

    batch_size: int | None = None
    name: ClassVar[str] = "two_way"
    heading: ClassVar[str] = "two options"
    columns: ClassVar[Sequence[str]] = ("two_way",)

    def measure(
        self, model: Any, tokenizer: Any, items: Any, edits: Sequence[Edit], *, asking: str = "plain", seed: int = 0
    ) -> list[Measured]:
        """Return every question's share under every edit."""
        asking = asking if items.form is None else items.form.name
        posed = [QuestionSet(tuple(options(q, first_true=order) for q in items), items.name) for order in (True, False)]
        source = AnswerChoices(batch_size=self.batch_size)
        orders = [source.measure(model, tokenizer, own, edits, asking=asking) for own in posed]
        found = []
        for of_edit in zip(*orders, strict=True):
            both = zip(*(one.rows.values() for one in of_edit), strict=True)
            found.append(Measured({q.key: _row(*two) for q, two in zip(items, both, strict=True)}))
        return found


def _row(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    return {"two_way": (one["mc1"] + other["mc1"]) / 2, "probability": (one["mc2"] + other["mc2"]) / 2}


def options(question: Question, *, first_true: bool) -> Question:
    """Return the question with two options below it, whose true answer is a letter."""
    texts = (question.best_answer, question.incorrect[0])
    shown = zip(LETTERS, texts if first_true else texts[::-1], strict=True)
    listed = "\n".join(f"{letter}. {text}" for letter, text in shown)
    right, wrong = LETTERS if first_true else LETTERS[::-1]
    return Question(f"{question.question}\n{listed}\nAnswer with the letter alone.", (right,), (wrong,))
