"""RandomDirection: the control of whatever adds vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

from trimtab.errors import BadValue
from trimtab.protocols import Control, Edit

PRIME = 1_000_003
"""Far above the numbers of folds and draws, so that no two settings of a comparison share a seed."""


@dataclass(frozen=True)
class RandomDirection(Control):
    """The control of a shift: its heads or layers, each shifted by the same norm in a random direction.

    It has nothing to fit and nothing to choose, so it is no method: in a comparison it takes the shift that `follows`
    chose in the same fold and under the same seed, and draws other directions for it.
    """

    draws: int = 10
    """Draws in every fold and under every seed; one direction says little, as some random ones do act."""
    follows: str = "ITI"
    """The row whose shift it takes."""
    name: str = "Random direction"

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise BadValue(f"{self.name} needs two or more draws for an interval over them, got {self.draws}")

    def edits(self, after: Edit, n: int, *, seed: Sequence[int]) -> Iterator[Edit]:
        """Yield n shifts with random unit directions; the seed's numbers and the draw's alone decide each.

        Raises:
            BadValue: the edit adds no vectors.
        """
        for number in range(n):
            numbers = [*seed, number]
            yield after.randomised(one_seed(numbers)).renamed(self.name).with_record(seed=numbers)


def one_seed(numbers: Sequence[int]) -> int:
    """Return one seed for several numbers, each of which decides it; zeros before the last number add nothing.

    Of 32 bits, since torch's generator on the CPU reads no more; so the numbers cannot stand side by side in it.
    """
    return reduce(lambda whole, number: (whole * PRIME + number) % 2**32, numbers, 0)
