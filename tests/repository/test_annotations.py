"""The checks of annotations that tests run under (tests/conftest.py) see what they are for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import beartype
import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from torch import Tensor

checked = jaxtyping.jaxtyped(typechecker=beartype.beartype)  # what stands before each function of the package


@checked
def beside(x: Float[Tensor, " row"], y: Float[Tensor, " row"], n: int = 2) -> Float[Tensor, "row 2"]:
    return torch.stack([x, y], 1).repeat(1, n)[:, :n] if n else torch.zeros(1, 2)


@checked
def twice(x: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    return beside(torch.zeros(len(x) + 1), torch.zeros(len(x) + 1))[1:, 0]


@checked
def halves(x: Float[Tensor, " row"]) -> Iterator[Float[Tensor, " half"]]:
    yield from x.chunk(2)


@checked
def plain(name: str, factor: float) -> str:
    return name if factor else factor  # pyright: ignore


@checked
@dataclass(frozen=True)
class Pair:
    left: Float[Tensor, "row d"]
    right: Float[Tensor, " row"]


def test_what_keeps_its_annotations_passes():
    assert beside(torch.zeros(3), torch.ones(3)).shape == (3, 2)
    assert twice(torch.zeros(3)).shape == (3,)  # the sizes of a function that is called are its own
    assert [len(half) for half in halves(torch.zeros(5))] == [3, 2]
    assert plain("a", 1.0) == "a" and Pair(torch.zeros(2, 3), torch.zeros(2)).left.shape == (2, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: beside(torch.zeros(3), torch.zeros(4)),
        lambda: beside(torch.zeros(3, 1), torch.zeros(3)),
        lambda: beside(torch.zeros(3), torch.zeros(3).long()),
        lambda: beside(torch.zeros(3), torch.zeros(3), n=3),  # what comes out
        lambda: beside(torch.zeros(3), torch.zeros(3), n=0),  # another size of the same name comes out
        lambda: plain("a", 1),
        lambda: plain("a", 0.0),
        lambda: Pair(torch.zeros(2, 3), torch.zeros(3)),
    ],
)
def test_what_breaks_them_is_seen_and_not_where_checks_are_off(call, request):
    with pytest.raises(BeartypeCallHintViolation):
        call()
    request.getfixturevalue("unchecked")
    with suppress(RuntimeError):  # torch's own, of tensors that do not fit
        call()
