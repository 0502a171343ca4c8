"""What `trimtab evaluate` measures of one edit: the figures of its row, and the answers they were made of."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.datasets.questions import QuestionSet
    from trimtab.intervals import Estimate
    from trimtab.models.load.checkpoints import LoadedModel
    from trimtab.protocols import Edit


@dataclass
class Measured:
    """One edit's figures by heading, and what they were made of, as records keep it."""

    name: str
    figures: dict[str, "Estimate"] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        figures = {heading: value.as_dict() for heading, value in self.figures.items()}
        return {"name": self.name, **figures, "details": self.details}


def measure(
    loaded: "LoadedModel",
    questions: "QuestionSet",
    edit: "Edit",
    *,
    convention: Any,
    judge: Any,
    batch_size: int,
    answers: Path | None,
    keep_in: Path | None = None,
) -> Measured:
    """Return what was measured of an edit; its multiple choice is kept in the folder `keep_in`."""
    from trimtab.evaluate.drift import drift
    from trimtab.steer.pipeline import are_pairs

    row = Measured(edit.name)
    if are_pairs(questions):
        _score_pairs(row, loaded, questions, edit, judge, batch_size)
    else:
        if judge is not None:
            form = "iti" if convention == "iti" else "plain"
            _judge(row, loaded, questions, edit, judge=judge, convention=form, batch_size=batch_size, keep=answers)
        _choose(row, loaded, questions, edit, convention, batch_size, keep_in)
    moved = drift(*loaded, edit, batch_size=batch_size)
    row.figures |= {"CE": moved.ce, "KL": moved.kl}
    row.details["drift"] = moved.as_dict()["per_text"]
    return row


def _score_pairs(
    row: Measured, loaded: "LoadedModel", pairs: "QuestionSet", edit: "Edit", scorer: Any, batch_size: int
) -> None:
    from trimtab.evaluate.pairs import contrast, score_texts

    if scorer is not None:
        texts = score_texts(*loaded, pairs, edit, scorer=scorer, batch_size=batch_size)
        row.figures["score"] = texts.score
        row.details["generated"] = texts.as_dict()["rows"]
    scores = contrast(*loaded, pairs, edit, batch_size=batch_size)
    row.figures |= {"P(positive)": scores.probability, "preferred": scores.preferred}
    row.details["pairs"] = scores.as_dict()["rows"]


def _judge(row: Measured, loaded: "LoadedModel", questions: "QuestionSet", edit: "Edit", **options: Any) -> None:
    from trimtab.evaluate.generation import generate_answers

    said = generate_answers(*loaded, questions, edit, **options)
    row.figures |= {"True*Info": said.true_info, "True": said.true, "Info": said.informative}
    row.figures["unmatched"] = said.unmatched
    row.details["generated"] = said.as_dict()["rows"]


def _choose(
    row: Measured,
    loaded: "LoadedModel",
    questions: "QuestionSet",
    edit: "Edit",
    convention: Any,
    batch_size: int,
    keep_in: Path | None,
) -> None:
    from trimtab.cli.against import keep_choices
    from trimtab.evaluate.multiple_choice import multiple_choice

    chosen = multiple_choice(*loaded, questions, edit, convention=convention, batch_size=batch_size)
    if keep_in is not None:
        keep_choices(keep_in, chosen, edit.describe()["strength"])
    row.figures |= {"MC1": chosen.mc1, "MC2": chosen.mc2, "MC3": chosen.mc3}
    row.details["multiple_choice"] = chosen.as_dict()["rows"]
