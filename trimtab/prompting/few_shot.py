"""Methods that tune nothing: a ready edit, few-shot prompting, retrieval; and stacks of two methods."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.datasets.questions import QuestionSet
from trimtab.edits.combined import Stacked
from trimtab.edits.prompts import Prompted
from trimtab.edits.retrieval import Retrieved, read_passages
from trimtab.errors import BadValue
from trimtab.protocols import Cost, Edit, Method

Knobs = Mapping[str, Any]


def name_of(method: Any) -> str:
    """Return a method's name for tables: its own, or its class's."""
    return str(getattr(method, "name", type(method).__name__))


@dataclass(frozen=True)
class FewShot(Method):
    """Training questions with their best answers before the question; the knob is how many."""

    shots: tuple[int, ...] = (1, 2, 3, 5, 8)
    draws: int = 2
    """Different draws of the examples to choose among, for each number of shots."""
    name: str = "Few-shot"

    @property
    def grid(self) -> Sequence[Knobs]:
        """Numbers of shots and draws of the examples."""
        return tuple({"shots": k, "draw": d} for k, d in product(self.shots, range(self.draws)))

    def fit(
        self,
        model: Any,  # noqa: ARG002
        tokenizer: Any,  # noqa: ARG002
        train: QuestionSet,
        *,
        knobs: Knobs | None = None,
        seed: int = 0,
    ) -> Prompted:
        """Return the prompt with `shots` training questions, drawn by seed and draw.

        Raises:
            BadValue: more shots asked for than there are training questions.
        """
        knobs = knobs or self.grid[-1]
        k = knobs["shots"]
        if not 1 <= k <= len(train):
            raise BadValue(f"{k} shots asked for; there are {len(train)} training questions")
        order = np.random.default_rng([seed, knobs.get("draw", 0)]).permutation(len(train))[:k]
        examples = tuple((q.question, q.best_answer) for q in train.select(order))
        return Prompted(examples, name=self.name, cost=Cost(bytes_on_disk=_bytes(f"{q}{a}" for q, a in examples)))


@dataclass(frozen=True)
class RetrievedFewShot(Method):
    """The training questions nearest to the question (TF-IDF), with their best answers, before it."""

    shots: tuple[int, ...] = (1, 2, 3, 5, 8)
    name: str = "Retrieved few-shot"

    @property
    def grid(self) -> Sequence[Knobs]:
        """Numbers of shots."""
        return tuple({"shots": k} for k in self.shots)

    def fit(
        self,
        model: Any,  # noqa: ARG002
        tokenizer: Any,  # noqa: ARG002
        train: QuestionSet,
        *,
        knobs: Knobs | None = None,
        seed: int = 0,  # noqa: ARG002
    ) -> Retrieved:
        """Return the prompting edit over all training questions.

        Raises:
            BadValue: more shots asked for than there are training questions.
        """
        keys = tuple(q.question for q in train)
        blocks = tuple(f"Q: {q.question}\nA: {q.best_answer}" for q in train)
        cost = Cost(bytes_on_disk=_bytes(blocks))
        return Retrieved(keys, blocks, (knobs or self.grid[-1])["shots"], name=self.name, cost=cost)


@dataclass(frozen=True)
class RetrievedPassages(Method):
    """Passages of the user's own text files nearest to the question (TF-IDF), before it; no training questions."""

    paths: tuple[str, ...]
    """Text files, or folders of `.txt` and `.md` files."""
    passages: tuple[int, ...] = (1, 2, 3)
    name: str = "Retrieved passages"

    @property
    def grid(self) -> Sequence[Knobs]:
        """Numbers of passages."""
        return tuple({"passages": k} for k in self.passages)

    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Knobs | None = None, seed: int = 0) -> Retrieved:  # noqa: ARG002
        """Return the prompting edit over all passages.

        Raises:
            BadDataset: the files cannot be read or hold no text.
            BadValue: more passages asked for than there are.
        """
        found = read_passages([Path(p) for p in self.paths])
        cost = Cost(bytes_on_disk=_bytes(found))
        return Retrieved(found, found, (knobs or self.grid[-1])["passages"], name=self.name, cost=cost)


@dataclass(frozen=True)
class Stack(Method):
    """Several methods at once: each is fitted on the model as the ones before it leave it, on the same questions.

    So the probes and the shift of LoRA + ITI are those of the tuned model. A trial sets the knobs of all of them.
    """

    methods: tuple[Method, ...]

    def __post_init__(self) -> None:
        names = [name_of(m) for m in self.methods]
        if len(names) < 2 or len(set(names)) < len(names):
            raise BadValue(f"a stack needs two or more methods of different names, got {', '.join(names) or 'none'}")
        prompting = FewShot | RetrievedFewShot | RetrievedPassages
        for i, method in enumerate(self.methods):
            lost = [name_of(m) for m in self.methods[:i] if not isinstance(m, prompting)]
            if lost and getattr(method, "replaces_model", False):
                raise BadValue(
                    f"{names[i]} answers with a model of its own, on which {lost[0]} would not act; put it first"
                )

    @property
    def name(self) -> str:
        """The methods' names joined by +."""
        return " + ".join(name_of(m) for m in self.methods)

    @property
    def grid(self) -> Sequence[Knobs]:
        """Every combination of the methods' settings, by the method's name."""
        names = [name_of(m) for m in self.methods]
        return tuple(dict(zip(names, each, strict=True)) for each in product(*(m.grid for m in self.methods)))

    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Knobs | None = None, seed: int = 0) -> Stacked:
        """Return the stacked edit."""
        return Stacked(tuple(self._parts(model, tokenizer, train, knobs or {}, seed)), name=self.name)

    def _parts(self, model: Any, tokenizer: Any, train: Any, knobs: Knobs, seed: int) -> list[Edit]:
        made: list[Edit] = []
        with contextlib.ExitStack() as stack:
            for i, method in enumerate(self.methods):
                made.append(method.fit(model, tokenizer, train, knobs=knobs.get(name_of(method)), seed=seed))
                if i + 1 < len(self.methods):
                    model = stack.enter_context(made[-1].applied(model, positions="all"))
        return made


def _bytes(texts: Any) -> int:
    return sum(len(text.encode()) for text in texts)
