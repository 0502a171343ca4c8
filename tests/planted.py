"""Worlds whose truth is known: activations with a planted direction, and a model with a planted preference."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.activations import Head, HeadActivations
from trimtab.datasets import Question, QuestionSet
from trimtab.edits.vectors import HeadShift
from trimtab.evaluate import Verdict
from trimtab.models.identity import fingerprint

# numbers that differ from their indices, so that a mix-up of the two shows
LAYERS = (2, 5, 7)
PLANTED = Head(5, 3)


def planted_direction(d_head: int = 8) -> Tensor:
    """Return the unit vector along which the planted head tells true from false."""
    return normalize(torch.randn(d_head, generator=torch.Generator().manual_seed(99)), dim=0)


def activations(
    n_questions: int = 120,
    *,
    separation: float = 4.0,
    per_question: int = 4,
    n_heads: int = 4,
    d_head: int = 8,
    layers: tuple[int, ...] = LAYERS,
    seed: int = 0,
    prefix: str = "question",
) -> HeadActivations:
    """Return unit Gaussian noise in which the planted head's class means lie `separation` apart (0: noise only)."""
    generator = torch.Generator().manual_seed(seed)
    n = n_questions * per_question
    values = torch.randn(n, len(layers), n_heads, d_head, generator=generator)
    labels = torch.arange(n) % 2 == 0
    side = labels.float() - 0.5
    values[:, layers.index(PLANTED.layer), PLANTED.head] += separation * side[:, None] * planted_direction(d_head)
    groups = tuple(f"{prefix} {i // per_question}" for i in range(n))
    return HeadActivations(values, labels, groups, layers)


class World(NamedTuple):
    """A tiny model that a shift on its last layer makes say "Z", questions to which "Z" is true, and the shift."""

    model: Any
    tokenizer: Any
    questions: QuestionSet
    shift: HeadShift
    texts: list[str]


def letter_judge(question: Question, answer: str) -> Verdict:
    """Find an answer the truer the more "Z" it holds, and the less informative: mixed answers are best."""
    share = answer.count("Z") / max(1, len(answer))
    return Verdict(min(1.0, 2 * share), 1 - share)


def letter_world() -> World:
    """Return a world in which the best strength lies between too weak and too strong."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    letter = tokenizer("Z")["input_ids"][-1]
    with torch.no_grad():
        model.lm_head.weight[letter] *= 2
        into_heads = (model.lm_head.weight[letter] @ model.model.layers[2].self_attn.o_proj.weight).view(4, 12)
    heads = (1, 3, 0, 2)
    shift = HeadShift(
        tuple(Head(2, head) for head in heads),
        normalize(into_heads[list(heads)], dim=1).detach(),
        torch.ones(len(heads)),
        record={"model": fingerprint(model)},
    )
    questions = QuestionSet(
        tuple(
            Question(f"Which letter is number {i}?", ("Z" * (1 + i % 3),), ("JKLMNOPR"[i % 8] * (1 + i % 2),))
            for i in range(8)
        )
    )
    texts = ["The sky is blue and the sea is deep.", "A leaf falls.", "Snow lies on the roof of a house."]
    return World(model, tokenizer, questions, shift, texts)
