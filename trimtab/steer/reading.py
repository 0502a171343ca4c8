"""Reader: how far generated answers read like the positive texts, to the unedited model itself; no judge is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.activations.captured import HeadActivations
from trimtab.datasets.asking import asking_for
from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.pairs import PairSet
from trimtab.datasets.statements import Statement
from trimtab.edits.combined import NoEdit
from trimtab.engine.capture import Site, capture_heads
from trimtab.engine.conversation import answers_many
from trimtab.engine.score import score_answers
from trimtab.evaluate.figure import Figure
from trimtab.models.tokens import scored_tokens
from trimtab.protocols import Edit, Measured, Meter
from trimtab.steer.outcome import repetition
from trimtab.steer.removal import residual_after
from trimtab.steer.screen import item_differences


@dataclass(frozen=True)
class Reader:
    """A direction of one layer's residual stream, averaged over an answer, on which held-out negative texts are at 0
    and positive ones at 1."""

    layer: int
    direction: Float[Tensor, " d_model"]
    ends: tuple[float, float]
    """Where the means of held-out negative and positive texts lie."""
    separation: float
    """d' of the held-out texts."""

    @classmethod
    def of(cls, acts: HeadActivations, held: HeadActivations) -> Reader:
        """Return the reader of the layer that tells held-out texts apart best.

        Its direction is the mean difference of standardised activations; of activations as they are, the mean
        difference over each coordinate's variance. Huge coordinates that vary with everything, as some models have
        them, would otherwise decide: in Gemma 3 readings moved less with what was counted in the answers
        (docs/results/behaviours.md).

        Args:
            acts: of the residual stream, averaged over each text, of the items that the direction comes from.
            held: of other items.
        """
        spread = acts.values[:, :, 0].double().var(0, correction=0)
        return cls.along(item_differences(acts).mean(0)[:, 0] / spread.clamp_min(1e-12), held)

    @classmethod
    def along(cls, directions: Float[Tensor, "layer d_model"], held: HeadActivations) -> Reader:
        """Return the reader along one layer's direction: of the layer that tells held-out texts apart best."""
        along = torch.einsum("nld,ld->nl", held.values[:, :, 0].double(), directions)
        true, false = along[held.labels], along[~held.labels]
        noise = ((true.var(0, correction=0) + false.var(0, correction=0)) / 2).sqrt().clamp_min(1e-12)
        separation = (true.mean(0) - false.mean(0)) / noise
        best = int(separation.argmax())
        ends = float(false[:, best].mean()), float(true[:, best].mean())
        return cls(held.layers[best], directions[best], ends, float(separation[best]))

    def read(self, model: Any, tokenizer: Any, said: Sequence[Statement]) -> list[float]:
        """Return for each answer where it lies: about 0 as the negative texts, about 1 as the positive ones."""
        found = [0.0] * len(said)  # an empty answer shows nothing
        texts = [i for i, statement in enumerate(said) if statement.answer.strip()]
        statements = [said[i] for i in texts]
        if statements:
            acts = read_texts(model, tokenizer, statements, residual_after(self.layer))
            x = acts.values[:, 0, 0].double() @ self.direction
            for i, value in zip(texts, x.tolist(), strict=True):
                found[i] = (value - self.ends[0]) / (self.ends[1] - self.ends[0])
        return found


@dataclass(frozen=True)
class ReadAnswers(Meter):
    """What the edited model answers to the items' prompts, and how far that reads like the positive texts.

    Prompts are asked as `trimtab generate` asks them, and answered greedily.
    """

    reader: Reader | PairSet
    """What reads, or pairs to learn it from; the pairs that are measured must be others then, and say where it ends."""
    max_new_tokens: int = 20
    name: ClassVar[str] = "reading"
    unit: ClassVar[str] = "of the way"
    shown: ClassVar[Sequence[str]] = ("text",)

    def measure(
        self,
        model: Any,
        tokenizer: Any,
        items: Any,
        edits: Sequence[Edit],
        *,
        asking: str = "plain",
        seed: int = 0,  # noqa: ARG002
    ) -> list[Measured]:
        """Return every item's answer under every edit, with its reading."""
        items, n, reader = items.asked_as(asking, tokenizer), len(items), self.reader
        if isinstance(reader, PairSet):
            parts = reader.asked_as(asking, tokenizer), items
            reader = Reader.of(*(read_texts(model, tokenizer, part.statements()) for part in parts))
        how = {"asking": asking, "settings": {"max_new_tokens": self.max_new_tokens}}
        said = answers_many(model, tokenizer, [item.asked for item in items], edits, **how)
        answered = [(item, text) for of_edit in said for item, text in zip(items, of_edit, strict=True)]
        told = [items.form_for(item).statement(item.asked, text, True, item.key) for item, text in answered]
        read = reader.read(model, tokenizer, told)
        rows = [
            {"prompt": item.asked, "text": text, "reading": value, "repetition": repetition(text)}
            for (item, text), value in zip(answered, read, strict=True)
        ]
        keys = [item.key for item in items]
        return [Measured(dict(zip(keys, rows[i * n :][:n], strict=True))) for i in range(len(edits))]


def reading_meters(learnt_from: PairSet, max_new_tokens: int = 48) -> tuple[Figure, ...]:
    """Return how far answers read like the positive texts, and the share of word triples that they repeat.

    Args:
        learnt_from: pairs of the behaviour, none of them among those whose prompts are answered.
    """
    source = ReadAnswers(learnt_from, max_new_tokens)
    return (
        Figure(source, "reading", "reading", ("reading",), unit=ReadAnswers.unit),
        Figure(source, "repetition", "repeated", ("repetition",), better="down", tested=False, collateral=True),
    )


def surprisals(model: Any, tokenizer: Any, items: ItemSet[Any], said: Sequence[Sequence[str]]) -> list[float]:
    """Return how unlikely sets of answers, one to each item's prompt, are to the unedited model: nats per token.

    Each stands behind its prompt as that was asked, which for pairs in plain form is not how their own texts do. Where
    all of a set are empty it is infinity.
    """
    form = asking_for(items.asking, tokenizer)
    answered = [(item, text) for texts in said for item, text in zip(items, texts, strict=True)]
    told = [form.statement(item.asked, text, True, item.key) for item, text in answered if text.strip()]
    tokens = scored_tokens(model, tokenizer, told)
    scores = iter(zip(score_answers(model, tokenizer, tokens, [NoEdit()]).logprobs[0], tokens, strict=True))
    found = []
    for texts in said:
        some = [next(scores) for text in texts if text.strip()]
        n_tokens = sum(of.end - of.start for _, of in some)
        found.append(-sum(score for score, _ in some) / n_tokens if n_tokens else float("inf"))
    return found


def read_texts(
    model: Any, tokenizer: Any, statements: Sequence[Statement], site: Literal["residual"] | Site = "residual"
) -> HeadActivations:
    """Return the residual stream of every layer, or of some, averaged over each statement's answer."""
    return capture_heads(model, tokenizer, statements, position="mean_answer", site=site)
