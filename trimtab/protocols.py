"""Edit, Method, Control, Meter, Judge: everything that is ever asked of them stands here, with its default.

A class of your own that derives from one of these is a full citizen: applied, scaled, stacked, saved, measured,
compared and reported as trimtab's own are. Each attribute may be a class attribute, a dataclass field or a property.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from trimtab.before import Before
from trimtab.card import card_of
from trimtab.errors import BadValue, Incompatible
from trimtab.hub import folder_of, push_folder
from trimtab.storage import written_file

T = TypeVar("T")
Knobs: TypeAlias = Mapping[str, Any]
"""One setting of a method: knob -> value."""


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

ALL_LAYERS = sys.maxsize
"""`unchanged_layers` of an edit that leaves the model as it is."""


@dataclass(frozen=True)
class Cost:
    """What making an edit took. Zero where nothing was made."""

    seconds: float = 0.0
    trainable_parameters: int = 0
    """Numbers that were fitted and must be stored."""
    bytes_on_disk: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of making both."""
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@contextlib.contextmanager
def stopwatch() -> Iterator[list[float]]:
    """Yield a list that receives the seconds the block took."""
    seconds: list[float] = []
    start = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - start)


class Edit(ABC):
    """A change to how a model behaves, measured the same way whatever made it.

    Only `name` and `applied` must be given. Laws (the contracts of the tests hold every Edit to them): strength 0
    equals no edit to the bit; on exit, also after an exception and when nested, hooks and weights are as before; only
    declared sites and positions change; save -> load gives equal logits; batched with padding equals one by one;
    cached generation equals one masked forward; merged equals applied at all positions.
    """

    name: str
    """A short name for tables."""
    cost: Cost = Cost()
    """What making it took."""
    record: Mapping[str, Any] = {}
    """How it was made, as plain values."""
    strength: float | int = 1.0
    """What the effect is multiplied by."""
    leaves_prompt_unedited: bool = False
    """Whether the prompt runs as in the unedited model, so that its cache may be shared with other edits."""
    unchanged_layers: int = 0
    """How many of the decoder's first layers compute what they compute in the unedited model; measurements share
    them."""
    changes_prompt_only: bool = False
    """Whether the model itself is left as it is."""
    replaces_model: bool = False
    """Whether it answers with a model of its own, on which edits before it would not act."""
    fitted_on: Sequence[str] = ()
    """Keys of the questions that it was made from, which measurements leave out."""
    losses: Sequence[float] = ()
    """Training losses, step by step; empty where nothing was trained."""
    n_sites: int = 1
    """How many places (heads, layers) it acts on, if it can leave some out: see `first`."""
    validated_on: Sequence[str] = ()
    """Keys of the questions that its places were ranked on, and that nothing else of it was made from."""
    kind: ClassVar[str] = ""
    """What the record of its folder says that it holds; `load_edit` finds its class by it."""

    @abstractmethod
    def applied(self, model: Any, positions: Positions = "generated") -> AbstractContextManager[Any]:
        """Return a context manager that yields the model to call while the edit is in place.

        Raises:
            Incompatible: the edit was made for another model, or did not act.
            BadValue: positions that have no meaning.
        """

    def prepared(self, model: Any) -> EnterAt:
        """Return what enters the edit on this model again and again: checks and searches are done here, once.

        For the time in which nobody changes the model's weights or modules: one call, not longer.
        """
        return partial(self.applied, model)

    def prompt(self, question: str) -> str | None:  # noqa: ARG002
        """Return the whole context to ask `question` in, or None to leave the choice to the measurement."""
        return None

    def before(self, question: str) -> Before | None:  # noqa: ARG002
        """Return what is said before the question, for measurements to write as the model is asked (in its template).

        None where nothing is, or where `prompt` gives the whole context, which is then taken as it stands.
        """
        return None

    @property
    def asked_as(self) -> str:
        """How questions were asked while it was made, such as `"chat"`; empty where that is not known."""
        return str(self.record.get("asking", ""))

    def scaled(self, factor: float | int) -> Edit:  # noqa: ARG002
        """Return the edit with its effect multiplied; raises `BadValue` where that has no meaning."""
        raise BadValue(f"{self.name} has no strength to set: it cannot be scaled; use it as it is")

    def at_strength(self, strength: float | int) -> Edit:
        """Return the edit at this strength, whatever it had; raises `BadValue` where that has no meaning."""
        if strength == self.strength:
            return self
        if self.strength == 0:
            raise BadValue(f"{self.name} has strength 0, which no factor brings to {strength}; load it at another one")
        return self.scaled(strength / self.strength)

    def first(self, k: int) -> Edit:
        """Return the edit on its k best places; raises `BadValue` where it has fewer."""
        if k == self.n_sites:
            return self
        raise BadValue(f"the first {k} places of {self.name} asked for; it has {self.n_sites} and cannot leave one out")

    def randomised(self, seed: int) -> Edit:
        """Return a counterpart that only chance separates from it: the same places and norms, random directions.

        Raises:
            BadValue: an edit of this kind has no directions to draw.
        """
        raise BadValue(f"{self.name} has no random counterpart (seed {seed}): it adds no vectors; follow a shift")

    def renamed(self, name: str) -> Edit:
        """Return the edit under another name for tables."""
        return self._with("name", name)

    def with_record(self, **entries: Any) -> Edit:
        """Return the edit with entries of its record set."""
        return self._with("record", {**self.record, **entries})

    def _with(self, name: str, value: Any) -> Edit:
        other = copy.copy(self)
        object.__setattr__(other, name, value)  # also of a frozen dataclass
        return other

    def describe(self) -> dict[str, Any]:
        """Return plain values for the record."""
        return {"kind": type(self).__name__, "name": self.name, "strength": self.strength}

    def save(self, path: str | Path) -> None:
        """Write the edit to a folder, atomically.

        Raises:
            Incompatible: it has no form on disk, or the folder holds something else or cannot be written.
        """
        raise Incompatible(f"{self.name} cannot be written to {path}: an edit of this kind has no form on disk")

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Return what `save` wrote; raises `Incompatible` for anything else."""
        raise Incompatible(f"{cls.__name__} cannot be read from {path}: an edit of this kind has no form on disk")

    def save_pretrained(self, path: str | Path) -> None:
        """Write the edit as `save` does, with a model card (`README.md`) from its record; raises as `save`."""
        self.save(path)
        with written_file(Path(path) / "README.md") as staging:
            staging.write_text(card_of(self.name, self.describe(), self.record), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None) -> Any:
        """Return an edit of this kind from a folder, or from a repository of the hub (`org/name`), at a revision.

        `trimtab.from_pretrained` takes any kind; raises `Incompatible` where there is none of this one.
        """
        return cls.load(folder_of(name, revision))

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, commit_message: str | None = None) -> str:
        """Write the edit with its card to a repository of the hub, made if it is not there; return its address.

        Raises:
            Incompatible: the edit has no form on disk, or the hub refuses it.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "edit")
            message = commit_message or f"{self.name} by trimtab"
            return push_folder(Path(folder) / "edit", repo_id, private=private, message=message)

    @property
    def stored_bytes(self) -> int:
        """The size of the folder that `save` writes, or what the cost says of an edit that has no form on disk."""
        if type(self).save is Edit.save:
            return self.cost.bytes_on_disk
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "edit"
            self.save(path)
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

    def constants(self, model: Any) -> Mapping[str, Float[Tensor, " width"]]:
        """Return what the edit adds to modules' outputs at all positions, by name as in the base's `named_modules`.

        Raises:
            BadValue: an edit of this kind does anything else.
        """
        raise BadValue(f"{self.name} adds no constant to what modules of {type(model).__name__} give; use it as it is")

    def weight_changes(self, model: Any) -> Mapping[str, Any] | None:  # noqa: ARG002
        """Return what the edit adds to weights, by name: factors (`LowRank`) or whole tensors.

        None where it does not know that without working itself in: it is the difference that `merged` makes.

        Raises:
            Incompatible: the edit was made for another model.
        """
        return None

    def merged(self, model: Any) -> Any:
        """Return a plain model that computes what `model` does with the edit at all positions.

        It may share weights with `model`, an unquantised Hugging Face model that is left as it is.

        Raises:
            UnsupportedModel: no stock class can carry the edit.
            BadValue: an edit of this kind cannot be worked into weights.
        """
        raise BadValue(f"{self.name} cannot be worked into weights ({type(model).__name__}); use it as it is")


@dataclass(frozen=True)
class Findings:
    """What is found out once for all methods that are fitted on the same questions and model, such as activations."""

    found: dict[Any, Any] = field(default_factory=dict)

    def once(self, what: Hashable, find: Callable[[], T]) -> T:
        """Return what `find` gave when this was first asked for."""
        if what not in self.found:
            self.found[what] = find()
        return self.found[what]


class Method(ABC):
    """A way of making an Edit from training questions. Only `fit` must be given."""

    name: str = ""
    """A short name for tables; the class's name if not given."""
    space: Mapping[str, Sequence[Any]] = {}
    """What may be tried: knob -> values, in their order."""
    replaces_model: bool = False
    """As of its edits."""
    changes_prompt_only: bool = False
    """As of its edits."""
    follows: ClassVar[str | None] = None
    """None: a method chooses its own setting (a control takes another row's)."""
    control_of: str | None = None
    """The name of the method that it is a control of, with tries of its own; None for what is no control."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give the class its own name as the name for tables if it has none, and no field for one."""
        super().__init_subclass__(**kwargs)
        if not getattr(cls, "name", "") and "name" not in vars(cls):
            cls.name = cls.__name__

    @property
    def grid(self) -> Sequence[Knobs]:
        """Every setting of the space. A class that overrides it is read for one version more: see `settings_of`."""
        return settings(self.space)

    def setting(self, knobs: Knobs | None) -> dict[str, Any]:
        """Return the first setting of the space with these knobs in it; raises `BadValue` for one that it lacks."""
        unknown = [knob for knob in knobs or {} if knob not in self.space]
        if unknown:
            known = f"its knobs are {', '.join(self.space)}" if self.space else "it has none"
            raise BadValue(f"{self.name} has no knob {unknown[0]!r}; {known}")
        return {**settings(self.space)[0], **(knobs or {})}

    @abstractmethod
    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Knobs | None = None, seed: int = 0) -> Edit:
        """Return the edit fitted on the training questions, with the first setting of the space if no knobs are given.

        Raises:
            BadValue: knobs that the method does not have.
        """

    def fitter(self, model: Any, tokenizer: Any, train: Any, *, seed: int = 0) -> Callable[[Knobs], Edit]:
        """Return a function from knobs to edits; what all settings can share is done here, once."""
        return lambda knobs: self.fit(model, tokenizer, train, knobs=knobs, seed=seed)

    def fitter_with(
        self,
        findings: Findings,  # noqa: ARG002
        model: Any,
        tokenizer: Any,
        train: Any,
        *,
        seed: int = 0,
    ) -> Callable[[Knobs], Edit]:
        """Return the `fitter`, which may take from `findings`, of this very model and questions, and add to them."""
        return self.fitter(model, tokenizer, train, seed=seed)

    def describe(self) -> dict[str, Any]:
        """Return plain values that tell one method from another: the class and its fields."""
        own = {f.name: getattr(self, f.name) for f in fields(self)} if is_dataclass(self) else {}
        return {"method": type(self).__name__, "name": self.name, **own}


def settings(space: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of the knobs' values, the last knob fastest."""
    return [dict(zip(space, values, strict=True)) for values in product(*space.values())]


def settings_of(method: Method) -> list[Knobs]:
    """Return every setting that a method has.

    A class that gives an own `grid`, as methods did before there was `space`, is read with a warning.
    """
    if type(method).grid is not Method.grid:
        warnings.warn(
            f"{method.name}: a method's `grid` is read for one version more; give `space`, knob -> values, instead",
            FutureWarning,
            stacklevel=2,
        )
    return [dict(knobs) for knobs in method.grid]


class Control(ABC):
    """What could have had another method's effect by luck: it takes that row's chosen edit and draws others like it."""

    name: str
    """A short name for tables."""
    draws: int = 10
    """Draws in every fold and under every seed."""
    follows: str
    """The row whose chosen edit it takes."""

    @abstractmethod
    def edits(self, after: Edit, n: int, *, seed: Sequence[int]) -> Iterator[Edit]:
        """Yield n counterparts of the edit that was chosen; the seed's numbers alone decide them.

        The first k of n are the k that are yielded where k are asked for.

        Raises:
            BadValue: an edit of a kind that it has no counterpart of.
        """

    def describe(self) -> dict[str, Any]:
        """Return plain values that tell one control from another."""
        return {"control": type(self).__name__, "name": self.name, "draws": self.draws, "follows": self.follows}


@dataclass(frozen=True)
class Measured:
    """What an instrument found of one edit."""

    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Item (question, pair, text, fact) -> column -> value; numbers in the columns that meters sum up."""
    value: float | int | None = None
    """For a meter without rows, such as a cost."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What must stand beside the figures: a judge's agreement with people, the form of the questions."""


class Meter(ABC):
    """One figure of an edited model. Everything that averages, tests, prints or draws works over meters by these alone.

    Several meters may sum up the rows of one measurement: their `instrument` is then the same (equal) meter, which
    measures once for all of them.
    """

    name: str
    """Its key in records, such as `mc1`."""
    heading: str = ""
    """Its heading in tables; the name if not given."""
    unit: str = "share"
    """`"share"` (printed in percent), or a unit such as `"nats"`, `"s"`, `"bytes"`, `"ms"`."""
    better: Literal["up", "down", "neither"] = "up"
    """Which way is an improvement."""
    columns: Sequence[str] = ()
    """The columns of a row that it sums up; its own name if not given."""
    shown: Sequence[str] = ()
    """Columns of a row that hold text for reading, such as the answer; records keep them beside the figures."""
    sums_up: str = "mean"
    """How `summary` makes the figure, for whoever reads records without the code of the meter; filled in."""
    collateral: bool = False
    """Whether it says what an edit broke rather than what it was made for; pages show the two apart."""
    tested: bool = True
    """Whether a comparison tests its difference to the unedited model; it never does where `better` is neither."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Fill heading and columns from the name where a class gives none."""
        super().__init_subclass__(**kwargs)
        name = vars(cls).get("name")
        if isinstance(name, str):
            cls.heading, cls.columns = (
                vars(cls).get(key, own) for key, own in (("heading", name), ("columns", (name,)))
            )
        own = "mean" if cls.summary is Meter.summary else "its own code"
        cls.sums_up = vars(cls).get("sums_up", own)

    @property
    def instrument(self) -> Meter:
        """What measures: this meter, or the one whose rows it sums up."""
        return self

    @property
    def sign(self) -> int:
        """What its figures are multiplied by so that more is better: -1 where less is, else 1."""
        return -1 if self.better == "down" else 1

    @property
    def choosing(self) -> Meter:
        """The meter to choose settings by, where measuring on the same items would be peeking: itself if not."""
        return self

    def kept_in(self, folder: str | Path) -> Meter:  # noqa: ARG002
        """Return the meter that keeps unfinished work in a folder, to go on there after a failure: itself if none."""
        return self

    def try_out(self, items: Any) -> None:  # noqa: B027
        """Measure next to nothing, so that what cannot measure says so before anything long is done.

        Raises:
            BadValue: such as a judge that cannot be asked.
        """

    @abstractmethod
    def measure(
        self, model: Any, tokenizer: Any, items: Any, edits: Sequence[Edit], *, asking: str = "plain", seed: int = 0
    ) -> Sequence[Measured | None]:
        """Return what was measured of every edit; None where it has nothing to say of one.

        Args:
            items: the questions, pairs or facts of the table.
            asking: how questions become tokens, such as `"plain"`.
            seed: of whatever is drawn.
        """

    def says_nothing(self, unedited: Mapping[str, Mapping[str, Any]]) -> str | None:  # noqa: ARG002
        """Return why the figure can tell nothing of any edit, from the rows of the unedited model; None if it can."""
        return None

    def mute_on(self, model: Any, tokenizer: Any, items: Any) -> str | None:  # noqa: ARG002
        """Return `says_nothing` of a few items, having asked the unedited model, where that costs little; None else."""
        return None

    def without_model(self, train: Any, items: Any) -> Mapping[str, Mapping[str, Any]] | None:  # noqa: ARG002
        """Return the rows that the texts' style alone gives, learned from the training items; None where none does."""
        return None

    def summary(self, means: Float[np.ndarray, "... column"]) -> Any:
        """Return the figure from the means of its columns; intervals and tests resample items and go through it."""
        return means[..., 0]

    def describe(self) -> dict[str, Any]:
        """Return plain values that tell one meter from another."""
        own = {f.name: _plain(getattr(self, f.name)) for f in fields(self)} if is_dataclass(self) else {}
        return {"meter": type(self).__name__, "name": self.name, **own}


def _plain(value: Any) -> Any:
    if isinstance(value, Meter):
        return value.describe()
    if isinstance(value, Judge):
        return {"name": value.name, **value.record}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def as_meter(value: Any) -> Meter:
    """Return a meter as it is, and that of a class that needs nothing; raises `BadValue` for anything else."""
    if isinstance(value, Meter):
        return value
    if isinstance(value, type) and issubclass(value, Meter):
        return value()
    raise BadValue(f"{value!r:.60} is no meter: derive its class from trimtab.protocols.Meter and give an instance")


class Verdict(NamedTuple):
    """What a judge says of one answer; probabilities are as good as truth values."""

    true: float
    informative: float
    matched: bool = True
    """False if an exact judge does not know the answer (it then counts as neither true nor informative)."""


class Judge(ABC):
    """Says of answers to a question whether they are true and whether they are informative."""

    name: str
    """A short name for records."""
    record: Mapping[str, Any] = {}
    """What stands beside its figures: agreement with people, false accepts on nonsense."""

    cannot_fail: bool = False
    """Whether it can be asked again at any time at no cost, so that nothing is kept for it."""

    @abstractmethod
    def verdicts(self, question: Any, answers: Sequence[str]) -> list[Verdict]:
        """Return the verdict on each answer to the question, from 0 to 1."""

    def __call__(self, question: Any, answer: str) -> Any:
        """Return the verdict on one answer, as it was given."""
        return self.verdicts(question, [answer])[0]


@dataclass(frozen=True)
class CallableJudge(Judge):
    """A function `(question, answer) -> Verdict` as a judge, by its name and the `record` that it may carry."""

    function: Callable[[Any, str], Any]

    @property
    def name(self) -> str:
        """The record's name, or the function's, or its class's."""
        given = getattr(self.function, "__name__", type(self.function).__name__)
        return str(self.record.get("name", given))

    @property
    def record(self) -> Mapping[str, Any]:
        """What the function says of itself."""
        return getattr(self.function, "record", {})

    def verdicts(self, question: Any, answers: Sequence[str]) -> list[Any]:
        """Return what the function says of each answer."""
        return [self.function(question, answer) for answer in answers]


def as_judge(value: Any) -> Judge:
    """Return a judge as it is, and a function as a judge; raises `BadValue` for anything else, such as a class."""
    if isinstance(value, Judge):
        return value
    if isinstance(value, type) or not callable(value):
        raise BadValue(
            f"{value!r:.60} is no judge: derive its class from Judge and give an instance, or give a function "
            "(question, answer) -> Verdict"
        )
    return CallableJudge(value)


def require_order(parts: Sequence[Edit] | Sequence[Method]) -> None:
    """Raise `BadValue` where one that answers with a model of its own comes after one that would then not act."""
    for i, part in enumerate(parts):
        lost = [p.name for p in parts[:i] if not p.changes_prompt_only]
        if lost and part.replaces_model:
            raise BadValue(
                f"{part.name} answers with a model of its own, on which {lost[0]} would not act; put it first"
            )


@dataclass(frozen=True)
class Ready(Method):
    """An edit that is already made, as a method: the same in every fold, and without knobs."""

    edit: Edit

    @property
    def name(self) -> str:
        """The edit's name."""
        return self.edit.name

    @property
    def replaces_model(self) -> bool:
        """As of the edit."""
        return self.edit.replaces_model

    @property
    def changes_prompt_only(self) -> bool:
        """As of the edit."""
        return self.edit.changes_prompt_only

    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Knobs | None = None, seed: int = 0) -> Edit:  # noqa: ARG002
        """Return the edit; raises `BadValue` for any knob."""
        self.setting(knobs)
        return self.edit


def as_entrant(value: Any) -> Method | Control:
    """Return what a comparison compares: a method or a control as it is, an edit as a method that gives it.

    Raises:
        BadValue: anything else, such as a class in place of an instance.
    """
    if isinstance(value, Edit):
        return Ready(value)
    if isinstance(value, Method | Control):
        return value
    raise BadValue(
        f"{value!r:.60} is neither a Method, an Edit nor a Control; derive its class from one of these, and give an "
        "instance, as ITI()"
    )


def methods_and_controls(
    entrants: Mapping[str, Method | Control],
) -> tuple[dict[str, Method], dict[str, Control]]:
    """Return the methods and the controls among what a comparison compares, by name."""
    methods = {name: entrant for name, entrant in entrants.items() if isinstance(entrant, Method)}
    return methods, {name: entrant for name, entrant in entrants.items() if isinstance(entrant, Control)}
