"""WrappedMethod: a method that is another one with something changed, and takes from it what it does to the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trimtab.protocols import Edit, Findings, Knobs, Method


@dataclass(frozen=True)
class WrappedMethod(Method):
    """Another method with something changed."""

    method: Method

    @property
    def replaces_model(self) -> bool:
        """As of the method."""
        return self.method.replaces_model

    @property
    def changes_prompt_only(self) -> bool:
        """As of the method."""
        return self.method.changes_prompt_only

    @property
    def fitted_on(self) -> Sequence[str]:
        """As of the method."""
        return self.method.fitted_on

    def limited_to(self, n: int) -> Method:
        """Return it around the method so limited."""
        return replace(self, method=self.method.limited_to(n))

    def fitter(self, model: Any, tokenizer: Any, train: Any, *, seed: int = 0) -> Callable[[Knobs], Edit]:
        """Return what fits the method with its change."""
        return self.fitter_with(Findings(), model, tokenizer, train, seed=seed)
