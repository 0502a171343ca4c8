"""Generated answers and what a judge makes of them: True, Info and True*Info."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from trimtab.datasets.questions import Question
from trimtab.edits.combined import NoEdit
from trimtab.engine.completion import complete, completions
from trimtab.errors import BadDataset, BadValue, TrimtabError
from trimtab.evaluate.judges.exact import exact_judge
from trimtab.evaluate.judges.verdicts import Judge, Verdict, judge_record
from trimtab.evaluate.kept import KeptAnswers
from trimtab.evaluate.primer import iti_context
from trimtab.intervals import Estimate, bootstrap, bootstrap_mean
from trimtab.progress import tracked
from trimtab.protocols import Edit

AnswerForm: TypeAlias = Literal["plain", "iti"]


@dataclass(frozen=True)
class AnswerRow:
    """One question, what was generated, and the verdict."""

    question: str
    prompt: str
    answer: str
    true: float
    informative: float
    matched: bool


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


def generate_answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    edit: Edit | None = None,
    *,
    judge: Judge = exact_judge,
    convention: AnswerForm = "plain",
    max_new_tokens: int = 50,
    batch_size: int = 32,
    keep: str | Path | None = None,
) -> GeneratedAnswers:
    """Return the edited model's greedy answers with the judge's verdicts.

    Each question is asked as `Q: ...\\nA:` (or as an edit that changes the prompt asks it), left-padded in batches
    with a KV cache; the answer ends where the next question or paragraph starts. Convention `"iti"` asks as
    Inference-Time Intervention's evaluation does: instruction and primer before `Q: ...` without `A:`, and the answer
    is what stands after `A:` and before the next `Q:`.

    Args:
        keep: a folder in which the answers are written before they are judged, and each verdict once it is given, so
            that a judge's failure or an interruption loses nothing: the same call takes them up again. Answers of
            other models, edits or questions may stand there too.

    Raises:
        BadDataset: there are no questions.
        BadValue: prompt and answer do not fit the model's context; logits are not numbers; the judge returns something
            else than a verdict.
        Incompatible: what is to be kept cannot be written.
    """
    edit = NoEdit() if edit is None else edit
    prompts = _prompts(questions, edit, convention)
    form = {"paragraphs": convention == "iti", "max_new_tokens": max_new_tokens}
    kept = None if keep is None else KeptAnswers(keep, model, edit, prompts, **form)

    def generated() -> list[str]:
        return complete(model, tokenizer, prompts, edit, **form, batch_size=batch_size)

    answers = generated() if kept is None else kept.answers(generated)
    return _answered(questions, prompts, answers, judge, kept)


def generate_answers_many(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    edits: Sequence[Edit],
    *,
    judge: Judge = exact_judge,
    convention: AnswerForm = "plain",
    max_new_tokens: int = 50,
    batch_size: int = 32,
    keep: str | Path | None = None,
) -> tuple[GeneratedAnswers, ...]:
    """Return `generate_answers` of every edit; prompts that several edits ask and leave unedited run once for all.

    Raises:
        BadDataset: there are no questions.
        BadValue, Incompatible: as for `generate_answers`.
    """
    asked = [_prompts(questions, edit, convention) for edit in edits]
    form = {"paragraphs": convention == "iti", "max_new_tokens": max_new_tokens}
    kept = [
        None if keep is None else KeptAnswers(keep, model, edit, prompts, **form)
        for edit, prompts in zip(edits, asked, strict=True)
    ]
    answers: dict[int, list[str]] = {}
    for prompts in {tuple(prompts): prompts for prompts in asked}.values():
        missing = [i for i, own in enumerate(asked) if own == prompts and not ((k := kept[i]) and k.there)]
        if missing:
            said = completions(model, tokenizer, prompts, [edits[i] for i in missing], **form, batch_size=batch_size)
            answers |= dict(zip(missing, said, strict=True))
    # all that was generated is written before anything is judged
    for i, held in enumerate(kept):
        if held is not None:
            answers[i] = held.answers(lambda i=i: answers[i])
    return tuple(_answered(questions, asked[i], answers[i], judge, kept[i]) for i in range(len(edits)))


def _prompts(questions: Sequence[Question], edit: Edit, convention: str) -> list[str]:
    if not questions:
        raise BadDataset("no questions to ask")
    if convention not in ("plain", "iti"):
        raise BadValue(f"unknown convention {convention!r}; choose plain or iti")
    ask = iti_context if convention == "iti" else (lambda question: f"Q: {question}\nA:")
    return [edit.prompt(q.question) or ask(q.question) for q in questions]


def _answered(
    questions: Sequence[Question],
    prompts: Sequence[str],
    answers: Sequence[str],
    judge: Judge,
    kept: KeptAnswers | None,
) -> GeneratedAnswers:
    verdicts = _judged(questions, answers, judge, kept)
    rows = [
        AnswerRow(question.question, prompt, answer, *verdict)
        for question, prompt, answer, verdict in zip(questions, prompts, answers, verdicts, strict=True)
    ]
    return replace(summarised(rows), judge=judge_record(judge))


def _judged(
    questions: Sequence[Question], answers: Sequence[str], judge: Judge, kept: KeptAnswers | None
) -> list[Verdict]:
    given = {} if kept is None else kept.verdicts(judge)
    missing = [i for i in range(len(answers)) if i not in given]
    for i in tracked(missing, "judging answers"):
        try:
            given[i] = checked_verdict(judge(questions[i], answers[i]), judge)
        except TrimtabError as cause:
            if kept is None:
                raise
            raise type(cause)(
                f"{cause}; {len(answers)} answers and {len(given)} verdicts are kept in {kept.folder}: another try of "
                "the same goes on from there"
            ) from cause
        if kept is not None:
            kept.add(judge, i, given[i])
    return [given[i] for i in range(len(answers))]


def summarised(rows: Sequence[AnswerRow]) -> GeneratedAnswers:
    """Return the scores of judged answers."""
    both = np.array([[r.true, r.informative] for r in rows])
    return GeneratedAnswers(
        true=bootstrap_mean(both[:, 0]),
        informative=bootstrap_mean(both[:, 1]),
        true_info=bootstrap(both, lambda means: means[..., 0] * means[..., 1]),
        unmatched=bootstrap_mean([float(not r.matched) for r in rows]),
        rows=tuple(rows),
    )


def checked_verdict(verdict: Any, judge: Judge) -> Verdict:
    """Return what a judge said as a `Verdict`; raises `BadValue` naming the judge if it is none."""
    name = judge_record(judge)["name"]
    try:
        if isinstance(verdict, str):
            raise TypeError("a text is not a pair of numbers")
        true, informative = float(verdict[0]), float(verdict[1])
        matched = bool(verdict[2]) if len(verdict) > 2 else True
    except (TypeError, ValueError, LookupError, RuntimeError) as cause:
        raise BadValue(f"judge {name} returned {verdict!r:.80}; expected Verdict(true, informative)") from cause
    if not (0 <= true <= 1 and 0 <= informative <= 1):
        raise BadValue(f"judge {name} returned {verdict!r:.80}; true and informative must lie between 0 and 1")
    return Verdict(true, informative, matched)
