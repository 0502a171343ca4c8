"""ItemSet: what every data set is, a named sequence of items whose splits never part an item."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, SupportsIndex, TypeVar, overload

import numpy as np

from trimtab.datasets.asking import asking_for, has_template
from trimtab.errors import BadDataset, BadValue
from trimtab.intervals import number_held_out, seeded
from trimtab.plain_values import hash_of


class Item(Protocol):
    """One question, pair or meaning."""

    @property
    def key(self) -> str:
        """What tells it from the others of a set, also after a split; rows of measurements are found by it."""
        ...

    @property
    def asked(self) -> str:
        """What a model is asked or given to continue."""
        ...


if TYPE_CHECKING:
    from typing import Self

    ItemT = TypeVar("ItemT", bound=Item)
else:
    # what checks annotations as the code runs knows no Self outside the classes that it decorates, and asks for all
    # that an Item has, such as its key, at every look at a set
    Self, ItemT = Any, TypeVar("ItemT")


class ItemSet(Sequence[ItemT]):
    """A sequence of items; slices, splits and folds are sets of the same kind.

    A kind of data is a dataclass that derives from it, has a tuple of its items as the first field, and gives `texts`.
    """

    name: str
    measured_by: ClassVar[str]
    """Which meters speak of it if nobody says: a key of `trimtab.evaluate.defaults.DEFAULTS`."""
    item_word: ClassVar[str] = "question"
    """What one of its items is called in reports."""
    taught: ClassVar[bool] = False
    """Whether methods are measured by the items that they were fitted on, as with facts: what is asked is whether that
    which was written is said, and what it did to paraphrases and neighbours, which nothing was fitted on."""

    @property
    def items(self) -> tuple[ItemT, ...]:
        """The items in order."""
        return getattr(self, _fields(self)[0])

    def with_items(self, items: tuple[ItemT, ...]) -> Self:
        """Return a set of these items that is like this one otherwise."""
        return _replaced(self, {_fields(self)[0]: items})

    @abstractmethod
    def texts(self, item: ItemT) -> Sequence[Any]:
        """Return an item's texts, for the fingerprint."""

    form: Any = None
    """How its items are put to a model, a `Form`; None for the set's own way."""

    def asked_as(self, asking: str, tokenizer: Any = None) -> Self:
        """Return the set whose items are put to a model in this way: statements, measurements and tuning follow it.

        Args:
            asking: `"plain"`, `"bare"`, `"primer"` or `"chat"`; `"auto"` keeps the way that the set has, else takes the
                chat template where there is one. Items that are no questions, such as facts, have one way only.
            tokenizer: the model's own.

        Raises:
            BadValue: an unknown name, or a template is asked for and there is none.
        """
        if asking == "auto" and (self.form is not None or not has_template(tokenizer)):
            return self
        return self.with_form(asking_for(asking, tokenizer))

    def with_form(self, form: Any) -> Self:
        """Return the set whose items are put to a model in this form; itself where they have one way only."""
        return _replaced(self, {"form": form}) if "form" in _fields(self) else self

    def form_for(self, item: ItemT) -> Any:  # noqa: ARG002
        """Return the `Form` in which an item is put to a model; raises `BadDataset` where items have none."""
        raise BadDataset(f"{self.name} is asked in no form; give questions or contrast pairs")

    @property
    def asking(self) -> str:
        """The name of the way in which its items are put to a model."""
        return "plain" if self.form is None else self.form.name

    def statements(self, format: Any = None) -> list[Any]:  # noqa: ARG002
        """Return every item's texts as labelled statements; raises `BadDataset` where items have no two sides."""
        raise BadDataset(f"{self.name} has no true and false statements; give questions or contrast pairs")

    def shuffled(self, seed: int) -> Self:  # noqa: ARG002
        """Return the items, each with its texts dealt to its sides at random; raises `BadDataset` as `statements`."""
        raise BadDataset(f"{self.name} has no true and false statements to shuffle; give questions or contrast pairs")

    def require_distinct(self, what: str, advice: str) -> None:
        """Raise `BadDataset` if there are no items or one stands twice."""
        if not self.items:
            raise BadDataset(f"{self.name}: no {what}; at least one is needed")
        for key, times in Counter(item.key for item in self.items).most_common(1):
            if times > 1:
                raise BadDataset(f"{self.name}: {key!r} stands {times} times; {advice}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} items)"

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[ItemT]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: SupportsIndex) -> ItemT: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: SupportsIndex | slice) -> ItemT | Self:
        """Return one item, or a set for a slice."""
        return self.with_items(self.items[index]) if isinstance(index, slice) else self.items[index]

    def select(self, indices: Iterable[SupportsIndex]) -> Self:
        """Return the items at these places, in this order."""
        return self.with_items(tuple(self.items[int(i)] for i in indices))

    def where(self, keep: Callable[[ItemT], bool]) -> Self:
        """Return the items for which `keep` is true; raises `BadDataset` if there is none."""
        return self.with_items(tuple(item for item in self.items if keep(item)))

    @property
    def fingerprint(self) -> str:
        """A hash of all texts, for records: equal sets in equal order have equal fingerprints."""
        rows = [self.texts(item) for item in self.items]
        return hash_of(json.dumps(rows, ensure_ascii=False))[:16]

    def split(self, *, test: float = 0.5, seed: int = 0) -> tuple[Self, Self]:
        """Return (train, test); `test` is the share of items held out. Order within a side is the set's own.

        Raises:
            BadDataset: one side would be empty.
            BadValue: a seed that is no whole number of 0 or more.
        """
        n_test = number_held_out(test, len(self), f"{self.name}: ")
        order = seeded(seed).permutation(len(self))
        return self.select(sorted(order[n_test:])), self.select(sorted(order[:n_test]))

    def folds(self, n: int, seed: int = 0) -> list[tuple[Self, Self]]:
        """Return n pairs (train, test) whose test parts cover every item once.

        Raises:
            BadValue: fewer than 2 folds or more than there are items; a seed that is no whole number of 0 or more.
        """
        if not 2 <= n <= len(self):
            raise BadValue(f"{self.name}: cannot make {n} folds of {len(self)} questions; choose 2 to {len(self)}")
        parts = np.array_split(seeded(seed).permutation(len(self)), n)
        everything = set(range(len(self)))
        return [(self.select(sorted(everything - set(p.tolist()))), self.select(sorted(p))) for p in parts]


def _fields(items: Any) -> list[str]:
    return [f.name for f in fields(items)] if is_dataclass(items) else []


def _replaced(items: Any, values: dict[str, Any]) -> Any:
    return replace(items, **values)
