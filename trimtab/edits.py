"""Edit and Method: the one door between changing a model and measuring it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from trimtab.errors import BadValue


@dataclass
class TokenMask:
    """The positions that an edit acts on in the forward that comes next.

    Whoever runs teacher-forced forwards makes one, enters `edit.applied(model, positions=mask)` once, and sets
    `value` before each forward. A float mask scales the edit, so that rows of one batch may differ in strength.
    """

    value: Bool[Tensor, "batch seq"] | Float[Tensor, "batch seq"] | None = None


Positions: TypeAlias = Literal["generated", "all"] | Bool[Tensor, "batch seq"] | Float[Tensor, "batch seq"] | TokenMask
"""Where an edit acts: `"generated"` (every position that predicts a generated token), `"all"`, or a mask."""


ALL_LAYERS = sys.maxsize
"""`unchanged_layers` of an edit that leaves the model as it is."""


@dataclass(frozen=True)
class Cost:
    """What making an edit took. Zero where nothing was made."""

    seconds: float = 0.0
    trainable_parameters: int = 0
    """Numbers that were fitted and must be stored."""
    bytes_on_disk: int = 0


@contextlib.contextmanager
def stopwatch() -> Iterator[list[float]]:
    """Yield a list that receives the seconds the block took."""
    seconds: list[float] = []
    start = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - start)


@runtime_checkable
class Edit(Protocol):
    """A change to how a model behaves, measured the same way whatever made it.

    Laws (tests/test_contracts.py holds every Edit to them): strength 0 equals no edit to the bit; on exit, also
    after an exception and when nested, hooks and weights are as before; only declared sites and positions change;
    save -> load gives equal logits; batched with padding equals one by one; cached generation equals one masked
    forward.

    An edit may also have `unchanged_layers: int`: how many of the decoder's first layers compute what they compute in
    the unedited model, so that measurements can share them.
    """

    @property
    def name(self) -> str:
        """A short name for tables."""
        ...

    @property
    def cost(self) -> Cost:
        """What making it took."""
        ...

    @property
    def leaves_prompt_unedited(self) -> bool:
        """Whether the prompt runs as in the unedited model, so that its cache may be shared with other edits."""
        ...

    def applied(self, model: Any, positions: Positions = "generated") -> AbstractContextManager[Any]:
        """Return a context manager that yields the model to call while the edit is in place."""
        ...

    def prompt(self, question: str) -> str | None:
        """Return the whole context to ask `question` in, or None to leave the choice to the measurement."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return plain values for the record."""
        ...


@runtime_checkable
class Method(Protocol):
    """A way of making an Edit from training questions; `grid` lists the knobs it may choose among."""

    @property
    def grid(self) -> Sequence[Mapping[str, Any]]:
        """The settings among which a comparison may choose, each a set of `knobs`."""
        ...

    def fit(
        self, model: Any, tokenizer: Any, train: Any, *, knobs: Mapping[str, Any] | None = None, seed: int = 0
    ) -> Edit:
        """Return the edit fitted on the training questions."""
        ...


@dataclass(frozen=True)
class NoEdit:
    """The unedited model."""

    name: str = "Baseline"
    cost: Cost = field(default_factory=Cost)
    leaves_prompt_unedited: bool = True
    unchanged_layers: ClassVar[int] = ALL_LAYERS

    @contextlib.contextmanager
    def applied(self, model: Any, positions: Positions = "generated") -> Iterator[Any]:  # noqa: ARG002
        """Yield the model as it is."""
        yield model

    def prompt(self, question: str) -> str | None:  # noqa: ARG002
        """Return None: the measurement's own prompt."""
        return None

    def describe(self) -> dict[str, Any]:
        """Return the kind."""
        return {"kind": "none"}


@dataclass(frozen=True)
class Prompted:
    """Few-shot prompting: question and answer pairs set before the question; the model is unchanged."""

    examples: tuple[tuple[str, str], ...]
    """(question, answer) pairs, in the order in which they stand."""
    instruction: str = ""
    """Text set before the pairs, followed by a blank line."""
    name: str = "Few-shot"
    cost: Cost = field(default_factory=Cost)
    leaves_prompt_unedited: bool = True
    unchanged_layers: ClassVar[int] = ALL_LAYERS

    def __post_init__(self) -> None:
        if not self.examples and not self.instruction:
            raise BadValue("Prompted needs at least one (question, answer) example or an instruction")

    @contextlib.contextmanager
    def applied(self, model: Any, positions: Positions = "generated") -> Iterator[Any]:  # noqa: ARG002
        """Yield the model as it is."""
        yield model

    def prompt(self, question: str) -> str:
        """Return instruction and examples in `Q: ...\\nA: ...` form, separated by blank lines, then the question."""
        blocks = [self.instruction] if self.instruction else []
        blocks += [f"Q: {q}\nA: {a}" for q, a in self.examples]
        return "\n\n".join([*blocks, f"Q: {question}\nA:"])

    def describe(self) -> dict[str, Any]:
        """Return the kind and the examples."""
        return {
            "kind": "prompted",
            "examples": [list(e) for e in self.examples],
            "instruction": self.instruction,
        }


@dataclass(frozen=True)
class Stacked:
    """Several edits at once, applied in order; at most one of them may change the prompt."""

    edits: tuple[Edit, ...]
    name: str = ""
    cost: Cost = field(init=False)

    def __post_init__(self) -> None:
        if len(self.edits) < 2:
            raise BadValue(f"Stacked needs two or more edits, got {len(self.edits)}")
        prompting = [e.name for e in self.edits if e.prompt("?") is not None]
        if len(prompting) > 1:
            raise BadValue(f"only one edit of a stack may change the prompt, got {' and '.join(prompting)}")
        for i, edit in enumerate(self.edits):
            lost = [e.name for e in self.edits[:i] if e.prompt("?") is None and not isinstance(e, NoEdit)]
            if lost and getattr(edit, "replaces_model", False):
                raise BadValue(
                    f"{edit.name} answers with a model of its own, on which {lost[0]} would not act; put it first"
                )
        costs = [e.cost for e in self.edits]
        total = Cost(
            sum(c.seconds for c in costs),
            sum(c.trainable_parameters for c in costs),
            sum(c.bytes_on_disk for c in costs),
        )
        object.__setattr__(self, "cost", total)
        object.__setattr__(self, "name", self.name or " + ".join(e.name for e in self.edits))

    @property
    def replaces_model(self) -> bool:
        """Whether one of them answers with a model of its own, so that edits before it would not act."""
        return any(getattr(e, "replaces_model", False) for e in self.edits)

    @property
    def leaves_prompt_unedited(self) -> bool:
        """True if every edit does."""
        return all(e.leaves_prompt_unedited for e in self.edits)

    @property
    def unchanged_layers(self) -> int:
        """Those that no edit of the stack changes."""
        return min(getattr(e, "unchanged_layers", 0) for e in self.edits)

    @contextlib.contextmanager
    def applied(self, model: Any, positions: Positions = "generated") -> Iterator[Any]:
        """Yield the model with every edit in place."""
        with contextlib.ExitStack() as stack:
            for edit in self.edits:
                model = stack.enter_context(edit.applied(model, positions))
            yield model

    def prompt(self, question: str) -> str | None:
        """Return the prompt of the one edit that changes it."""
        return next((p for e in self.edits if (p := e.prompt(question)) is not None), None)

    def describe(self) -> dict[str, Any]:
        """Return the parts' descriptions."""
        return {"kind": "stacked", "edits": [e.describe() for e in self.edits]}
