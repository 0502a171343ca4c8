"""RetrievedFewShot: the training questions nearest to the question, with their best answers, before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.edits.retrieval import Retrieved
from trimtab.prompting.few_shot import Shots
from trimtab.protocols import Cost, Knobs


@dataclass(frozen=True)
class RetrievedFewShot(Shots):
    """The training questions nearest to the question (TF-IDF), with their best answers, before it."""

    name: str = "Retrieved few-shot"

    @property
    def space(self) -> Mapping[str, Sequence[Any]]:
        """Numbers of shots."""
        return {"shots": self.shots}

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
