"""Fitting a linear probe for every head; validation is by question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.activations.captured import HeadActivations
from trimtab.activations.labelled import LabelledActivations
from trimtab.devices import available_device
from trimtab.errors import BadValue, ShapeError
from trimtab.intervals import seeded
from trimtab.probes.head_probes import HeadProbes, joined, measured
from trimtab.probes.newton import newton_logistic
from trimtab.progress import tracked

Probe: TypeAlias = tuple[Float[Tensor, "head d_head"], Float[Tensor, " head"]]
"""Weights and intercept of every head's probe in one layer."""


def fit_logistic(
    acts: LabelledActivations,
    *,
    validation: float | LabelledActivations = 0.2,
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
    place = available_device(device)

    def fit(train: HeadActivations) -> Probe:
        fitted = newton_logistic(train.values[:, 0].to(place), train.labels, C=C)
        return fitted.coef.cpu(), fitted.intercept.cpu()

    return _fit_layers(fit, acts, validation, {"kind": "logistic", "C": C, "seed": seed})


def fit_mass_mean(
    acts: LabelledActivations,
    *,
    validation: float | LabelledActivations = 0.2,
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

    def fit(train: HeadActivations) -> Probe:
        true, false = (train.values[train.labels == k, 0].double().mean(0) for k in (True, False))
        return true - false, -((true - false) * (true + false)).sum(-1) / 2

    return _fit_layers(fit, acts, validation, {"kind": "mass_mean", "seed": seed})


def shuffled(acts: HeadActivations, *, seed: int = 0) -> HeadActivations:
    """Return the activations with their labels permuted: a control in which no probe should read anything.

    Raises:
        BadValue: a seed that is no whole number of 0 or more.
    """
    order = torch.from_numpy(seeded(seed).permutation(len(acts)))
    return replace(acts, labels=acts.labels[order], record={**acts.record, "shuffled_labels": seed})


def _fit_layers(
    fit: Callable[[HeadActivations], Probe],
    acts: LabelledActivations,
    validation: float | LabelledActivations,
    record: dict[str, Any],
) -> HeadProbes:
    """Return every layer's probes, fitted and measured one layer after another, so that memory need hold but one."""
    train, held = _parts(acts, validation, record["seed"])
    record = {**record, "n_train": len(train), "activations": acts.record}
    return joined(
        measured(*fit(train.layer(layer)), held.layer(layer), record)
        for layer in tracked(train.layers, "fitting probes")
    )


def _parts(
    acts: LabelledActivations, validation: float | LabelledActivations, seed: int
) -> tuple[LabelledActivations, LabelledActivations]:
    acts.require_both_labels().require_finite()
    if isinstance(validation, LabelledActivations):
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
