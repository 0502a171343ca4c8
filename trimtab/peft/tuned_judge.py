"""A judge of one's own: a model fine-tuned to say yes or no of answers, and how far it then agrees with people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trimtab.datasets.questions import SftExample
from trimtab.engine.score import score_answers
from trimtab.evaluate.judges.checking import Agreed, agreed
from trimtab.evaluate.judges.judge_data import WORDS, Graded, judge_parts
from trimtab.models.tokens import tokenize_answer
from trimtab.peft.methods.base import TuningMethod
from trimtab.peft.methods.full import FullFineTuning
from trimtab.peft.recipe import Recipe
from trimtab.peft.tuned_edit import TunedEdit
from trimtab.protocols import Edit

RECIPE = Recipe(epochs=3, batch_size=128, learning_rate=2e-4)
"""With which a model of 135 million parameters, tuned whole, comes to agree with people on 88 % of new answers."""


class TunedJudge(NamedTuple):
    """One half of a judge, of what is true or of what is informative."""

    edit: TunedEdit
    answers: Agreed
    """On other answers to the questions that it was trained on."""
    questions: Agreed
    """On answers to other questions."""


def tune_judge(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Graded],
    kind: str,
    *,
    method: TuningMethod | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> TunedJudge:
    """Return a model tuned to say yes or no after question, answer and `True:` (kind "true") or `Helpful:`.

    Trained on two thirds of the lines: a fifth of the questions, and of the others a fifth of their answers, are held
    out, and the agreement with people is measured on both.

    Args:
        method: how it is tuned; whole, by the recipe above, if not given.
        out: a folder for checkpoints, from which a killed run goes on.

    Raises:
        BadDataset: too few questions, or one label only.
        BadValue: as the method's `fit`.
    """
    parts = judge_parts(rows, seed, f"judge data ({kind})")
    method = FullFineTuning(recipe=RECIPE) if method is None else method
    examples = [SftExample(_prompt(row, kind), " yes" if row.label else " no") for row in parts.train]
    edit = method.fit(model, tokenizer, examples, seed=seed, out=out)
    found = [_agreed(model, tokenizer, edit, held, kind) for held in (parts.answers, parts.questions)]
    return TunedJudge(edit, *found)


def _prompt(row: Graded, kind: str) -> str:
    return f"{row.text}\n{WORDS[kind]}"


def _agreed(model: Any, tokenizer: Any, edit: Edit, rows: Sequence[Graded], kind: str) -> Agreed:
    prompts = [_prompt(row, kind) for row in rows]
    asked = [tokenize_answer(tokenizer, prompt + word, len(prompt)) for prompt in prompts for word in (" yes", " no")]
    (scores,) = score_answers(model, tokenizer, asked, [edit]).logprobs
    said = [yes > no for yes, no in zip(scores[::2], scores[1::2], strict=True)]
    return agreed([row.question for row in rows], said, [row.label for row in rows])
