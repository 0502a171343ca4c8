"""Contrast pairs of any behaviour: a prompt with texts that show the behaviour and texts that do not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trimtab.datasets.asking import BARE, Form, form_of
from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.questions import dealt_anew, two_sides
from trimtab.datasets.statements import Format, SftExample, Statement, true_examples
from trimtab.errors import BadDataset
from trimtab.intervals import seeded
from trimtab.plain_values import hash_of, one_form


@dataclass(frozen=True)
class ContrastPair:
    """A prompt, which may be empty, with the texts that continue it: positive and negative ones.

    Raises:
        BadDataset: no positive or no negative text, an empty one, or one that stands twice or on both sides.
    """

    prompt: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise BadDataset(f"a pair's prompt must be a text, got {self.prompt!r:.60}")
        what = f"pair {self.prompt[:60]!r}" if self.prompt else "the pair"
        positive, negative = two_sides(what, ("positive text", self.positive), ("negative text", self.negative))
        object.__setattr__(self, "positive", positive)
        object.__setattr__(self, "negative", negative)

    @property
    def key(self) -> str:
        """What tells it from other pairs, also after a split: its prompt (see `Question.key`), or a hash."""
        if self.prompt:
            return one_form(self.prompt)
        texts = json.dumps([self.positive, self.negative], ensure_ascii=False)
        return f"pair {hash_of(texts)[:12]}"

    @property
    def asked(self) -> str:
        """The prompt."""
        return self.prompt

    @property
    def best_answer(self) -> str:
        """The first positive text, as examples show it."""
        return self.positive[0]


@dataclass(frozen=True, repr=False)
class PairSet(ItemSet[ContrastPair]):
    """A sequence of contrast pairs; slices are sets of pairs too.

    Raises:
        BadDataset: there are no pairs, or one stands twice.
    """

    pairs: tuple[ContrastPair, ...]
    name: str = "pairs"
    form: Form | None = field(default=None, compare=False, repr=False)
    """How its prompts are asked (`asked_as`); as the beginning of the texts if not given."""
    measured_by: ClassVar[str] = "pairs"
    item_word: ClassVar[str] = "pair"

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", tuple(self.pairs))
        self.require_distinct("contrast pairs", "keep it once")

    def form_for(self, item: ContrastPair) -> Form:
        """Return the chat template if the set is asked so and the pair has a prompt, else the texts as they go on."""
        return self.form if self.form is not None and self.form.template and item.prompt.strip() else BARE

    def texts(self, item: ContrastPair) -> Sequence[Any]:
        """Return a pair's prompt and texts, as a set of questions with these answers has them."""
        return [item.prompt, item.positive, item.negative, item.positive[0]]

    def shuffled(self, seed: int) -> PairSet:
        """Return the pairs, each with its texts dealt to its sides at random."""
        rng = seeded(seed)
        return self.with_items(
            tuple(ContrastPair(p.prompt, *dealt_anew(p.positive, p.negative, rng)) for p in self.pairs)
        )

    def statements(self, format: str | Format | Form | None = None) -> list[Statement]:
        """Return every text as a statement that continues its pair's prompt, labelled true if it is a positive one.

        `format` is a callable `(prompt, text) -> text`, or names one of questions; without it the text answers the
        prompt in the chat template if the set is asked so (see `asked_as`), else the two are joined by a space.

        Raises:
            BadValue: an unknown name, or a callable that gives no text or loses the pair's.
        """
        own = None if format is None else form_of(format)
        return [
            (own or self.form_for(pair)).statement(pair.prompt, text, label, pair.key)
            for pair in self.pairs
            for label, texts in ((True, pair.positive), (False, pair.negative))
            for text in texts
        ]

    def sft_examples(self, format: str | Format | Form | None = None) -> list[SftExample]:
        """Return every positive text as a (prompt, completion) pair to tune on; raises as `statements` does."""
        return true_examples(self.statements(format))
