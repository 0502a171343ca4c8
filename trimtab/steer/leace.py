"""leace: the least change of vectors after which no linear function of them says anything of a label."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.devices import one_thread
from trimtab.errors import BadDataset, BadValue
from trimtab.models.adding import Affine

SINGULAR = 0.01
"""Singular values of the whitened cross-covariance up to which a direction says nothing (as in concept-erasure)."""
Shrinkage = float | int | Literal["ledoit-wolf"]


def leace(x: Float[Tensor, "example width"], labels: Float[Tensor, "example k"], *, shrinkage: Shrinkage = 0) -> Affine:
    """Return `x -> x - W^+ U U^T W (x - mean)` of LEACE (Belrose et al. 2023, theorem 4.3), in float64.

    W is the inverse square root of the covariance of x, U spans W times the cross-covariance with the labels. On the
    examples themselves the cross-covariance is 0 afterwards, whatever W is; W makes it the least change in mean square.
    The change has as many columns as the labels, those that say nothing being zero.

    Args:
        labels: real numbers, or one column for each class but one.
        shrinkage: the share by which correlations are drawn to 0, variances staying; `"ledoit-wolf"` estimates it of
            the standardised examples (Ledoit & Wolf 2004). With fewer examples than dimensions, as pairs give, the
            covariance is singular, and without shrinkage the projection follows the sample's noise. Deviation:
            concept-erasure draws the covariance to a multiple of the identity, which a few huge dimensions of
            transformers would decide.

    Raises:
        BadDataset: no more examples than columns of labels and a mean, or labels that do not vary.
        BadValue: numbers that are not finite; a shrinkage outside 0 to 1.
    """
    x, z = x.double(), labels.double()
    n, k = z.shape
    if not bool(x.isfinite().all()) or not bool(z.isfinite().all()):
        raise BadValue("LEACE needs finite activations and labels; load the model in float32 or bfloat16")
    if n <= k + 1:
        raise BadDataset(f"{n} examples cannot tell {k + 1} classes apart; LEACE needs more examples than classes")
    if not bool((z != z[0]).any()):
        raise BadDataset(f"all {n} examples have one label; LEACE needs examples of both kinds")
    mean = x.mean(0)
    centred = x - mean
    covariance, cross = centred.T @ centred / n, centred.T @ (z - z.mean(0)) / n
    spread, turn = torch.linalg.eigh(_shrunk(centred, covariance, shrinkage))
    kept = spread > spread.abs().max() * x.shape[1] * torch.finfo(torch.float64).eps
    root = spread.clamp(min=0).sqrt()
    # pseudo-inverse: directions in which nothing varies are left alone
    whiten = (turn * torch.where(kept, 1 / root, 0)) @ turn.T
    colour = (turn * torch.where(kept, root, 0)) @ turn.T
    u, size, _ = torch.linalg.svd(whiten @ cross, full_matrices=False)
    u = u * (size > SINGULAR)
    return Affine(colour @ u, u.T @ whiten, mean)


def _shrunk(centred: Tensor, covariance: Tensor, shrinkage: Shrinkage) -> Float[Tensor, "width width"]:
    deviation = covariance.diagonal().sqrt()
    if shrinkage == "ledoit-wolf":
        from sklearn.covariance import ledoit_wolf_shrinkage

        standard = centred / deviation.clamp(min=torch.finfo(torch.float64).tiny)
        with one_thread("sklearn"):
            shrinkage = float(ledoit_wolf_shrinkage(standard.numpy(), assume_centered=True))
    if isinstance(shrinkage, str) or not 0 <= shrinkage <= 1:
        raise BadValue(f"shrinkage is a share from 0 to 1 or 'ledoit-wolf', got {shrinkage!r:.40}")
    return (1 - shrinkage) * covariance + shrinkage * deviation.square().diag()
