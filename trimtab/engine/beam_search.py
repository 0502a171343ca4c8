"""Texts by beam search, for the tasks whose published rows were made with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.engine.generate import Decoding, continuations
from trimtab.errors import BadDataset, BadValue
from trimtab.models.tokens import encode_all
from trimtab.protocols import Edit


@dataclass(frozen=True)
class BeamSettings:
    """Beam search as the LoRA repository decodes E2E (Hu et al. 2021; examples/NLG of its code)."""

    beams: int = 10
    length_penalty: float | int = 0.8
    no_repeat_ngram: int = 4
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if self.beams < 1 or self.max_new_tokens < 1:
            raise BadValue(f"beams and max_new_tokens must be 1 or more, got {self.beams} and {self.max_new_tokens}")


def beam_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    edit: Edit,
    *,
    settings: BeamSettings | None = None,
    batch_size: int | None = None,
) -> list[str]:
    """Return the edited model's best continuation of every prompt, up to its first line break.

    Raises:
        BadDataset: there are no prompts.
        BadValue: a prompt and its continuation do not fit the model's context.
        Incompatible: as `completions`.
    """
    if not prompts:
        raise BadDataset("no prompts to continue")
    settings = settings or BeamSettings()
    options = {
        "num_beams": settings.beams,
        "length_penalty": float(settings.length_penalty),
        "no_repeat_ngram_size": settings.no_repeat_ngram,
    }
    decoding = Decoding(settings.max_new_tokens, options)
    ids = encode_all(tokenizer, prompts)
    (texts,) = continuations(model, tokenizer, ids, [edit], decoding, batch_size=batch_size)
    return [text.strip().split("\n")[0].strip() for text in texts]
