"""Contrast pairs: how much likelier the model finds the positive side than the negative one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from trimtab.before import NOTHING
from trimtab.datasets.asking import BARE, asking_for
from trimtab.datasets.given import Rows, as_items
from trimtab.datasets.pairs import ContrastPair, PairSet
from trimtab.datasets.statements import Statement
from trimtab.edits.combined import NoEdit
from trimtab.engine.batching import alike_together
from trimtab.engine.completion import completions
from trimtab.engine.score import score_answers
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate.figure import Figure
from trimtab.evaluate.style import AnswerStyle
from trimtab.intervals import Estimate, share
from trimtab.models.tokens import scored_tokens
from trimtab.protocols import Edit, Measured, Meter, as_judge

Scorer: TypeAlias = Callable[[ContrastPair, str], float]
"""Says how much of the behaviour a generated text shows, from 0 to 1. Any callable of this kind will do."""


class PairRow(NamedTuple):
    """One pair: the mean log-probabilities of its sides, and the share of probability on the positive one."""

    prompt: str
    positive: float
    negative: float
    probability: float

    @classmethod
    def of(
        cls, prompt: str, positives: Sequence[float] | np.ndarray, negatives: Sequence[float] | np.ndarray
    ) -> PairRow:
        """Return the row of the log-probabilities of both sides' texts."""
        positive, negative = float(np.mean(positives)), float(np.mean(negatives))
        return cls(prompt, positive, negative, float(np.exp(positive - np.logaddexp(positive, negative))))

    @property
    def chosen(self) -> dict[str, float]:
        """Whether the positive side is the likelier one, and by how much."""
        return {"preferred": float(self.positive > self.negative), "margin": self.positive - self.negative}


@dataclass(frozen=True)
class PairScores:
    """Scores over pairs with 95 % bootstrap intervals, and the rows they were made of."""

    probability: Estimate
    """P(positive) / (P(positive) + P(negative)), with whole texts' probabilities."""
    preferred: Estimate
    """Share of pairs whose positive side is the likelier one."""
    rows: tuple[PairRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        scores = {"probability": self.probability.as_dict(), "preferred": self.preferred.as_dict()}
        return {**scores, "rows": [row._asdict() for row in self.rows]}


def contrast(
    model: Any,
    tokenizer: Any,
    pairs: Rows,
    edit: Edit | None = None,
    *,
    asking: str = "auto",
    batch_size: int | None = None,
) -> PairScores:
    """Return how likely the edited model finds the positive sides of contrast pairs against the negative ones.

    Sums of log-probabilities over each side's tokens after the pair's prompt (after the tokenizer's own first token,
    or its end token, where a pair has none); several positive or negative texts count with their mean. The edit
    acts from the last prompt token on.

    Args:
        asking: as in `PairSet.asked_as`.
        batch_size: at most so many texts in one forward; as many as fit if not given.

    Raises:
        BadDataset: there are no pairs.
        BadValue: a text that does not fit the model; no prompt and no token that could stand before the text.
    """
    edits = [NoEdit() if edit is None else edit]
    (scores,) = contrast_many(model, tokenizer, pairs, edits, asking=asking, batch_size=batch_size)
    return scores


def contrast_many(
    model: Any,
    tokenizer: Any,
    pairs: Rows,
    edits: Sequence[Edit],
    *,
    asking: str = "auto",
    batch_size: int | None = None,
) -> list[PairScores]:
    """Return `contrast` of every edit; prompts are computed once for all that leave them unedited."""
    asked: PairSet = as_items(pairs).asked_as(asking, tokenizer)
    said = [_statements(asked, edit) for edit in edits]

    def score(alike: list[int]) -> list[PairScores]:
        tokens = scored_tokens(model, tokenizer, said[alike[0]])
        scores = score_answers(model, tokenizer, tokens, [edits[i] for i in alike], batch_size=batch_size)
        return [_pair_scores(asked, iter(logprobs)) for logprobs in scores.logprobs]

    return alike_together([tuple(s.prompt for s in statements) for statements in said], score)


def _statements(pairs: PairSet, edit: Edit) -> list[Statement]:
    return [
        pairs.form_for(pair).statement(pair.prompt, text, label, pair.key, edit.before(pair.prompt) or NOTHING)
        for pair in pairs
        for label, texts in ((True, pair.positive), (False, pair.negative))
        for text in texts
    ]


def _pair_scores(pairs: PairSet, values: Iterator[float]) -> PairScores:
    sides = [[[next(values) for _ in side] for side in (pair.positive, pair.negative)] for pair in pairs]
    rows = tuple(PairRow.of(pair.prompt, *both) for pair, both in zip(pairs, sides, strict=True))
    return PairScores(share([r.probability for r in rows]), share([r.chosen["preferred"] for r in rows]), rows)


@dataclass(frozen=True)
class PairContrast(Meter):
    """Measures contrast pairs: a row for every pair with its probability, and whether the positive side is likelier."""

    batch_size: int | None = None
    name: ClassVar[str] = "pairs"
    columns: ClassVar[Sequence[str]] = ("probability", "preferred")

    def without_model(self, train: Any, items: Any) -> dict[str, dict[str, float]]:
        """Return how much likelier the positive sides are by how they are worded and how long they are."""
        style = AnswerStyle(train.statements())
        rows = {p.key: PairRow.of(p.prompt, style.logprobs(p.positive), style.logprobs(p.negative)) for p in items}
        return {key: {"probability": row.probability, **row.chosen} for key, row in rows.items()}

    def measure(
        self,
        model: Any,
        tokenizer: Any,
        items: Any,
        edits: Sequence[Edit],
        *,
        asking: str = "plain",
        seed: int = 0,
    ) -> list[Measured]:
        """Return every pair's row under every edit."""
        found = contrast_many(model, tokenizer, items, edits, asking=asking, batch_size=self.batch_size)
        return [
            Measured({p.key: {**row._asdict(), **row.chosen} for p, row in zip(items, of.rows, strict=True)})
            for of in found
        ]


def pair_margin(batch_size: int | None = None) -> Figure:
    """Return how much likelier the positive sides are than the negative ones, in nats: what settings are chosen by.

    It tells strengths apart where the probability is near 0 or 1, as that of sides of unequal length always is.
    """
    return Figure(PairContrast(batch_size), "pair_margin", "margin", ("margin",), unit="nats", tested=False)


def contrast_meters(batch_size: int | None = None) -> tuple[Figure, ...]:
    """Return the probability of the positive sides, and how often they are the likelier ones."""
    source = PairContrast(batch_size)
    return (
        Figure(source, "pair_probability", "P(positive)", ("probability",)),
        Figure(source, "preferred", "preferred", ("preferred",), tested=False),
    )


@dataclass(frozen=True)
class TextRow:
    """One prompt, what was generated, and its score."""

    prompt: str
    text: str
    score: float


@dataclass(frozen=True)
class TextScores:
    """Mean score of generated texts with its 95 % bootstrap interval over prompts, and the texts."""

    score: Estimate
    rows: tuple[TextRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"score": self.score.as_dict(), "rows": [asdict(row) for row in self.rows]}


@dataclass(frozen=True)
class ScoredTexts(Meter):
    """Mean score of what the edited model says after the pairs' prompts, by a function of pair and text."""

    scorer: Scorer
    max_new_tokens: int = 50
    batch_size: int | None = None
    name: ClassVar[str] = "score"
    shown: ClassVar[Sequence[str]] = ("text",)

    def try_out(self, items: Any) -> None:
        """Score one text; raises `BadValue` if the scorer gives no number from 0 to 1."""
        checked_score(self.scorer, items[0], items[0].positive[0])

    def measure(
        self,
        model: Any,
        tokenizer: Any,
        items: Any,
        edits: Sequence[Edit],
        *,
        asking: str = "plain",
        seed: int = 0,
    ) -> list[Measured]:
        """Return every pair's text and score under every edit."""
        options = {"scorer": self.scorer, "max_new_tokens": self.max_new_tokens, "batch_size": self.batch_size}
        asked = items.asked_as(asking, tokenizer)
        said = [score_texts(model, tokenizer, asked, edit, **options).rows for edit in edits]
        record = {"judge": as_judge(self.scorer).describe()}
        return [Measured({p.key: asdict(r) for p, r in zip(items, rows, strict=True)}, record=record) for rows in said]

    def describe(self) -> dict[str, Any]:
        """Return the scorer with what it says of itself."""
        record = as_judge(self.scorer).describe()
        return {"meter": type(self).__name__, "judge": record["name"], "judge_record": record}


def score_texts(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[ContrastPair],
    edit: Edit | None = None,
    *,
    scorer: Scorer,
    max_new_tokens: int = 50,
    batch_size: int | None = None,
) -> TextScores:
    """Return how much of the behaviour the edited model's greedy answers to the pairs' prompts show.

    They are asked as the set is (`PairSet.asked_as`); by default in the chat template where there is one.

    Raises:
        BadDataset: there are no pairs.
        BadValue: a pair without a prompt; the scorer returns something else than a number from 0 to 1.
    """
    edit = NoEdit() if edit is None else edit
    require_prompts(pairs)
    form = asking_for("auto", tokenizer, pairs)
    form = form if form.template else BARE
    asked = [form.asked(pair.prompt, edit.before(pair.prompt) or NOTHING) for pair in pairs]
    options = {"template": form.template, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    (texts,) = completions(model, tokenizer, [a.prompt for a in asked], [edit], **options)
    scores = [checked_score(scorer, pair, text) for pair, text in zip(pairs, texts, strict=True)]
    rows = [TextRow(pair.prompt, text, score) for pair, text, score in zip(pairs, texts, scores, strict=True)]
    return TextScores(share(scores), tuple(rows))


def require_prompts(pairs: Sequence[ContrastPair]) -> None:
    """Raise `BadDataset` if there are no pairs, `BadValue` if one has no prompt to continue."""
    if not pairs:
        raise BadDataset("no contrast pairs to continue")
    if not all(pair.prompt.strip() for pair in pairs):
        raise BadValue("some contrast pairs have no prompt to continue; give every pair one, or score by probability")


def checked_score(scorer: Scorer, pair: ContrastPair, text: str) -> float:
    """Return what a scorer says of a text; raises `BadValue` naming it if that is no number from 0 to 1."""
    name, said = as_judge(scorer).name, list[Any](as_judge(scorer).verdicts(pair, [text]))
    (given,) = said
    try:
        score = float(given)
    except (TypeError, ValueError) as cause:
        raise BadValue(f"scorer {name} returned {given!r:.80}; expected a number from 0 to 1") from cause
    if not 0 <= score <= 1:
        raise BadValue(f"scorer {name} returned {given!r:.80}; expected a number from 0 to 1")
    return score
