"""Fitting probes layer by layer, so that memory holds one layer of a store at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from trimtab.activations.captured import HeadActivations
from trimtab.activations.shards import ActivationStore
from trimtab.errors import ShapeError
from trimtab.probes.head_probes import HeadProbes

Fit = Callable[[HeadActivations, HeadActivations], HeadProbes]
"""Fits on the first, measures on the second."""


def by_layer(
    fit: Fit,
    acts: HeadActivations | ActivationStore,
    validation: float | HeadActivations | ActivationStore,
    seed: int,
) -> HeadProbes:
    """Return the probes that `fit` gives for each layer; the draw of validation questions is the same for all.

    Raises:
        ShapeError: training and validation activations are of different layers.
    """
    if isinstance(validation, HeadActivations | ActivationStore):
        train, held = acts, validation
    else:
        train, held = acts.split(test=validation, seed=seed)
    if held.layers != train.layers:
        raise ShapeError(
            f"the validation activations are of layers {held.layers}, the training ones of {train.layers}; "
            "capture both from the same model"
        )
    parts = [fit(train.layer(layer), held.layer(layer)) for layer in train.layers]
    names = ("coef", "intercept", "accuracy", "accuracy_low", "accuracy_high", "auroc")
    whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], layers=train.layers, **whole)
