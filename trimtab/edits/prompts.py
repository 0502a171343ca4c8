"""Context and Prompted: text before the question, as an edit that leaves the model alone."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from typing_extensions import TypedDict

from trimtab.before import NOTHING, Before
from trimtab.datasets.asking import PLAIN
from trimtab.errors import BadValue
from trimtab.protocols import ALL_LAYERS, Cost, Edit, Positions
from trimtab.storage import load_record, save_result


class SavedContext(TypedDict):
    """The record of a context on disk; each kind adds its own fields."""

    name: str
    cost: dict[str, float]


Own = TypeVar("Own", bound="Context")


@dataclass(frozen=True)
class Context(Edit):
    """Sets texts before the question; the model is unchanged."""

    leaves_prompt_unedited: ClassVar[bool] = True
    unchanged_layers: ClassVar[int] = ALL_LAYERS
    changes_prompt_only: ClassVar[bool] = True
    saved: ClassVar[Any] = SavedContext

    _: KW_ONLY
    name: str = ""
    cost: Cost = field(default_factory=Cost)

    @abstractmethod
    def before(self, question: str) -> Before | None:
        """Return what stands before the question."""

    def applied(self, model: Any, positions: Positions = "generated") -> AbstractContextManager[Any]:  # noqa: ARG002
        """Yield the model as it is."""
        return nullcontext(model)

    def prompt(self, question: str) -> str:
        """Return the texts and then the question in `Q: ...\\nA:` form, separated by blank lines."""
        return PLAIN.asked(question, self.before(question) or NOTHING).prompt

    @property
    def stored_bytes(self) -> int:
        """The bytes of the texts alone."""
        return self.cost.bytes_on_disk

    def save(self, path: str | Path) -> None:
        """Write the texts to a folder; raises `Incompatible` if it holds something else or cannot be written."""
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        save_result(path, self.kind, {**record, "cost": asdict(self.cost)}, {})

    @classmethod
    def load(cls: type[Own], path: str | Path) -> Own:
        """Return what `save` wrote; raises `Incompatible` for anything else."""
        record = load_record(path, cls.kind, fields=cls.saved)
        values = {f.name: _tuples(record[f.name]) for f in fields(cls) if f.init}
        return cls(**{**values, "cost": Cost(**record["cost"])})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class _SavedExamples(SavedContext):
    examples: list[tuple[str, str]]
    instruction: str


@dataclass(frozen=True)
class Prompted(Context):
    """Few-shot prompting: question and answer pairs set before the question."""

    kind: ClassVar[str] = "prompted"
    saved: ClassVar[Any] = _SavedExamples

    examples: tuple[tuple[str, str], ...]
    """(question, answer) pairs, in the order in which they stand."""
    instruction: str = ""
    """Text set before the pairs, followed by a blank line."""
    _: KW_ONLY
    name: str = "Few-shot"

    def __post_init__(self) -> None:
        if not self.examples and not self.instruction:
            raise BadValue("Prompted needs at least one (question, answer) example or an instruction")

    def before(self, question: str) -> Before:  # noqa: ARG002
        """Return the instruction and the examples."""
        return Before(self.instruction, self.examples)

    def describe(self) -> dict[str, Any]:
        """Return the kind and the examples."""
        return {"kind": self.kind, "examples": [list(e) for e in self.examples], "instruction": self.instruction}


class _SavedTexts(SavedContext):
    texts: list[str]


@dataclass(frozen=True)
class Stated(Context):
    """Sentences before the prompt, which goes on as it is: for prompts that a text continues."""

    kind: ClassVar[str] = "stated"
    saved: ClassVar[Any] = _SavedTexts

    texts: tuple[str, ...]
    _: KW_ONLY
    name: str = "Stated"

    def __post_init__(self) -> None:
        if not self.texts:
            raise BadValue("Stated needs one sentence or more")

    def before(self, question: str) -> None:
        """Return None: the sentences are part of the text that goes on."""

    def prompt(self, question: str) -> str:
        """Return the sentences and then the question, each on a line of its own."""
        return "\n".join([*self.texts, question])

    def describe(self) -> dict[str, Any]:
        """Return the kind and the sentences."""
        return {"kind": self.kind, "texts": list(self.texts)}
