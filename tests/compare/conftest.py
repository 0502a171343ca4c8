"""Decoding is timed on fewer tokens than users have it: how long a tiny model takes says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from trimtab.evaluate import cost


@pytest.fixture(scope="package", autouse=True)
def quickly_timed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "milliseconds_per_token", partial(cost.milliseconds_per_token, new_tokens=2))
        yield
