"""Instruction: a sentence before the question that says how, or as whom, to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.edits.prompts import Prompted
from trimtab.errors import BadValue
from trimtab.protocols import Cost, Knobs, Method

TRUTHFUL = (
    "Some of these questions invite a common mistake. Avoid it and give the correct answer.",
    "Answer each question with what is true, even where many people believe something else.",
    "Answer in one short sentence, and say only what you are sure is correct.",
    "Give the answer that a careful reference book would give.",
    "State the facts; do not repeat myths, sayings or rumours.",
)
"""Instructions to answer truthfully."""
PERSONAS = (
    "You are a careful fact-checker at a newspaper.",
    "You are a scientist who checks every claim before answering.",
    "You are the editor of an encyclopedia, exact and plain.",
    "You are a teacher who corrects popular misbeliefs.",
)
"""Those who would answer truthfully."""


@dataclass(frozen=True)
class Instruction(Method):
    """A sentence before the question; the knob is its wording, chosen on the training questions as any setting is."""

    wordings: tuple[str, ...] = TRUTHFUL
    """What to choose among: give your own for another behaviour than truthfulness."""
    name: str = "Instruction"
    changes_prompt_only = True

    def __post_init__(self) -> None:
        if isinstance(self.wordings, str) or not all(isinstance(w, str) and w.strip() for w in self.wordings):
            raise BadValue(
                f"{self.name}: wordings are a list of sentences, none of them empty; got {self.wordings!r:.80}"
            )
        object.__setattr__(self, "wordings", tuple(self.wordings))

    @property
    def space(self) -> Mapping[str, Sequence[Any]]:
        """The wordings."""
        return {"wording": self.wordings}

    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Knobs | None = None, seed: int = 0) -> Prompted:
        """Return the prompt with one of the wordings; raises `BadValue` for knobs that the method does not have."""
        wording = self.setting(knobs)["wording"]
        return Prompted((), wording, name=self.name, cost=Cost(bytes_on_disk=len(wording.encode())))


@dataclass(frozen=True)
class Persona(Instruction):
    """A sentence that says who answers, before the question."""

    wordings: tuple[str, ...] = PERSONAS
    """As of `Instruction`."""
    name: str = "Persona"
