"""Fixtures shared by all tests; every test runs offline."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
# tiny tensors gain nothing from a second thread, and on shared cores wait long for it
os.environ.setdefault("OMP_NUM_THREADS", "1")
# tiny tensors gain nothing from threads, and on busy cores their spinning costs a factor of ten
torch.set_num_threads(1)

_jaxtyped = jaxtyping.jaxtyped
_checked: set[CodeType] = set()


def _jaxtyped_once(*args: Any, **options: Any) -> Any:
    """Check annotations as jaxtyping does, of a function inside another one only when it is first made.

    Building a check takes milliseconds, and a function inside another one is made anew at each call: a text of a
    hundred words, composed in a third of a millisecond, took fifty.
    """
    decorate = _jaxtyped(*args, **options)
    if args:
        return decorate

    def once(made: Callable) -> Any:
        if isinstance(made, FunctionType) and "<locals>" in made.__qualname__:
            if made.__code__ in _checked:
                return made
            _checked.add(made.__code__)
        return decorate(made)

    return once


jaxtyping.jaxtyped = _jaxtyped_once  # the hook of --jaxtyping-packages looks it up at each definition


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of data that tests may read but the product does not need."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data folder (TruthfulQA, E2E) is not beside this checkout")
    return folder


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the annotation checks off, so that a test meets the library's own refusals as users do."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
