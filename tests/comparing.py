"""What the tests of comparisons share: spies, a method whose knobs are known to matter, and a finished tiny run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.measuring import random_shift
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.compare import run
from trimtab.datasets import Question
from trimtab.edits.vectors import HeadShift
from trimtab.evaluate import Verdict, answer_meters
from trimtab.prompting import FewShot
from trimtab.protocols import Method
from trimtab.steer import ITI, RandomDirection

TEXTS = tuple(f"The sky was grey and the road was {i} miles long." for i in range(10))


def length_judge(question: Question, answer: str) -> Verdict:
    """Judge by the answer's length, so that different answers get different verdicts."""
    return Verdict(float(len(answer) % 2), float(len(answer) % 3 > 0))


def meters(judge=length_judge, max_new_tokens=4):
    return answer_meters(judge=judge, texts=TEXTS, max_new_tokens=max_new_tokens, divide_texts=True)


METERS = meters()


@dataclass
class SpyJudge:
    """Notes every question it is shown in a shared log."""

    log: list[tuple[str, Any]] = field(default_factory=list)

    def __call__(self, question: Question, answer: str) -> Verdict:
        self.log.append(("judged", question.question))
        return length_judge(question, answer)


@dataclass(frozen=True)
class SpyMethod(Method):
    """Returns a random shift of the knob's strength and notes what it was fitted on."""

    log: list[tuple[str, Any]] = field(default_factory=list, compare=False, repr=False)
    strengths: Sequence[float] = (1.0, 2.0, 4.0)
    name: str = "Spy"

    @property
    def space(self) -> Mapping[str, Sequence[Any]]:
        return {"strength": self.strengths}

    def fit(self, model, tokenizer, train, *, knobs=None, seed=0) -> HeadShift:
        self.log.append(("fitted", tuple(q.question for q in train)))
        return random_shift(model, seed=seed, name=self.name).scaled(knobs["strength"])


@dataclass(frozen=True)
class FailsInFoldOf(Method):
    """Fails whenever the marked question is among the training questions."""

    marked: str
    name: str = "Fragile"

    def fit(self, model, tokenizer, train, *, knobs=None, seed=0) -> HeadShift:
        if self.marked in {q.question for q in train}:
            raise RuntimeError("out of luck")
        return random_shift(model, seed=seed, name=self.name)


def tiny_run(out, methods=None, *, n=12, seeds=(0, 1), trials=2, meters=METERS, **options):
    """Return a comparison on the tiny model."""
    methods = methods or [
        FewShot(shots=(1, 2), draws=1),
        ITI(top_ks=(2, 4), alphas=(1, 400)),
        RandomDirection(draws=3),
    ]
    arguments = {"seeds": seeds, "trials": trials, "meters": meters, "out": out, **options}
    return run(tiny_model(), tiny_tokenizer(), tiny_questions(n), methods, **arguments)
