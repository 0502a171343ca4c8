"""The batched Newton solver against scikit-learn's optimum, on features that are easy and hard."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tests.planted import activations
from trimtab.errors import BadValue
from trimtab.probes import fit_logistic
from trimtab.probes.newton import newton_logistic


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
def test_float32_features_give_the_same_probes_to_float32_accuracy(kind: str) -> None:
    x, y = features(kind)
    coef, _ = optimum(x.float().double(), y, 1.0)
    found = newton_logistic(x.float(), y)
    np.testing.assert_allclose(found.coef.numpy(), coef, atol=2e-3 * np.abs(coef).max())
    # the control: scikit-learn's default solver is further away on the hard features
    if kind == "correlated":
        lbfgs = LogisticRegression().fit(x[:, 0].numpy(), y.numpy()).coef_[0]
        assert np.abs(lbfgs - coef[0]).max() > np.abs(found.coef[0].numpy() - coef[0]).max()


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
