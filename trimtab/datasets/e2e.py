"""E2E NLG (Novikova et al. 2017) in the format of the LoRA repository: `name : Blue Spice | ...||A coffee shop ...`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.statements import SftExample
from trimtab.errors import BadDataset
from trimtab.plain_values import one_form

SEPARATOR = "||"


@dataclass(frozen=True)
class Meaning:
    """A meaning representation with the texts that people wrote for it."""

    meaning: str
    texts: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """What the model is given: the meaning and the file's own separator.

        The LoRA repository separates meaning and text by GPT-2's end token; a text that any tokenizer reads alike
        stands here in its place.
        """
        return f"{self.meaning} {SEPARATOR}"

    @property
    def key(self) -> str:
        """The meaning, accents written in one way."""
        return one_form(self.meaning)

    @property
    def asked(self) -> str:
        """The prompt."""
        return self.prompt


@dataclass(frozen=True)
class MeaningSet(ItemSet[Meaning]):
    """A sequence of meanings; slices are sets of meanings too."""

    meanings: tuple[Meaning, ...]
    name: str = "e2e"
    measured_by: ClassVar[str] = "references"
    item_word: ClassVar[str] = "meaning"

    def texts(self, item: Meaning) -> Sequence[Any]:
        """Return a meaning with its texts."""
        return [item.meaning, item.texts]


def e2e(path: str | Path) -> MeaningSet:
    """Return the file's meanings in order of first appearance, each with all its texts.

    Raises:
        BadDataset: the file cannot be read, is empty, or a line lacks the separator, its meaning or its text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as cause:
        raise BadDataset(f"{path} cannot be read as UTF-8 text; expected lines `meaning{SEPARATOR}text`") from cause
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        meaning, separator, text = (part.strip() for part in line.partition(SEPARATOR))
        if not (meaning and separator and text):
            raise BadDataset(f"{path}, line {number}: expected `meaning{SEPARATOR}text`, got {line[:60]!r}")
        found.setdefault(meaning, []).append(text)
    if not found:
        raise BadDataset(f"{path} is empty; expected lines `meaning{SEPARATOR}text`")
    return MeaningSet(tuple(Meaning(meaning, tuple(texts)) for meaning, texts in found.items()), Path(path).stem)


def e2e_examples(meanings: Sequence[Meaning]) -> list[SftExample]:
    """Return every text as a (prompt, completion) pair to tune on."""
    return [SftExample(m.prompt, f" {text}") for m in meanings for text in m.texts]
