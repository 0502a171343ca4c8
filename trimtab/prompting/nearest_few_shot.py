"""RetrievedFewShot: the training questions nearest to the question, with their best answers, before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trimtab.edits.retrieval import Retrieved
from trimtab.prompting.few_shot import as_shots, possible_shots
from trimtab.protocols import Cost, Knobs, Method


@dataclass(frozen=True)
class RetrievedFewShot(Method):
    """The training questions nearest to the question (TF-IDF), with their best answers, before it."""

    shots: tuple[int, ...] = (1, 2, 3, 5, 8)
    name: str = "Retrieved few-shot"
    changes_prompt_only = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "shots", as_shots(self.shots, self.name))

    @property
    def space(self) -> Mapping[str, Sequence[Any]]:
        """Numbers of shots."""
        return {"shots": self.shots}

    def limited_to(self, n: int) -> Method:
        """Return the method without more shots than there are questions, but for one that has no other."""
        return replace(self, shots=possible_shots(self.shots, n))

    def fit(
        self,
        model: Any,
        tokenizer: Any,
        train: Any,
        *,
        knobs: Knobs | None = None,
        seed: int = 0,
    ) -> Retrieved:
        """Return the prompting edit over all training questions.

        Raises:
            BadValue: more shots asked for than there are training questions.
        """
        keys = tuple(q.asked for q in train)
        blocks = tuple(f"Q: {q.asked}\nA: {q.best_answer}" for q in train)
        cost = Cost(bytes_on_disk=sum(len(block.encode()) for block in blocks))
        return Retrieved(keys, blocks, self.setting(knobs)["shots"], name=self.name, cost=cost)
