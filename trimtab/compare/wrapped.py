"""WrappedMethod: a method that is another one with something changed, and takes from it what it does to the model."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.protocols import Method


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
