"""Generated answers and what a judge makes of them: True, Info and True*Info."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from trimtab.datasets import Question
from trimtab.edits import Edit, NoEdit
from trimtab.errors import BadDataset, BadValue, TrimtabError
from trimtab.evaluate.judges import Judge, Verdict, exact_judge, judge_record
from trimtab.evaluate.kept import KeptAnswers
from trimtab.evaluate.primer import iti_context
from trimtab.intervals import Estimate, bootstrap, bootstrap_mean
from trimtab.models.heads import inference
from trimtab.models.processes import spread
from trimtab.models.tokens import context_length, encode, input_device, length_batches, pad_id
from trimtab.progress import tracked

AnswerForm: TypeAlias = Literal["plain", "iti"]
NEXT_QUESTION = re.compile(r"(?<!\w)Q:")
"""Where an answer ends; not inside a word such as "FAQ:"."""


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
        BadValue: prompt and answer do not fit the model's context; the judge returns something else than a verdict.
        Incompatible: what is to be kept cannot be written.
    """
    edit = NoEdit() if edit is None else edit
    if not questions:
        raise BadDataset("no questions to ask")
    if convention not in ("plain", "iti"):
        raise BadValue(f"unknown convention {convention!r}; choose plain or iti")
    ask = iti_context if convention == "iti" else (lambda question: f"Q: {question}\nA:")
    prompts = [edit.prompt(q.question) or ask(q.question) for q in questions]
    form = {"paragraphs": convention == "iti", "max_new_tokens": max_new_tokens}
    kept = None if keep is None else KeptAnswers(keep, model, edit, prompts, **form)

    def generated() -> list[str]:
        return complete(model, tokenizer, prompts, edit, **form, batch_size=batch_size)

    answers = generated() if kept is None else kept.answers(generated)
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
                f"{cause}; {len(answers)} answers and {len(given)} verdicts are kept in {kept.folder}: run the same "
                "again to go on from there"
            ) from cause
        if kept is not None:
            kept.add(judge, i, given[i])
    return [given[i] for i in range(len(answers))]


def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    edit: Edit,
    *,
    paragraphs: bool = False,
    max_new_tokens: int = 50,
    batch_size: int = 32,
) -> list[str]:
    """Return the greedy continuation of every prompt, up to the next question, paragraph or end token.

    With `paragraphs` an answer may have several, and an `A:` that the model writes itself is where it begins.
    Under a launcher every process continues a stretch of the prompts, and all get all texts.
    """
    ids = [encode(tokenizer, prompt) for prompt in prompts]
    _require_room(model, ids, prompts, max_new_tokens)

    def part(ids: Sequence[list[int]]) -> list[str]:
        return _continued(model, tokenizer, ids, edit, paragraphs, max_new_tokens, batch_size)

    return spread(ids, part)


def _continued(
    model: Any,
    tokenizer: Any,
    ids: Sequence[list[int]],
    edit: Edit,
    paragraphs: bool,
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    pad = pad_id(tokenizer)
    batches = list(length_batches(ids, batch_size=batch_size, pad=pad, device=input_device(model), side="left"))
    texts = [""] * len(ids)
    with edit.applied(model) as edited, inference(edited):
        for batch in tracked(batches, "generating answers"):
            out = edited.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=max_new_tokens,
                use_cache=True,
                # greedy whatever the model's generation defaults; a repetition penalty would also act on padding
                do_sample=False,
                num_beams=1,
                num_return_sequences=1,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=pad,
                stopping_criteria=[AnswerEnd(tokenizer, batch.input_ids.shape[1], paragraphs=paragraphs)],
            )
            new = tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
            for place, text in zip(batch.indices, new, strict=True):
                texts[place] = cut(text, paragraphs=paragraphs)
    return texts


def cut(text: str, *, paragraphs: bool = False) -> str:
    """Return the answer: the text before the next `Q:` or blank line, stripped.

    With `paragraphs`: after the first `A:`, if there is one, and before the next `Q:`.
    """
    text = NEXT_QUESTION.split(text)[0].strip()
    return text.split("A:", 1)[-1].strip() if paragraphs else text.split("\n\n")[0].strip()


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


class AnswerEnd:
    """Stops a row once its new text holds the next question or, unless `paragraphs` may follow, a blank line."""

    def __init__(self, tokenizer: Any, prompt_length: int, *, paragraphs: bool = False) -> None:
        self.tokenizer, self.prompt_length, self.paragraphs = tokenizer, prompt_length, paragraphs

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ARG002
        """Return for each row whether it is done."""
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt_length :])
        return torch.tensor([self._done(t) for t in texts], device=input_ids.device)

    def _done(self, text: str) -> bool:
        started = text.lstrip()
        return NEXT_QUESTION.search(started) is not None or ("\n\n" in started and not self.paragraphs)


def _require_room(model: Any, ids: Sequence[Sequence[int]], prompts: Sequence[str], new: int) -> None:
    context = context_length(model)
    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    if context is not None and len(ids[longest]) + new > context:
        raise BadValue(
            f"a prompt of {len(ids[longest])} tokens and {new} new ones do not fit the model's context of {context}: "
            f"{prompts[longest][:60]!r}...; shorten the prompt or ask for fewer tokens"
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
