"""Fixtures shared by all tests; every test runs offline."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
# tiny tensors gain nothing from a second thread, and on shared cores wait long for it
os.environ.setdefault("OMP_NUM_THREADS", "1")
# tiny tensors gain nothing from threads, and on busy cores their spinning costs a factor of ten
torch.set_num_threads(1)


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
