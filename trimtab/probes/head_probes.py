"""HeadProbes: one linear probe per head, how well each reads, and which read best."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from typing_extensions import TypedDict

from trimtab.activations.captured import HeadActivations
from trimtab.activations.labelled import Head
from trimtab.devices import one_thread
from trimtab.errors import BadValue, ShapeError
from trimtab.intervals import resampled_means
from trimtab.storage import load_result, save_result

TENSORS = ("coef", "intercept", "accuracy", "accuracy_low", "accuracy_high", "auroc", "separation")


class _Saved(TypedDict):
    layers: list[int]
    validation_questions: list[str]
    record: dict[str, Any]


@dataclass(frozen=True, repr=False)
class HeadProbes:
    """A linear probe for every head: `x @ coef + intercept > 0` reads "true"."""

    coef: Float[Tensor, "layer head d_head"]
    intercept: Float[Tensor, "layer head"]
    accuracy: Float[Tensor, "layer head"]
    """Share of validation statements read rightly."""
    accuracy_low: Float[Tensor, "layer head"]
    """Lower end of the 95 % bootstrap interval over validation questions."""
    accuracy_high: Float[Tensor, "layer head"]
    auroc: Float[Tensor, "layer head"]
    """Area under the ROC curve on the validation statements; ties count half."""
    separation: Float[Tensor, "layer head"]
    """How far apart the probe puts true and false validation statements (d', in standard deviations of its scores);
    tells heads apart that all read everything rightly."""
    layers: tuple[int, ...]
    validation_questions: tuple[str, ...]
    """The questions that the accuracies were measured on; the probes were not fitted on them."""
    record: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        layers, heads = self.accuracy.shape
        return f"HeadProbes({layers} layers of {heads}, best accuracy {float(self.accuracy.max()):.3f})"

    def top(self, k: int) -> tuple[Head, ...]:
        """Return the k best heads, best first: by accuracy, ties by AUROC, then by separation.

        Raises:
            BadValue: k is not between 1 and the number of heads.
        """
        n_layers, n_heads = self.accuracy.shape
        if not 1 <= k <= n_layers * n_heads:
            raise BadValue(f"top {k} heads asked for; the model has {n_layers * n_heads}, choose 1 to that many")
        order = np.lexsort([-x.flatten().numpy() for x in (self.separation, self.auroc, self.accuracy)])[:k]
        return tuple(Head(self.layers[i // n_heads], int(i % n_heads)) for i in order)

    def scores(self, acts: HeadActivations) -> Float[Tensor, "example layer head"]:
        """Return each statement's log-odds of being true, by every head's probe.

        Raises:
            ShapeError: activations of another geometry.
        """
        if acts.values.shape[1:] != self.coef.shape:
            raise ShapeError(
                f"probes of shape {tuple(self.coef.shape)} (layer head d_head) cannot read activations of "
                f"{tuple(acts.values.shape[1:])}; capture both from the same model and site"
            )
        values = acts.values.to(self.coef.dtype)
        along = einsum(values, self.coef, "example layer head d_head, layer head d_head -> example layer head")
        return along + self.intercept

    def accuracy_on(self, acts: HeadActivations) -> Float[Tensor, "layer head"]:
        """Return the share (0 to 1) of these statements that each head's probe reads rightly.

        Raises:
            ShapeError: activations of another geometry.
        """
        return ((self.scores(acts) > 0) == acts.labels[:, None, None]).double().mean(0)

    def save(self, path: str | Path) -> None:
        """Write the probes to a folder (safetensors and JSON), atomically.

        Raises:
            Incompatible: the folder holds something else or cannot be written.
        """
        record = {
            "layers": self.layers,
            "validation_questions": self.validation_questions,
            "record": self.record,
        }
        save_result(path, "probes", record, {name: getattr(self, name) for name in TENSORS})

    @classmethod
    def load(cls, path: str | Path) -> HeadProbes:
        """Return probes that `save` wrote; raises `Incompatible` for anything else."""
        record, tensors = load_result(path, "probes", fields=_Saved, names=TENSORS[:-1])
        tensors.setdefault(
            "separation", tensors["auroc"].new_zeros(tensors["auroc"].shape)
        )  # folders of before have none
        return cls(
            layers=tuple(record["layers"]),
            validation_questions=tuple(record["validation_questions"]),
            record=record["record"],
            **{name: tensors[name] for name in TENSORS},
        )


def joined(parts: Iterable[HeadProbes]) -> HeadProbes:
    """Return the probes of several layers, measured on the same questions, as one."""
    parts = list(parts)
    whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS}
    return replace(parts[0], layers=tuple(layer for part in parts for layer in part.layers), **whole)


@one_thread("scipy.stats")
def measured(
    coef: Float[Tensor, "head d_head"],
    intercept: Float[Tensor, " head"],
    validation: HeadActivations,
    record: dict[str, Any],
) -> HeadProbes:
    """Return one layer's probes with accuracy, its bootstrap interval and AUROC on the layer's validation statements.

    Raises:
        ShapeError: validation activations of another geometry than the coefficients.
    """
    from scipy.stats import mannwhitneyu  # a second of import that steering alone does not need

    empty = torch.zeros(1, len(intercept), dtype=torch.float64)
    bare = HeadProbes(coef[None], intercept[None], empty, empty, empty, empty, empty, validation.layers, (), record)
    scores = bare.scores(validation)[:, 0].double().numpy()
    labels = validation.labels.numpy()
    right = ((scores > 0) == labels[:, None]).astype(np.float64)
    questions, index = np.unique(np.asarray(validation.groups), return_inverse=True)
    per_question = np.zeros((len(questions), scores.shape[1] + 1))
    np.add.at(per_question, index, np.column_stack([right, np.ones(len(right))]))
    drawn = resampled_means(per_question)
    low, high = np.percentile(drawn[:, :-1] / drawn[:, -1:], [2.5, 97.5], axis=0)
    true, false = scores[labels], scores[~labels]
    # how often a true statement scores above a false one, ties counting half (Mann & Whitney 1947)
    above = mannwhitneyu(true, false, axis=0, method="asymptotic").statistic
    apart, spread = true.mean(0) - false.mean(0), np.sqrt((true.var(0) + false.var(0)) / 2)
    separation = np.divide(apart, spread, out=np.zeros_like(apart), where=spread > 0)
    auroc = above / (len(true) * len(false))
    found = dict(zip(TENSORS[2:], (right.mean(0), low, high, auroc, separation), strict=True))
    figures = {name: torch.from_numpy(values)[None] for name, values in found.items()}
    return replace(bare, validation_questions=tuple(questions.tolist()), **figures)
