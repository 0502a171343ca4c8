"""The linear algebra of editing: pure tensors in, the right factor of a low-rank change out, in float64.

`W` is d_out x d_in with `v = W k`; `K` are the keys to write (d_in x n), `R` what is to be added to `W K` (d_out x n),
`C` the uncentred second moment of the keys to keep (d_in x d_in). Every change is `R @ right` with `right` n x d_in.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import BadValue

ALIKE = 1e-6
"""The least eigenvalue of the correlations of keys above which they can be told apart in float32."""


def least_squares(
    keys: Float[Tensor, "d_in n"], moment: Float[Tensor, "d_in d_in"], weight: float | int
) -> Float[Tensor, "n d_in"]:
    """Return `K^T (weight C + K K^T)^-1`, the right factor of MEMIT's change (Meng et al. 2023, eq. 14).

    It minimises `|dW K - R|^2 + weight tr(dW C dW^T)`: `weight` is how many old keys C stands for. With weight 0 the
    new keys are written exactly and the old ones moved least (EMMET, Gupta et al. 2024), and with one key besides that
    is ROME (Meng et al. 2022, eq. 2).

    Raises:
        BadValue: C is singular; two keys are alike where they must be written exactly; a negative weight.
    """
    if not weight >= 0:
        raise BadValue(f"the weight of the old keys must be 0 or more, got {weight}")
    keys = keys.double()
    spread = torch.cholesky_solve(keys, _factor(moment.double(), "the moment of the old keys"))  # C^-1 K
    # K^T (w C + K K^T)^-1 = (w + K^T C^-1 K)^-1 K^T C^-1
    within = keys.T @ spread + weight * torch.eye(keys.shape[1], dtype=torch.float64, device=keys.device)
    size = within.diagonal().rsqrt()
    if weight == 0 and float(torch.linalg.eigvalsh(size[:, None] * within * size)[0]) < ALIKE:
        raise BadValue(
            "two facts have all but the same key, and cannot both be written exactly: write one, or use MEMIT"
        )
    return torch.cholesky_solve(spread.T, _factor(within, "the matrix of the facts' keys"))


def null_space(
    keys: Float[Tensor, "d_in n"], projector: Float[Tensor, "d_in d_in"], ridge: float | int
) -> Float[Tensor, "n d_in"]:
    """Return the right factor of AlphaEdit's change: ridge regression within a projector (Fang et al. 2025, eq. 14).

    The change is 0 on what the projector drops. Keys of earlier edits, the `K_p` there, are keys to which nothing is to
    be added: columns of `keys` whose rows of the factor are left out, as they are with `least_squares`.

    Raises:
        BadValue: a ridge that is not above 0.
    """
    if not ridge > 0:
        raise BadValue(f"the ridge must be above 0, got {ridge}")
    within = projector.double() @ keys.double()
    # K^T P (P K K^T P + ridge)^-1 = (K^T P K + ridge)^-1 K^T P
    gram = within.T @ within + ridge * torch.eye(within.shape[1], dtype=torch.float64, device=within.device)
    return torch.cholesky_solve(within.T, _factor(gram, "the matrix of the facts' keys"))


def projector(moment: Float[Tensor, "d_in d_in"], share: float) -> tuple[Float[Tensor, "d_in d_in"], int]:
    """Return the projector on the directions that carry the last `share` of C's trace, and how many they are.

    A share has the same meaning in every layer and model; an absolute threshold on the eigenvalues has none.

    Raises:
        BadValue: a share that is not between 0 and 1, or so small that no direction is left.
    """
    if not 0 < share < 1:
        raise BadValue(f"the share of the trace that may be written over is between 0 and 1, got {share}")
    values, vectors = torch.linalg.eigh(moment.double())
    n = int((values.clamp(min=0).cumsum(0) <= share * values.clamp(min=0).sum()).sum())
    if n == 0:
        raise BadValue(f"no direction carries as little as {share:g} of the old keys; give a larger share")
    kept = vectors[:, :n]
    return kept @ kept.T, n


def _factor(matrix: Float[Tensor, "n n"], what: str) -> Float[Tensor, "n n"]:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed.any()) or not bool(factor.isfinite().all()):
        raise BadValue(
            f"{what} is singular: give more text for the statistics, a larger ridge, or facts with other keys"
        )
    return factor
