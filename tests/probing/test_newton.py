"""The batched Newton solver against scikit-learn's optimum, on features that are easy and hard."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tests.planted import activations
from trimtab.errors import BadValue
from trimtab.probes import fit_logistic, newton
from trimtab.probes.newton import HeadRegressions, newton_logistic


def features(
    kind: str, *, heads: int = 3, n: int = 400, d: int = 16, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, heads, d, generator=generator, dtype=torch.float64)
    if kind == "correlated":  # the spectrum on which lbfgs stops early, and one dimension far larger than the rest
        basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
        x = x * torch.logspace(0, -3, d, dtype=torch.float64) @ basis
        x[..., 0] *= 30
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    return x, (x[:, 0, :4].sum(1) / x[:, 0, :4].sum(1).std() + noise > 0.3)


def optimum(x: torch.Tensor, y: torch.Tensor, C: float) -> tuple[np.ndarray, np.ndarray]:
    fits = [
        LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(x[:, h].numpy(), y.numpy())
        for h in range(x.shape[1])
    ]
    return np.stack([f.coef_[0] for f in fits]), np.array([f.intercept_[0] for f in fits])


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("kind", ["independent", "correlated"])
def test_it_reaches_scikit_learns_optimum(kind: str, C: float) -> None:
    x, y = features(kind)
    coef, intercept = optimum(x, y, C)
    found = newton_logistic(x, y, C=C)
    np.testing.assert_allclose(found.coef.numpy(), coef, atol=1e-6 * np.abs(coef).max())
    np.testing.assert_allclose(found.intercept.numpy(), intercept, atol=1e-6)
    assert found.gradient <= 1e-8


@pytest.mark.parametrize("kind", ["independent", "correlated"])
def test_float32_features_give_the_same_probes(kind: str) -> None:
    x, y = features(kind)
    coef, _ = optimum(x.float().double(), y, 1.0)
    found = newton_logistic(x.float(), y)
    np.testing.assert_allclose(found.coef.numpy(), coef, atol=1e-6 * np.abs(coef).max())
    # the control: scikit-learn's default solver is further away on the hard features
    if kind == "correlated":
        lbfgs = LogisticRegression().fit(x[:, 0].numpy(), y.numpy()).coef_[0]
        assert np.abs(lbfgs - coef[0]).max() > np.abs(found.coef[0].numpy() - coef[0]).max()


def gradient(x: torch.Tensor, y: torch.Tensor, found: HeadRegressions, C: float) -> float:
    """Return the largest entry of any head's gradient over C times the examples, written out in NumPy."""
    features, coef = x.double().numpy(), found.coef.numpy()
    margins = np.einsum("ehd,hd->eh", features, coef) + found.intercept.numpy()
    wrong = 1 / (1 + np.exp(-margins)) - y.numpy()[:, None]
    slope = C * np.einsum("ehd,eh->hd", features, wrong) + coef
    return float(max(np.abs(slope).max(), np.abs(C * wrong.sum(0)).max()) / (C * len(y)))


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("kind", ["independent", "correlated"])
def test_the_gradient_at_the_end_is_what_is_said_and_within_the_tolerance(kind: str, C: float) -> None:
    x, y = features(kind)
    found = newton_logistic(x.float(), y, C=C)
    assert gradient(x.float(), y, found, C) == pytest.approx(found.gradient, abs=1e-10)
    assert found.gradient <= 1e-8
    # the control: a step of a millionth away from the optimum shows
    assert gradient(x.float(), y, found._replace(coef=found.coef + 1e-6), C) > 1e-8


@pytest.mark.parametrize("kind", ["a wide spectrum", "a large offset", "constant and equal features", "few rows"])
def test_ill_conditioned_float32_features_reach_the_optimum_of_float64(kind: str) -> None:
    x, y = features("independent")
    if kind == "a wide spectrum":  # eight decades of the standard deviation: float32 cannot factorise this
        basis = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)).double()).Q
        x = x * torch.logspace(4, -4, 16, dtype=torch.float64) @ basis
    elif kind == "a large offset":
        x = x + 1000
    elif kind == "constant and equal features":
        x[..., 3], x[..., 4], x[..., 5] = 0, 7, x[..., 6]
    else:
        x, y = x[:8], torch.arange(8) % 2 == 0
    x = x.float()
    coef, intercept = optimum(x.double(), y, 1.0)
    found = newton_logistic(x, y)
    np.testing.assert_allclose(found.coef.numpy(), coef, atol=1e-6 * np.abs(coef).max())
    np.testing.assert_allclose(found.intercept.numpy(), intercept, rtol=1e-5, atol=1e-5)
    assert gradient(x, y, found, 1.0) <= 2e-8  # the sum written out above is rounded, too


def test_heads_fitted_in_blocks_are_the_same_as_together(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = features("correlated", heads=5)
    together = newton_logistic(x.float(), y)
    monkeypatch.setattr(newton, "BLOCK_BYTES", 2 * 4 * 400 * 17)  # two heads a block, the last one alone
    apart = newton_logistic(x.float(), y)
    torch.testing.assert_close(apart.coef, together.coef, rtol=0, atol=1e-6)
    assert not torch.allclose(apart.coef[0], apart.coef[4], atol=1e-2)  # the control: heads differ


def test_separable_classes_converge_too() -> None:
    x = torch.linspace(-1, 1, 60, dtype=torch.float64)[:, None, None].expand(-1, 2, 3).contiguous()
    y = x[:, 0, 0] > 0
    coef, _ = optimum(x, y, 10.0)
    np.testing.assert_allclose(newton_logistic(x, y, C=10.0).coef.numpy(), coef, rtol=1e-6)


def test_too_few_steps_are_an_error_that_says_so() -> None:
    x, y = features("independent")
    with pytest.raises(BadValue, match=r"did not converge in 1 Newton steps \(gradient"):
        newton_logistic(x, y, C=1e6, max_steps=1)


def test_fitting_on_a_named_device_is_the_same_probe() -> None:
    acts = activations(60)
    on_cpu, by_default = fit_logistic(acts, device="cpu"), fit_logistic(acts)
    torch.testing.assert_close(on_cpu.coef, by_default.coef, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_fitting_on_a_gpu_is_the_same_probe() -> None:
    acts = activations(60)
    torch.testing.assert_close(
        fit_logistic(acts, device="cuda").coef, fit_logistic(acts, device="cpu").coef, rtol=1e-3, atol=1e-4
    )
