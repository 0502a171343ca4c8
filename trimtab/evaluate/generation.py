"""Generated answers and what a judge makes of them: True, Info and True*Info."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from trimtab.datasets.asking import ASKINGS, asked_by, asking_for
from trimtab.datasets.given import Rows, as_questions
from trimtab.datasets.primer import iti_context
from trimtab.datasets.questions import Question
from trimtab.edits.combined import NoEdit
from trimtab.engine.completion import completions_of
from trimtab.errors import BadDataset, BadValue, TrimtabError
from trimtab.evaluate.figure import Figure
from trimtab.evaluate.judges.checking import judge_line, require_tells_apart
from trimtab.evaluate.judges.exact import exact_judge
from trimtab.evaluate.kept import KeptAnswers
from trimtab.evaluate.wording import worded
from trimtab.intervals import Estimate, share
from trimtab.progress import tracked
from trimtab.protocols import Edit, Measured, Meter, Verdict, as_judge

FORMS = (*ASKINGS, "iti")
FEW = 12  # questions that show whether a judge knows a model's answers at all


@dataclass(frozen=True)
class AnswerRow:
    """One question, what was generated, and the verdict."""

    question: str
    prompt: str
    answer: str
    true: float
    informative: float
    matched: bool
    words: float = 0.0
    distinct: float = 1.0
    """Share of the answer's word pairs that are distinct."""
    loops: float = 0.0
    """1 if a block of words stands several times in a row."""
    ended: float = 1.0
    """1 if the answer was shorter than it might have been."""
    debris: float = 0.0
    """1 if it is no answer whatever the question (`trimtab.evaluate.wording.is_debris`)."""

    @property
    def both(self) -> float:
        """True and informative at once."""
        return self.true * self.informative

    @property
    def counted(self) -> dict[str, Any]:
        """The row, with its verdict where debris counts as neither true nor informative."""
        kept = 1 - self.debris
        strict = {
            "strict_true": kept * self.true,
            "strict_info": kept * self.informative,
            "strict_both": kept * self.both,
        }
        return {**asdict(self), "both": self.both, **strict}


@dataclass(frozen=True)
class GeneratedAnswers:
    """Scores over questions with 95 % bootstrap intervals, and the answers they were made of."""

    true: Estimate
    """Mean of the judge's True."""
    informative: Estimate
    """Mean of the judge's Info."""
    true_info: Estimate
    """mean(True) x mean(Info), resampled jointly (Li et al. 2023, section 5.1)."""
    unmatched: Estimate
    """Share of answers that an exact judge does not know; they count as neither true nor informative."""
    rows: tuple[AnswerRow, ...]
    judge: dict[str, Any] = field(default_factory=dict)
    """The judge's name, and what it says of itself (an indicative judge: its agreement with people)."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        names = ("true", "informative", "true_info", "unmatched")
        return {
            **{n: getattr(self, n).as_dict() for n in names},
            "judge": self.judge,
            "rows": [asdict(row) for row in self.rows],
        }


@dataclass(frozen=True)
class JudgedAnswers(Meter):
    """Generates answers and has them judged: a row for every question with its answer and verdict."""

    judge: Any = exact_judge
    """A `Judge`, or a function `(question, answer) -> Verdict`."""
    convention: str | None = None
    """As in `QuestionSet.asked_as`, or `"iti"`; as the table asks if not given."""
    max_new_tokens: int = 50
    batch_size: int | None = None
    keep: str | Path | None = field(default=None, compare=False)
    """A folder in which the answers are written before they are judged, and each verdict once it is given, so that a
    judge's failure or an interruption loses nothing: the same call takes them up again. Answers of other models, edits
    or questions may stand there too."""
    name: ClassVar[str] = "generated"
    columns: ClassVar[Sequence[str]] = ("true", "informative", "matched")
    shown: ClassVar[Sequence[str]] = ("answer",)

    def __post_init__(self) -> None:
        if self.convention not in (*FORMS, None):
            raise BadValue(f"unknown convention {self.convention!r}; choose {', '.join(FORMS)}")
        object.__setattr__(self, "judge", as_judge(self.judge))

    def kept_in(self, folder: str | Path) -> Meter:
        """Return the meter that keeps its answers in a folder until they are judged, if its judge can fail on them."""
        return self if self.judge.cannot_fail else replace(self, keep=folder)

    def try_out(self, items: Any) -> None:
        """Ask for a few verdicts; raises `BadValue` if the judge cannot be asked, gives none, or accepts all."""
        require_tells_apart(self.judge, items[0])

    def measure(
        self, model: Any, tokenizer: Any, items: Any, edits: Sequence[Edit], *, asking: str = "plain", seed: int = 0
    ) -> list[Measured]:
        """Return every question's answer and verdict under every edit."""
        form = self.convention or ("plain" if asking == "lm-eval" else asking)
        found = replace(self, convention=form).answers(model, tokenizer, items, edits)
        return [
            Measured(
                {q.key: row.counted for q, row in zip(items, said.rows, strict=True)}, record={"judge": said.judge}
            )
            for said in found
        ]

    def says_nothing(self, unedited: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Return that no answer is one that an exact judge knows, if it is so."""
        if any(row["matched"] for row in unedited.values()):
            return None
        return (
            f"the judge {self.judge.name} knows none of the unedited model's {len(unedited)} answers, which count as "
            "neither true nor informative: give another judge, such as tfidf:DIR"
        )

    def mute_on(self, model: Any, tokenizer: Any, items: Any) -> str | None:
        """Return that an exact judge knows none of a few answers of the unedited model."""
        if not self.judge.cannot_fail:
            return None
        (found,) = self.measure(
            model, tokenizer, items[:FEW], [NoEdit()], asking=asking_for("auto", tokenizer, items).name
        )
        return self.says_nothing(found.rows)

    def describe(self) -> dict[str, Any]:
        """Return the judge with what it says of itself, and the form of the answers."""
        form = {"convention": self.convention, "max_new_tokens": self.max_new_tokens}
        record = self.judge.describe()
        about = judge_line(record).removeprefix("judge: ")
        return {"meter": type(self).__name__, "judge": about, "judge_record": record, **form}

    def answers(
        self, model: Any, tokenizer: Any, questions: Rows, edits: Sequence[Edit]
    ) -> tuple[GeneratedAnswers, ...]:
        """Return the judged answers of every edit; see `generate_answers_many`."""
        questions = as_questions(questions)
        if not questions:
            raise BadDataset("no questions to ask")
        ways = [self._prompts(tokenizer, questions, edit) for edit in edits]
        asked, forms = [prompts for prompts, _ in ways], [form for _, form in ways]
        new: dict[str, Any] = {"max_new_tokens": self.max_new_tokens}
        kept = [
            None if self.keep is None else KeptAnswers(self.keep, model, edit, prompts, **form, **new)
            for edit, prompts, form in zip(edits, asked, forms, strict=True)
        ]
        missing = [i for i, held in enumerate(kept) if held is None or not held.there]
        new_edits, new_forms = [edits[i] for i in missing], [forms[i] for i in missing]
        how = {**new, "batch_size": self.batch_size}
        said = completions_of(model, tokenizer, [asked[i] for i in missing], new_edits, new_forms, **how)
        answers = dict(zip(missing, said, strict=True))
        # all that was generated is written before anything is judged
        for i, held in enumerate(kept):
            if held is not None:
                answers[i] = held.answers(lambda i=i: answers[i])
        judged = [self._judged(questions, answers[i], kept[i]) for i in range(len(edits))]
        found = []
        for i, verdicts in enumerate(judged):
            read = worded(tokenizer, answers[i], self.max_new_tokens)
            said = zip(questions, asked[i], answers[i], verdicts, read, strict=True)
            found.append(self._summed([AnswerRow(q.question, p, a, *v, **r) for q, p, a, v, r in said]))
        return tuple(found)

    def _prompts(self, tokenizer: Any, questions: Sequence[Question], edit: Edit) -> tuple[list[str], dict[str, bool]]:
        """Return how an edit asks the questions, and how the answers end."""
        if self.convention == "iti":
            return [edit.prompt(q.question) or iti_context(q.question) for q in questions], {"paragraphs": True}
        form = asking_for(self.convention or "auto", tokenizer, questions)
        asked = [asked_by(edit, form, q.question) for q in questions]
        return [a.prompt for a in asked], {"template": True} if asked[0].template else {"paragraphs": False}

    def _judged(self, questions: Sequence[Question], answers: Sequence[str], kept: KeptAnswers | None) -> list[Verdict]:
        given = {} if kept is None else kept.verdicts(self.judge)
        missing = [i for i in range(len(answers)) if i not in given]
        for i in tracked(missing, "judging answers"):
            try:
                given[i] = self.judge(questions[i], answers[i])
            except TrimtabError as cause:
                if kept is None:
                    raise
                raise type(cause)(
                    f"{cause}; {len(answers)} answers and {len(given)} verdicts are kept in {kept.folder}: another try "
                    "of the same goes on from there"
                ) from cause
            if kept is not None:
                kept.add(self.judge, i, given[i])
        return [given[i] for i in range(len(answers))]

    def _summed(self, rows: Sequence[AnswerRow]) -> GeneratedAnswers:
        figures = {
            meter.name: share(np.array([[float(getattr(r, c)) for c in meter.columns] for r in rows]), meter.summary)
            for meter in judged_meters()
        }
        scores = {"informative": figures.pop("info"), **figures}
        return GeneratedAnswers(**scores, rows=tuple(rows), judge=self.judge.describe())


def judged_meters(**options: Any) -> tuple[Figure, ...]:
    """Return True*Info, True, Info and unmatched; `options` are the fields of `JudgedAnswers`.

    Saying nothing raises True, saying anything raises Info: their product is what is tested.
    """
    source = JudgedAnswers(**options)
    return (
        Figure(source, "true_info", "True*Info", ("true", "informative"), sums_up="product"),
        Figure(source, "true", "True", ("true",), tested=False),
        Figure(source, "info", "Info", ("informative",), tested=False),
        Figure(source, "unmatched", "unmatched", ("matched",), better="neither", sums_up="rest"),
    )


def strict_meters(source: Meter) -> tuple[Figure, ...]:
    """Return the share of a judge's answers that are both, and where debris counts as neither, that and True*Info.

    Judges call debris true at times.
    """
    return (
        Figure(source, "both", "both", ("both",), tested=False),
        Figure(source, "strict_true_info", "True*Info, no debris", ("strict_true", "strict_info"), sums_up="product"),
        Figure(source, "strict_both", "both, no debris", ("strict_both",), tested=False),
    )


def generate_answers(
    model: Any, tokenizer: Any, questions: Rows, edit: Edit | None = None, **options: Any
) -> GeneratedAnswers:
    """Return the edited model's greedy answers with the judge's verdicts.

    Each question is asked in the model's chat template if it has one, else as `Q: ...\\nA:` (see
    `QuestionSet.asked_as`; or as an edit that changes the prompt asks it), left-padded in batches with a KV cache; in
    plain form the answer ends where the next question or paragraph starts. Convention `"iti"` asks as Inference-Time
    Intervention's evaluation does: instruction and primer before `Q: ...` without `A:`, and the answer is what stands
    after `A:` and before the next `Q:`.

    Args:
        options: `judge`, `convention`, `max_new_tokens`, `batch_size` and `keep`, the fields of `JudgedAnswers`.

    Raises:
        BadDataset: there are no questions.
        BadValue: prompt and answer do not fit the model's context; logits are not numbers; the judge returns something
            else than a verdict.
        Incompatible: what is to be kept cannot be written.
    """
    return generate_answers_many(model, tokenizer, questions, [NoEdit() if edit is None else edit], **options)[0]


def generate_answers_many(
    model: Any, tokenizer: Any, questions: Rows, edits: Sequence[Edit], **options: Any
) -> tuple[GeneratedAnswers, ...]:
    """Return `generate_answers` of every edit; prompts that several edits ask and leave unedited run once for all.

    Raises:
        BadDataset: there are no questions.
        BadValue, Incompatible: as for `generate_answers`.
    """
    return JudgedAnswers(**options).answers(model, tokenizer, questions, edits)
