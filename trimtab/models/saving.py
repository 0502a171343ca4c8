"""save_model: a model and its tokenizer as a folder, with the notice that its licence asks copies to carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.noise import without_bars_in_pipes

UNDER_GEMMA_TERMS = ("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "recurrent_gemma")
"""Model types whose weights are Google's under its Gemma Terms of Use (section 3.1 asks for the notice)."""
NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n"
    "This copy was changed by trimtab: record.json beside it says from what and how.\n"
)


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write both as Hugging Face's readers want them, and for a Gemma its notice.

    Raises:
        ValueError: transformers does not write these generation defaults.
    """
    with without_bars_in_pipes():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if model.config.model_type in UNDER_GEMMA_TERMS:
        (folder / "NOTICE").write_text(NOTICE, encoding="utf-8")
