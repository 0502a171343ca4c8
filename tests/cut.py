"""The data that ships, cut down, so that whole paths through the product take seconds."""

from __future__ import annotations

from importlib import import_module

import pytest

from trimtab.datasets import QuestionSet, folklore, neutral_texts


def cut_data(monkeypatch: pytest.MonkeyPatch, *, development: int = 40, final: int = 12, texts: int = 6) -> None:
    """Give folklore the first questions of each part only, and drift few texts, until the patch is undone."""
    parts = {"development": folklore("development")[:development], "final": folklore("final")[:final]}
    whole = folklore()[: development + final]

    def cut(part: str = "all") -> QuestionSet:
        return whole if part == "all" else parts[part]

    for place in ("trimtab.datasets.folklore", "trimtab.datasets"):  # where it is written, and its public name
        monkeypatch.setattr(import_module(place), "folklore", cut)
    few = {"validation_texts": lambda: neutral_texts(4), "neutral_texts": lambda: neutral_texts(texts)}
    # packages export functions of the same names as some of these modules
    monkeypatch.setattr(import_module("trimtab.export.checkpoint"), "folklore", lambda: whole[:8])
    for module, names in {
        "trimtab.steer.strength": ("validation_texts",),
        "trimtab.evaluate.drift": ("validation_texts", "neutral_texts"),
    }.items():
        for name in names:
            monkeypatch.setattr(import_module(module), name, few[name])
