"""Prompts that depend on the question: its nearest training questions, or passages of the user's text files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from trimtab.before import Before
from trimtab.datasets.statements import plain
from trimtab.edits.prompts import Context, SavedContext
from trimtab.errors import BadDataset, BadValue

PASSAGE_WORDS = 120


class TfidfIndex:
    """Finds the texts nearest to a query by the cosine of their TF-IDF vectors (scikit-learn's, words and pairs)."""

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.texts = tuple(texts)
        # a question's little words are most of it, so they are kept and their weight left to the document frequency
        self.vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
        try:
            self.matrix: Any = self.vectorizer.fit_transform(self.texts)
        except ValueError as cause:
            raise BadDataset("no words to index: the texts to retrieve from are empty") from cause
        self.nearest = cache(self._nearest)  # every meter asks the same questions

    def _nearest(self, query: str, k: int) -> tuple[int, ...]:
        """Return the places of the k nearest texts, nearest first; equally near ones in their own order."""
        asked: Any = self.vectorizer.transform([query])
        scores = (self.matrix @ asked.T).toarray()[:, 0]
        return tuple(np.argsort(-scores, kind="stable")[:k].tolist())


class _SavedPool(SavedContext):
    keys: list[str]
    blocks: list[str]
    k: int


@dataclass(frozen=True)
class Retrieved(Context):
    """Sets before a question the texts nearest to it, the nearest last."""

    kind: ClassVar[str] = "retrieved"
    saved: ClassVar[Any] = _SavedPool

    keys: tuple[str, ...]
    """What questions are compared with."""
    blocks: tuple[str, ...]
    """What is set before the question where its key is among the nearest."""
    k: int
    index: TfidfIndex = field(init=False, repr=False, compare=False)
    _: KW_ONLY
    name: str = "Retrieved"

    def __post_init__(self) -> None:
        if not 1 <= self.k <= len(self.keys):
            raise BadValue(f"{self.name}: {self.k} texts asked for; there are {len(self.keys)} to retrieve from")
        object.__setattr__(self, "index", TfidfIndex(self.keys))

    def before(self, question: str) -> Before:
        """Return the retrieved texts, the nearest last: as turns where they are the keys with their answers."""
        near = list(reversed(self.index.nearest(question, self.k)))
        heads = [plain(self.keys[i], "") for i in near]
        blocks = [self.blocks[i] for i in near]
        if all(block.startswith(head) for block, head in zip(blocks, heads, strict=True)):
            turns = [(self.keys[i], b.removeprefix(h)) for i, b, h in zip(near, blocks, heads, strict=True)]
            return Before(turns=turns)
        return Before("\n\n".join(blocks))

    def describe(self) -> dict[str, Any]:
        """Return the kind, how many texts are retrieved and from how many."""
        return {"kind": self.kind, "name": self.name, "k": self.k, "pool": len(self.keys)}


def read_passages(paths: Sequence[str | Path]) -> tuple[str, ...]:
    """Return the passages of text files: their paragraphs, cut where longer than 120 words.

    A folder stands for the `.txt` and `.md` files in it.

    Raises:
        BadDataset: a file cannot be read as UTF-8 text, or there is no text at all.
    """
    found: list[str] = []
    for path in _files(paths):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as cause:
            raise BadDataset(f"{path} cannot be read as UTF-8 text; give .txt or .md files to retrieve from") from cause
        for paragraph in re.split(r"\n\s*\n", text):
            words = paragraph.split()
            found += [" ".join(words[i : i + PASSAGE_WORDS]) for i in range(0, len(words), PASSAGE_WORDS)]
    if not found:
        raise BadDataset(f"no text in {', '.join(map(str, paths)) or 'no files'}: there is nothing to retrieve from")
    return tuple(found)


def _files(paths: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(p for p in path.iterdir() if p.suffix.lower() in (".txt", ".md")) if path.is_dir() else [path]
    return files
