"""LabelledTexts: texts of two kinds that are no pairs, such as lines that show a style and lines that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.lines import read_lines
from trimtab.datasets.questions import Format, Statement
from trimtab.errors import BadDataset
from trimtab.plain_values import one_form


@dataclass(frozen=True)
class LabelledText:
    """One text and its kind."""

    text: str
    label: bool
    """True for a positive text."""

    @property
    def key(self) -> str:
        """The text, accents written in one way."""
        return one_form(self.text)

    @property
    def asked(self) -> str:
        """Nothing: the text continues no prompt."""
        return ""


@dataclass(frozen=True)
class LabelledTexts(ItemSet[LabelledText]):
    """A sequence of labelled texts; slices are such sets too.

    Raises:
        BadDataset: there are no texts, or one stands twice.
    """

    labelled: tuple[LabelledText, ...]
    name: str = "texts"
    measured_by: ClassVar[str] = "texts"
    item_word: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        self.require_distinct("texts", "keep it once, on one side")

    def split(self, *, test: float = 0.5, seed: int = 0) -> tuple[LabelledTexts, LabelledTexts]:
        """Return (train, test) with the same share of each kind held out; raises as for other sets."""
        train, held = (ItemSet.split(side, test=test, seed=seed) for side in self._sides)
        return self.with_items(train[0].items + held[0].items), self.with_items(train[1].items + held[1].items)

    def folds(self, n: int, seed: int = 0) -> list[tuple[Any, Any]]:
        """Return n pairs (train, test) with the same share of each kind in each; raises as for other sets."""
        both = zip(*(ItemSet.folds(side, n, seed) for side in self._sides), strict=True)
        return [(self.with_items(a.items + b.items), self.with_items(c.items + d.items)) for (a, c), (b, d) in both]

    @property
    def _sides(self) -> list[LabelledTexts]:
        return [self.where(lambda item, kind=kind: item.label == kind) for kind in (True, False)]

    def texts(self, item: LabelledText) -> Sequence[Any]:
        """Return a text and its label."""
        return [item.text, item.label]

    def statements(self, format: str | Format | None = None) -> list[Statement]:
        """Return every text as a statement; raises `BadDataset` for a format, since there is no prompt to join."""
        if format is not None:
            raise BadDataset(f"{self.name} has no prompts that a format could join its texts to; give contrast pairs")
        return [Statement("", item.text, item.label, item.key, separator="") for item in self.items]


def labelled_texts(positive: str | Path, negative: str | Path) -> LabelledTexts:
    """Return the lines of two UTF-8 files as texts of two kinds; the files need not be equally long.

    Raises:
        BadDataset: a file cannot be read or holds no text; a line stands twice, or in both.
    """
    sides = ((positive, True), (negative, False))
    items = tuple(LabelledText(line, label) for path, label in sides for line in read_lines(path))
    return LabelledTexts(items, f"{Path(positive).stem} against {Path(negative).stem}")
