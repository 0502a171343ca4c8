"""RetrievedPassages: passages of the user's own text files before the question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.edits.retrieval import Retrieved, read_passages
from trimtab.protocols import Cost, Knobs, Method


@dataclass(frozen=True)
class RetrievedPassages(Method):
    """Passages of the user's own text files nearest to the question (TF-IDF), before it; no training questions."""

    paths: tuple[str, ...]
    """Text files, or folders of `.txt` and `.md` files."""
    passages: tuple[int, ...] = (1, 2, 3)
    name: str = "Retrieved passages"
    changes_prompt_only = True

    @property
    def space(self) -> Mapping[str, Sequence[Any]]:
        """Numbers of passages."""
        return {"passages": self.passages}

    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Knobs | None = None, seed: int = 0) -> Retrieved:
        """Return the prompting edit over all passages.

        Raises:
            BadDataset: the files cannot be read or hold no text.
            BadValue: more passages asked for than there are.
        """
        found = read_passages([Path(p) for p in self.paths])
        cost = Cost(bytes_on_disk=sum(len(passage.encode()) for passage in found))
        return Retrieved(found, found, self.setting(knobs)["passages"], name=self.name, cost=cost)
