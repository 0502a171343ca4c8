"""FewShot: training questions with their best answers before the question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trimtab.edits.prompts import Prompted
from trimtab.errors import BadValue
from trimtab.protocols import Cost, Knobs, Method


@dataclass(frozen=True)
class Shots(Method):
    """A number of training questions with their best answers before the question."""

    shots: tuple[int, ...] = (1, 2, 3, 5, 8)
    changes_prompt_only = True

    def __post_init__(self) -> None:
        if any(k < 1 for k in self.shots):
            given = ", ".join(map(str, self.shots))
            raise BadValue(f"{self.name}: shots are numbers of examples, 1 or more; got {given}")
        object.__setattr__(self, "shots", tuple(self.shots))

    def limited_to(self, n: int) -> Method:
        """Return the method without more shots than there are questions, but for one that has no other."""
        return replace(self, shots=tuple(k for k in self.shots if k <= n) or self.shots)


@dataclass(frozen=True)
class FewShot(Shots):
    """Training questions with their best answers before the question; the knob is how many."""

    draws: int = 2
    """Different draws of the examples to choose among, for each number of shots."""
    name: str = "Few-shot"

    @property
    def space(self) -> Mapping[str, Sequence[Any]]:
        """Numbers of shots and draws of the examples."""
        return {"shots": self.shots, "draw": range(self.draws)}

    def fit(
        self,
        model: Any,
        tokenizer: Any,
        train: Any,
        *,
        knobs: Knobs | None = None,
        seed: int = 0,
    ) -> Prompted:
        """Return the prompt with `shots` training questions, drawn by seed and draw.

        Raises:
            BadValue: more shots asked for than there are training questions.
        """
        setting = self.setting(knobs)
        k = setting["shots"]
        if k > len(train):
            raise BadValue(f"{k} shots asked for; there are {len(train)} training questions")
        order = np.random.default_rng([seed, setting["draw"]]).permutation(len(train))[:k]
        examples = tuple((q.asked, q.best_answer) for q in train.select(order))
        size = sum(len(f"{question}{answer}".encode()) for question, answer in examples)
        return Prompted(examples, name=self.name, cost=Cost(bytes_on_disk=size))
