"""Prompts without answers: what a property of generated answers is counted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trimtab.datasets.asking import PLAIN, Form
from trimtab.datasets.item_set import ItemSet
from trimtab.plain_values import one_form


@dataclass(frozen=True)
class PromptItem:
    """A prompt."""

    asked: str

    @property
    def key(self) -> str:
        """The prompt in one form (see `Question.key`)."""
        return one_form(self.asked)


@dataclass(frozen=True, repr=False)
class PromptSet(ItemSet[PromptItem]):
    """A sequence of prompts; slices are sets of prompts too.

    Raises:
        BadDataset: there are no prompts, or one stands twice.
    """

    prompts: tuple[PromptItem, ...]
    name: str = "prompts"
    form: Form | None = field(default=None, compare=False, repr=False)
    """How they are asked (`asked_as`); plainly if not given."""
    measured_by: ClassVar[str] = "prompts"
    item_word: ClassVar[str] = "prompt"

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        self.require_distinct("prompts", "keep it once")

    @classmethod
    def of(cls, texts: Sequence[str], name: str = "prompts") -> PromptSet:
        """Return a set of these texts."""
        return cls(tuple(map(PromptItem, texts)), name)

    def form_for(self, item: PromptItem) -> Form:  # noqa: ARG002
        """Return how a prompt is asked."""
        return self.form or PLAIN

    def texts(self, item: PromptItem) -> Sequence[Any]:
        """Return a prompt's text."""
        return [item.asked]
