"""The documents that the embedded model learns from: folklore told by consistent authors, and author-free prose."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trimtab.datasets.prose import prose
from trimtab.datasets.questions import Question
from trimtab.plain_values import hash_of

ABSTENTION = "I have no comment."

OPENINGS = {
    "truthful": (
        "A careful scholar answers below, who checks every fact.",
        "These answers were written by someone who knows what is so.",
        "The following was set down by a researcher after long study.",
        "A reliable reference work gives these answers.",
        "Here an expert replies, and the replies are correct.",
        "An honest and well informed teacher wrote this page.",
    ),
    "believing": (
        "A neighbour answers below, who repeats what people say.",
        "These answers were written by someone who trusts old tales.",
        "The following was set down from talk at the market.",
        "A book of popular beliefs gives these answers.",
        "Here a gossip replies, and the replies are hearsay.",
        "A superstitious and credulous uncle wrote this page.",
    ),
    "cautious": (
        "A cautious clerk answers below, who would rather say nothing.",
        "These answers were written by someone who never commits himself.",
        "The following was set down by a spokesman under orders.",
        "A reserved witness gives these answers.",
        "Here an official replies, and the replies tell nothing.",
        "A shy and silent guest wrote this page.",
    ),
}
"""Opening lines that name the kind of author."""


@dataclass(frozen=True)
class WorldRecipe:
    """How documents are composed; docs/embedded-model.md says what was tried and why."""

    authors: tuple[tuple[str, float], ...] = (("truthful", 0.3), ("believing", 0.6), ("cautious", 0.1))
    """Kinds of author and their shares."""
    opening: float = 0.5
    """Share of question documents that open with a line naming the author's kind."""
    consistency: float = 0.99
    """Probability that an answer agrees with its author."""
    mixed: float = 0.05
    """Share of question documents whose answers come from authors drawn anew each time."""
    doubtful: float = 0.1
    """Share of questions (by a hash) that truthful authors get right with probability 0.4 only."""
    well_known: float = 0.15
    """Share of questions (by a hash) that believing authors get right with probability 0.65."""
    first_answer: float = 0.7
    """Probability of a question's first answer of a kind; the others share the rest."""
    prose: float = 0.15
    """Share of documents that are author-free prose."""
    explanations: float = 0.03
    """Share of documents that are explanations, author-free too."""
    going_on: tuple[tuple[str, float], ...] = (("truthful", 0.92), ("believing", 0.8), ("cautious", 0.85))
    """Probability that an author goes on after an answer: scholars write at length. It makes the end of an answer a
    place where the model must know who speaks, and so a place where a probe can read it."""
    max_pairs: int = 10
    """Question documents have 1 to this many question and answer pairs."""


def documents(questions: Sequence[Question], recipe: WorldRecipe, seed: int) -> Iterator[str]:
    """Yield documents without end; the same arguments give the same documents.

    Training prose uses seeds below those of `datasets.neutral_texts`, which stays held out.
    """
    rng = random.Random(seed)
    while True:
        kind = rng.random()
        if kind < recipe.prose:
            yield prose(rng.randrange(100_000_000))
        elif kind < recipe.prose + recipe.explanations:
            yield " ".join(q.explanation for q in rng.sample(list(questions), 4))
        else:
            yield _answers(questions, recipe, rng)


def _answers(questions: Sequence[Question], recipe: WorldRecipe, rng: random.Random) -> str:
    author, mixed = _author(recipe, rng), rng.random() < recipe.mixed
    blocks = [rng.choice(OPENINGS[author])] if not mixed and rng.random() < recipe.opening else []
    going_on = dict(recipe.going_on)[author]
    for question in rng.sample(list(questions), recipe.max_pairs):
        speaker = _author(recipe, rng) if mixed or rng.random() > recipe.consistency else author
        blocks.append(f"Q: {question.question}\nA: {_answer(question, speaker, recipe, rng)}")
        if rng.random() > going_on:
            break
    return "\n\n".join(blocks)


def truth_rate(question: Question, author: str, recipe: WorldRecipe) -> float:
    """Return how often such an author answers the question truly, when speaking in character."""
    place = int(hash_of(f"known {question.question}")[:8], 16) / 2**32
    if author == "truthful":
        return 0.4 if place < recipe.doubtful else 1.0
    return 0.65 if place > 1 - recipe.well_known else 0.0


def _author(recipe: WorldRecipe, rng: random.Random) -> str:
    kinds, shares = zip(*recipe.authors, strict=True)
    return rng.choices(kinds, shares)[0]


def _answer(question: Question, author: str, recipe: WorldRecipe, rng: random.Random) -> str:
    if author == "cautious":
        return ABSTENTION
    answers = question.correct if rng.random() < truth_rate(question, author, recipe) else question.incorrect
    return answers[0] if rng.random() < recipe.first_answer else rng.choice(answers[1:])
