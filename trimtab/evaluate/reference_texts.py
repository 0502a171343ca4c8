"""Texts beside references: what an edited model writes of a meaning, scored as the E2E NLG challenge does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from trimtab.engine.beam_search import BeamSettings, beam_texts
from trimtab.evaluate.figure import Figure
from trimtab.evaluate.text_overlap import BLEU_COLUMNS, NIST_COLUMNS, overlap_rows
from trimtab.protocols import Edit, Measured, Meter


@dataclass(frozen=True)
class ReferenceTexts(Meter):
    """Measures text overlap: a row for every meaning with its text and the counts that corpus scores are made of.

    METEOR, which only Java computes of a whole corpus, stands in the record.
    """

    settings: BeamSettings | None = None
    """Of beam search; the LoRA paper's for GPT-2 if not given."""
    java: bool | None = None
    """Whether to use Java; if it is found, when not given."""
    batch_size: int | None = None
    name: ClassVar[str] = "references"
    columns: ClassVar[Sequence[str]] = (*BLEU_COLUMNS, *NIST_COLUMNS, "rouge_l", "cider")
    shown: ClassVar[Sequence[str]] = ("text",)

    def measure(
        self,
        model: Any,
        tokenizer: Any,
        items: Any,
        edits: Sequence[Edit],
        *,
        asking: str = "plain",
        seed: int = 0,
    ) -> list[Measured]:
        """Return every meaning's text and counts under every edit."""
        prompts, references = [item.prompt for item in items], [list(item.texts) for item in items]
        options = {"settings": self.settings, "batch_size": self.batch_size}
        found = []
        for edit in edits:
            texts = beam_texts(model, tokenizer, prompts, edit, **options)
            rows, record = overlap_rows(texts, references, java=self.java)
            named = zip(items, texts, rows, strict=True)
            found.append(Measured({item.key: {"text": text, **row} for item, text, row in named}, record=record))
        return found


def reference_meters(**options: Any) -> tuple[Figure, ...]:
    """Return BLEU, NIST, ROUGE-L and CIDEr; `options` are the fields of `ReferenceTexts`."""
    source = ReferenceTexts(**options)
    return (
        Figure(source, "bleu", "BLEU", BLEU_COLUMNS, sums_up="bleu"),
        Figure(source, "nist", "NIST", NIST_COLUMNS, unit="", sums_up="nist"),
        Figure(source, "rouge_l", "ROUGE-L", ("rouge_l",)),
        Figure(source, "cider", "CIDEr", ("cider",), unit=""),
    )
