"""Fixtures shared by all tests; every test runs offline."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of data that tests may read but the product does not need."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data folder (TruthfulQA, E2E) is not beside this checkout")
    return folder
