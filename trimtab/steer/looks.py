"""Look: what longer answers under an edit are like, beside the unedited model's own: do they loop, are they debris?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from trimtab.datasets.item_set import ItemSet
from trimtab.engine.conversation import answers_many
from trimtab.protocols import Edit
from trimtab.steer.outcome import is_repetitive, is_unlikely, repetition
from trimtab.steer.reading import surprisals

LONG = 40
"""New tokens of each answer: whole sentences come again later than a meter reads."""


class Look(NamedTuple):
    """What answers to all prompts are like."""

    repeats: float = 0.0
    """The share of word triples that an answer has had before, a mean over answers."""
    surprisal: float = 0.0
    """To the unedited model, in nats per token; infinite where all answers are empty."""

    @property
    def nats(self) -> float | None:
        """The surprisal as JSON has it: None where all answers are empty."""
        return self.surprisal if math.isfinite(self.surprisal) else None

    def fault(self, own: Look) -> str:
        """Return what is wrong with them beside the unedited model's own, in a word or two; nothing if nothing is."""
        if is_repetitive(self.repeats, own.repeats):
            return "repeats itself"
        return "unlikely" if is_unlikely(self.surprisal, own.surprisal) else ""


def looks_of(model: Any, tokenizer: Any, items: ItemSet[Any], edits: Sequence[Edit]) -> list[Look]:
    """Return what the answers to the items' prompts, asked as the items are, are like under every edit.

    Raises:
        BadDataset: an item without a prompt.
    """
    asked, how = [item.asked for item in items], {"asking": items.asking, "settings": {"max_new_tokens": LONG}}
    said = answers_many(model, tokenizer, asked, edits, **how)
    repeats = [sum(map(repetition, answers)) / len(answers) for answers in said]
    return [*map(Look, repeats, surprisals(model, tokenizer, items, said))]
