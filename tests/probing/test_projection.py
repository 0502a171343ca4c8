"""The random projection of intrinsic-dimension tuning, as the matrix that it never makes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trimtab.peft.parts import projection
from trimtab.peft.parts.projection import Lift, mixed

D, TOTAL = 20, 50_000


def matrix(seed: int, n: int = TOTAL, start: int = 0) -> Tensor:
    columns = torch.eye(D, dtype=torch.float64)
    return torch.stack([Lift.apply(z, seed, start, torch.Size([n]), TOTAL) for z in columns], dim=1)


def test_each_row_has_one_entry_and_columns_are_orthogonal_and_of_unit_length():
    p = matrix(0)
    assert torch.equal((p != 0).sum(1), torch.ones(TOTAL, dtype=torch.long))
    assert torch.equal(p.abs().amax(1), torch.full((TOTAL,), math.sqrt(D / TOTAL), dtype=torch.float64))
    gram = p.T @ p
    assert torch.equal(gram, torch.diag(gram.diagonal()))
    # n rows in a bucket are binomial with mean 2500 and deviation 49
    torch.testing.assert_close(gram.diagonal(), torch.ones(D, dtype=torch.float64), rtol=0, atol=5 * 49 / 2500)


def test_signs_are_fair_and_independent_of_places_and_neighbours():
    p = matrix(0)
    signs, places = p.sum(1).sign(), p.abs().argmax(1)
    sigma = TOTAL**-0.5
    assert abs(float(signs.mean())) < 5 * sigma
    assert abs(float((signs[1:] * signs[:-1]).mean())) < 5 * sigma
    for k in range(D):
        assert abs(float(signs[places == k].mean())) < 5 * sigma * math.sqrt(D)
    same_as_next = float((places[1:] == places[:-1]).double().mean())
    assert abs(same_as_next - 1 / D) < 5 * math.sqrt(1 / D / TOTAL)


def test_another_seed_is_another_projection_and_shares_nothing_with_it():
    one, other = matrix(0), matrix(1)
    assert torch.equal(one, matrix(0))
    overlap = float((one * other).sum().abs() / (one * one).sum())
    assert overlap < 0.01
    assert float(((one != 0) == (other != 0)).all(1).double().mean()) < 2 / D


def test_a_part_is_the_rows_of_the_whole_however_it_is_cut(monkeypatch):
    whole, z = matrix(3), torch.randn(D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(projection, "CHUNK", 7)
    part = Lift.apply(z, 3, 100, torch.Size([5, 8]), TOTAL)
    torch.testing.assert_close(part, (whole[100:140] @ z).view(5, 8))


def test_the_gradient_is_that_of_the_matrix():
    z = torch.randn(D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: Lift.apply(v, 5, 11, torch.Size([6, 10]), TOTAL), (z,))


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_hashes_are_those_of_splitmix64_in_unbounded_integers(seed):
    mask = (1 << 64) - 1

    def by_hand(x: int) -> int:
        x = (x * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    places = [0, 1, 2, 10**6, 2**33]
    expected = [by_hand((place + by_hand(seed)) & mask) & (2**63 - 1) for place in places]
    assert mixed(torch.tensor(places), seed).tolist() == expected
