"""What the tests of tuning share: one small instance of every method, runs on a tiny model, and 4-bit models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import cases
from tests.tiny import VOCAB, tiny_model, tiny_questions, tiny_tokenizer
from trimtab import peft
from trimtab.models import load_model

METHODS, QUICK = cases.TUNING, cases.QUICK
ON_FOUR_BITS = [name for name, method in METHODS.items() if method.capabilities.four_bit]
MERGEABLE = [name for name, method in METHODS.items() if method.capabilities.mergeable]
FAMILIES = cases.FAMILIES
ONE_EACH = cases.UNLIKE | {"prefix", "intrinsic"}
"""One of the settings of each implementation: those that architectures other than the first take in the default run."""


def on(families: Sequence[str], names: Sequence[str] = tuple(METHODS), *, late: Sequence[str] = ()) -> Any:
    """Give a test each method on each family, in the slow run alone what the others stand for and the late families."""
    return pytest.mark.parametrize(
        "name, family",
        [
            pytest.param(name, family, marks=[pytest.mark.slow] * slow)
            for family in families
            for name in names
            for slow in [name in cases.VARIANTS or family in late or (family != FAMILIES[0] and name not in ONE_EACH)]
        ],
    )


def some(every: Sequence[Any], *chosen: Any) -> list[Any]:
    """Return all of a test's parameters, those that were not chosen for the slow run only."""
    assert set(chosen) <= set(every)
    return [
        one if one in chosen else pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=pytest.mark.slow)
        for one in every
    ]


def default_of(*chosen: str) -> list[Any]:
    """Return every method as a test's parameter, those that were not chosen for the slow run only."""
    return some(list(METHODS), *chosen)


def fitted(name: str, model: Any, *, seed: int = 0, out: Path | None = None, **knobs: Any) -> peft.TunedEdit:
    """Return a short run of a method on the tiny questions."""
    return METHODS[name].fit(model, tiny_tokenizer(), tiny_questions(6), knobs=knobs, seed=seed, out=out)


def quantised(folder: Path, family: str, kind: str = "nf4-dq", dtype: str = "float32") -> Any:
    """Return a tiny model in 4 or 8 bits."""
    tiny_model(family, width=64).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return load_model(folder, quantization=kind, dtype=dtype, device="cpu").model


def some_tokens(batch: int = 2, length: int = 9) -> Tensor:
    """Return random tokens, batch seq."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def logits(model: Any, ids: Tensor | None = None, **given: Any) -> Tensor:
    """Return a model's logits without a cache."""
    return model(input_ids=some_tokens() if ids is None else ids, use_cache=False, **given).logits
