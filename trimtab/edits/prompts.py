"""Context and Prompted: text before the question, as an edit that leaves the model alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from typing_extensions import TypedDict

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
    def texts_before(self, question: str) -> Sequence[str]:
        """Return the texts that stand before the question, in their order."""

    def applied(self, model: Any, positions: Positions = "generated") -> AbstractContextManager[Any]:  # noqa: ARG002
        """Yield the model as it is."""
        return nullcontext(model)

    def prompt(self, question: str) -> str:
        """Return the texts and then the question in `Q: ...\\nA:` form, separated by blank lines."""
        return "\n\n".join([*self.texts_before(question), f"Q: {question}\nA:"])

    def before(self, text: str) -> str:
        """Return the texts, with what separates them from the one that follows."""
        return "".join(f"{before}\n\n" for before in self.texts_before(text))

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

    def texts_before(self, question: str) -> list[str]:  # noqa: ARG002
        """Return the instruction and the examples in `Q: ...\\nA: ...` form."""
        texts = [self.instruction] if self.instruction else []
        return texts + [f"Q: {q}\nA: {a}" for q, a in self.examples]

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

    def texts_before(self, question: str) -> Sequence[str]:  # noqa: ARG002
        """Return the sentences."""
        return self.texts

    def before(self, text: str) -> str:
        """Return the sentences, each on a line of its own."""
        return "".join(f"{before}\n" for before in self.texts_before(text))

    def prompt(self, question: str) -> str:
        """Return the sentences and then the question, each on a line of its own."""
        return "\n".join([*self.texts, question])

    def describe(self) -> dict[str, Any]:
        """Return the kind and the sentences."""
        return {"kind": self.kind, "texts": list(self.texts)}
