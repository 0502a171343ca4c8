"""FactsInContext: new facts stated before the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trimtab.datasets.facts import Fact
from trimtab.edits.prompts import Stated
from trimtab.errors import BadDataset
from trimtab.protocols import Cost, Knobs, Method


@dataclass(frozen=True)
class FactsInContext(Method):
    """All new facts as sentences before the prompt (Zheng et al. 2023, without examples); the model stays."""

    opening: str = "New fact:"
    """What stands before each fact."""
    name: str = "In context"
    changes_prompt_only = True

    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Knobs | None = None, seed: int = 0) -> Stated:
        """Return the facts as text; raises `BadDataset` if what is given are no facts."""
        self.setting(knobs)
        if not all(isinstance(fact, Fact) for fact in train):
            raise BadDataset(f"{self.name} states facts, got {type(train).__name__}; give a FactSet")
        texts = tuple(f"{self.opening} {fact.stated()}".strip() for fact in train)
        return Stated(texts, name=self.name, cost=Cost(bytes_on_disk=len("".join(texts).encode())))
