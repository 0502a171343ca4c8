"""Texts beside references: what an edited model writes of a meaning, scored as the E2E NLG challenge does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from trimtab.engine.beam_search import BeamSettings, beam_texts
from trimtab.evaluate.text_overlap import BLEU_COLUMNS, NIST_COLUMNS, bleu_of, nist_of, overlap_rows
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
    batch_size: int = 8
    name: ClassVar[str] = "references"
    columns: ClassVar[Sequence[str]] = (*BLEU_COLUMNS, *NIST_COLUMNS, "rouge_l", "cider")
    shown: ClassVar[Sequence[str]] = ("text",)

    @property
    def instrument(self) -> Meter:
        """The texts that all scores share."""
        return ReferenceTexts(self.settings, self.java, self.batch_size)

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


class BLEU(ReferenceTexts):
    """Corpus BLEU-4 (Papineni et al. 2002): mteval-13a tokens in lower case, without smoothing."""

    name = "bleu"
    heading = "BLEU"
    columns = BLEU_COLUMNS

    def summary(self, means: Float[np.ndarray, "... column"]) -> Float[np.ndarray, "..."]:
        """Return the score from the mean counts of n-grams."""
        return bleu_of(means)


class NIST(ReferenceTexts):
    """Corpus NIST-5 (Doddington 2002) as mteval-13a computes it."""

    name = "nist"
    heading = "NIST"
    unit = ""
    columns = NIST_COLUMNS

    def summary(self, means: Float[np.ndarray, "... column"]) -> Float[np.ndarray, "..."]:
        """Return the score from the mean information of n-grams."""
        return nist_of(means)


class RougeL(ReferenceTexts):
    """ROUGE-L by pycocoevalcap (COCO's: F with beta 1.2 of the best precision and the best recall)."""

    name = "rouge_l"
    heading = "ROUGE-L"
    columns = ("rouge_l",)


class CIDEr(ReferenceTexts):
    """CIDEr-D by pycocoevalcap."""

    name = "cider"
    heading = "CIDEr"
    unit = ""
    columns = ("cider",)


def reference_meters(**options: Any) -> tuple[Meter, ...]:
    """Return BLEU, NIST, ROUGE-L and CIDEr; `options` are the fields of `ReferenceTexts`."""
    return BLEU(**options), NIST(**options), RougeL(**options), CIDEr(**options)
