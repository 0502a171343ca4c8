"""Where an edit acts: the positions of a batch, said once or before each forward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass
class TokenMask:
    """The positions that an edit acts on in the forward that comes next.

    Whoever runs teacher-forced forwards makes one, enters `edit.applied(model, positions=mask)` once, and sets
    `value` before each forward. A float mask scales the edit, so that rows of one batch may differ in strength.
    """

    value: Bool[Tensor, "batch seq"] | Float[Tensor, "batch seq"] | None = None


Positions: TypeAlias = Literal["generated", "all"] | Bool[Tensor, "batch seq"] | Float[Tensor, "batch seq"] | TokenMask
"""Where an edit acts: `"generated"` (every position that predicts a generated token), `"all"`, or a mask."""
EnterAt: TypeAlias = Callable[[Positions], AbstractContextManager[Any]]
"""Enters an edit on the model that it was prepared for."""
