"""Fitting a linear probe for every head; validation is by question."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trimtab.activations.captured import HeadActivations
from trimtab.activations.shards import ActivationStore
from trimtab.devices import available_device
from trimtab.errors import BadValue, ShapeError
from trimtab.intervals import seeded
from trimtab.probes.by_layer import by_layer
from trimtab.probes.head_probes import HeadProbes, measured
from trimtab.probes.newton import newton_logistic
from trimtab.progress import tracked


def fit_logistic(
    acts: HeadActivations | ActivationStore,
    *,
    validation: float | HeadActivations | ActivationStore = 0.2,
    C: float | int = 1.0,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> HeadProbes:
    """Return an L2-regularised logistic regression per head (Li et al. 2023, section 3.1).

    The optimum of scikit-learn's default objective (no standardisation, intercept not penalised), found by Newton's
    method for all heads of a layer at once, on CPU and GPU alike, until the mean gradient in float64 is at most 1e-8
    (see `newton_logistic`): scikit-learn's default lbfgs stops early on correlated features. Activations in a store
    are read layer by layer.

    Args:
        validation: the share of questions to hold out for the accuracies, or activations of other questions.
        C: inverse strength of the penalty.
        seed: of the draw of validation questions.
        device: where to fit; the GPU if there is one, else the CPU, if not given.

    Raises:
        BadDataset: one class only, or too few questions to hold some out.
        BadValue: NaN activations, C not positive, a device that is not there, or validation questions that are
            training questions too; or the steps do not converge.
        ShapeError: validation activations of another geometry.
    """
    if not C > 0:
        raise BadValue(f"C must be positive, got {C}")
    if isinstance(acts, ActivationStore) or isinstance(validation, ActivationStore):
        return by_layer(
            lambda a, b: fit_logistic(a, validation=b, C=C, seed=seed, device=device), acts, validation, seed
        )
    train, held = _parts(acts, validation, seed)
    coef = torch.empty(train.values.shape[1:], dtype=torch.float64)
    intercept = torch.empty(coef.shape[:2], dtype=torch.float64)
    place = available_device(device)
    for layer in tracked(range(len(coef)), "fitting probes"):
        coef[layer], intercept[layer] = _fit_layer(train.values[:, layer].to(place), train.labels, C)
    record = {"kind": "logistic", "C": C, "seed": seed, "n_train": len(train), "activations": acts.record}
    return measured(coef, intercept, held, record)


def _fit_layer(
    x: Float[Tensor, "example head d_head"], labels: Bool[Tensor, " example"], C: float | int
) -> tuple[Float[Tensor, "head d_head"], Float[Tensor, " head"]]:
    fitted = newton_logistic(x, labels, C=C)
    return fitted.coef.cpu(), fitted.intercept.cpu()


def fit_mass_mean(
    acts: HeadActivations | ActivationStore,
    *,
    validation: float | HeadActivations | ActivationStore = 0.2,
    seed: int = 0,
) -> HeadProbes:
    """Return per head the difference of class means as a probe, its threshold midway between the means.

    Marks & Tegmark (2023), section 5, without the covariance tilt.

    Args:
        validation: the share of questions to hold out for the accuracies, or activations of other questions.
        seed: of the draw of validation questions.

    Raises:
        BadDataset, BadValue, ShapeError: as `fit_logistic`.
    """
    if isinstance(acts, ActivationStore) or isinstance(validation, ActivationStore):
        return by_layer(lambda a, b: fit_mass_mean(a, validation=b, seed=seed), acts, validation, seed)
    train, held = _parts(acts, validation, seed)
    coef, middle = _mean_difference(train)
    intercept = -torch.einsum("lhd,lhd->lh", coef, middle)
    record = {"kind": "mass_mean", "seed": seed, "n_train": len(train), "activations": acts.record}
    return measured(coef, intercept, held, record)


def shuffled(acts: HeadActivations, *, seed: int = 0) -> HeadActivations:
    """Return the activations with their labels permuted: a control in which no probe should read anything.

    Raises:
        BadValue: a seed that is no whole number of 0 or more.
    """
    order = torch.from_numpy(seeded(seed).permutation(len(acts)))
    return replace(acts, labels=acts.labels[order], record={**acts.record, "shuffled_labels": seed})


def _mean_difference(
    acts: HeadActivations,
) -> tuple[Float[Tensor, "layer head d_head"], Float[Tensor, "layer head d_head"]]:
    true, false = (acts.values[acts.labels == k].double().mean(0) for k in (True, False))
    return true - false, (true + false) / 2


def _parts(
    acts: HeadActivations, validation: float | HeadActivations, seed: int
) -> tuple[HeadActivations, HeadActivations]:
    acts.require_both_labels().require_finite()
    if isinstance(validation, HeadActivations):
        shared = set(acts.groups) & set(validation.groups)
        if shared:
            raise BadValue(f"{len(shared)} validation questions are also training questions; give others")
        if validation.layers != acts.layers:
            raise ShapeError(
                f"the validation activations are of layers {validation.layers}, the training ones of {acts.layers}; "
                "capture both from the same model"
            )
        return acts, validation.require_both_labels().require_finite()
    train, held = acts.split(test=validation, seed=seed)
    return train.require_both_labels(), held.require_both_labels()
