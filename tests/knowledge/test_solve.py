"""The algebra of editing against the published formulas, by other ways of computing them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trimtab.errors import BadValue
from trimtab.knowledge.solve import least_squares, null_space, projector

D_IN, D_OUT = 12, 7


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(seed: int = 1) -> Tensor:
    keys = draw(D_IN, 40, seed=seed)
    return keys @ keys.T / 40


def test_one_key_is_written_exactly_and_what_is_orthogonal_to_it_stays():
    key, added, c = draw(D_IN, 1, seed=2), draw(D_OUT, 1, seed=3), moment()
    change = added @ least_squares(key, c, 0)
    assert float((change @ key - added).norm() / added.norm()) < 1e-10
    away = draw(D_IN, 1, seed=4)
    spread = torch.linalg.solve(c, key)
    away -= spread * (spread.T @ away) / (spread.T @ spread)
    assert float((change @ away).norm()) < 1e-10
    assert float((change @ draw(D_IN, 1, seed=5)).norm()) > 1e-3  # the control


def test_no_other_change_that_writes_the_key_moves_the_old_ones_less():
    key, added, c = draw(D_IN, 1, seed=2), draw(D_OUT, 1, seed=3), moment()

    def cost(change: Tensor) -> float:
        return float((change @ c @ change.T).trace())

    best = added @ least_squares(key, c, 0)
    for seed in range(20):
        other = draw(D_OUT, D_IN, seed=10 + seed)
        feasible = best + other - other @ key @ key.T / (key.T @ key)
        assert float((feasible @ key - added).norm()) < 1e-10
        assert cost(feasible) > cost(best)


def test_one_key_is_the_published_rank_one_formula():
    key, weight, value, c = draw(D_IN, seed=2), draw(D_OUT, D_IN, seed=6), draw(D_OUT, seed=3), moment()
    left = torch.linalg.inv(c) @ key
    left = left / left.norm()
    right = (value - weight @ key) / (key @ left)
    ours = (value - weight @ key)[:, None] @ least_squares(key[:, None], c, 0)
    torch.testing.assert_close(ours, right[:, None] @ left[None], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weight", [0.5, 30.0, 1e4])
def test_many_keys_are_the_published_least_squares(weight):
    keys, residual, c = draw(D_IN, 5, seed=2), draw(D_OUT, 5, seed=3), moment()
    published = residual @ keys.T @ torch.linalg.inv(weight * c + keys @ keys.T)
    torch.testing.assert_close(residual @ least_squares(keys, c, weight), published, rtol=1e-8, atol=1e-11)


def test_a_layer_writes_the_share_that_its_weight_says():
    key, c, weight = draw(D_IN, 1, seed=2), moment(), 7.0
    q = float(key.T @ torch.linalg.solve(c, key))
    assert float(least_squares(key, c, weight) @ key) == pytest.approx(q / (weight + q), rel=1e-9)
    assert float(least_squares(key, c, 1e-9) @ key) == pytest.approx(1, rel=1e-6)


def test_equality_writes_every_key_and_is_the_published_formula():
    keys, residual, c = draw(D_IN, 5, seed=2), draw(D_OUT, 5, seed=3), moment()
    change = residual @ least_squares(keys, c, 0)
    torch.testing.assert_close(change @ keys, residual, rtol=1e-8, atol=1e-9)
    spread = torch.linalg.inv(c) @ keys
    published = residual @ torch.linalg.inv(keys.T @ spread) @ spread.T
    torch.testing.assert_close(change, published, rtol=1e-8, atol=1e-10)


def test_the_null_space_change_is_the_published_one_and_is_nothing_outside():
    keys, earlier, residual = draw(D_IN, 4, seed=2), draw(D_IN, 3, seed=7), draw(D_OUT, 4, seed=3)
    project, n = projector(moment(), 0.3)
    assert 0 < n < D_IN
    torch.testing.assert_close(project @ project, project)
    change = residual @ null_space(torch.cat([keys, earlier], 1), project, 2.0)[:4]
    system = project @ (keys @ keys.T + earlier @ earlier.T) + 2.0 * torch.eye(D_IN, dtype=torch.float64)
    published = (torch.linalg.solve(system, project @ keys) @ residual.T).T
    torch.testing.assert_close(change, published, rtol=1e-8, atol=1e-10)
    assert float((change @ (torch.eye(D_IN, dtype=torch.float64) - project)).abs().max()) < 1e-12
    assert float((residual @ null_space(keys, project, 2.0) - change).abs().max()) > 1e-3  # earlier keys count


def test_within_all_directions_it_is_ridge_regression():
    keys, eye = draw(D_IN, 4, seed=2), torch.eye(D_IN, dtype=torch.float64)
    ridge = keys.T @ torch.linalg.inv(keys @ keys.T + 3.0 * eye)
    torch.testing.assert_close(null_space(keys, eye, 3.0), ridge, rtol=1e-9, atol=1e-12)


def test_the_projector_keeps_the_directions_of_the_last_share_of_the_trace():
    values = torch.tensor([0.1, 0.2, 0.7, 4.0, 5.0], dtype=torch.float64)
    project, n = projector(torch.diag(values), 0.1)
    assert n == 3
    torch.testing.assert_close(project, torch.diag(torch.tensor([1.0, 1, 1, 0, 0], dtype=torch.float64)))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: least_squares(draw(D_IN, 1), moment(), -1.0), "0 or more"),
        (lambda: least_squares(draw(D_IN, 1), torch.zeros(D_IN, D_IN), 0), "singular"),
        (lambda: least_squares(draw(D_IN, 1).expand(-1, 2), moment(), 0), "all but the same key"),
        (lambda: null_space(draw(D_IN, 1), moment(), 0.0), "above 0"),
        (lambda: projector(moment(), 1.0), "between 0 and 1"),
        (lambda: projector(torch.eye(D_IN), 0.01), "no direction"),
    ],
)
def test_what_cannot_be_solved_is_refused_in_one_sentence(call, words):
    with pytest.raises(BadValue, match=words):
        call()


def test_keys_that_are_all_but_the_same_are_not_written_exactly_by_a_huge_change():
    key = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(12, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moment = torch.eye(12, dtype=torch.float64)
    least_squares(key[:, None] + noise, moment, 0)
    with pytest.raises(BadValue, match="all but the same key"):
        least_squares(key[:, None] + 1e-6 * noise, moment, 0)
    least_squares(key[:, None] + 1e-6 * noise, moment, 1.0)
