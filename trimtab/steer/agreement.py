"""How far directions and heads move between two loads of one model, such as bfloat16 and 4 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from trimtab.activations.captured import HeadActivations
from trimtab.activations.labelled import Head
from trimtab.errors import BadDataset, BadValue, Incompatible, ShapeError
from trimtab.evaluate.multiple_choice import MultipleChoice
from trimtab.intervals import Estimate, bootstrap_mean
from trimtab.models.identity import differing_weight
from trimtab.probes.head_probes import HeadProbes
from trimtab.steer.directions import MassMean


@dataclass(frozen=True)
class Agreement:
    """How two precisions of a model agree; 1 and 0 differences are full agreement."""

    cosine: Float[Tensor, "layer head"]
    """Cosine between the two mass-mean directions of each head."""
    top: tuple[Head, ...]
    """The K best heads of the first, best first."""
    other_top: tuple[Head, ...]
    mc1: Estimate | None
    """MC1 of the other minus MC1 of the first, over the same questions; None where it was not measured."""

    @property
    def shared(self) -> tuple[Head, ...]:
        """The heads that are among the K best of both, in the first's order."""
        return tuple(head for head in self.top if head in self.other_top)

    @property
    def overlap(self) -> float:
        """Share of the K best heads that both have."""
        return len(self.shared) / len(self.top)

    @property
    def chance_overlap(self) -> float:
        """The overlap to expect of two sets of K heads drawn at random."""
        return len(self.top) / self.cosine.numel()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "cosine": self.cosine.tolist(),
            "top": [list(h) for h in self.top],
            "other_top": [list(h) for h in self.other_top],
            "overlap": self.overlap,
            "chance_overlap": self.chance_overlap,
            "mc1": None if self.mc1 is None else self.mc1.as_dict(),
        }


def agreement(
    acts: HeadActivations | MassMean,
    probes: HeadProbes,
    other_acts: HeadActivations | MassMean,
    other_probes: HeadProbes,
    *,
    top_k: int = 8,
    scores: tuple[MultipleChoice, MultipleChoice] | None = None,
) -> Agreement:
    """Return how far directions, the best heads and MC1 of one model move in the other.

    Args:
        acts: activations of the first model, or their mass means.
        probes: the probes fitted on them.
        other_acts: those of the other model, for the same statements in the same order.
        other_probes: fitted with the same seed, so that both are validated on the same questions.
        scores: multiple choice of both models on the same questions in the same convention, steered or not.

    Raises:
        ShapeError: another number of layers or heads: the two are not one model.
        Incompatible: another checkpoint of the same architecture.
        BadDataset: other statements or questions, or asked in another convention.
        BadValue: more heads asked for than there are; probes validated on different questions; NaN.
    """
    one, other = (a if isinstance(a, MassMean) else MassMean.of(a) for a in (acts, other_acts))
    if one.layers != other.layers or one.values.shape != other.values.shape:
        raise ShapeError(
            f"activations {tuple(one.values.shape)} and {tuple(other.values.shape)} differ (layer head d_head); "
            "compare two loads of one model"
        )
    weight = differing_weight(one.model, other.model) if one.model and other.model else None
    if weight is not None:
        raise Incompatible(f"the two are of different checkpoints: {weight} differs; compare two loads of one model")
    if one.statements != other.statements:
        raise BadDataset("the two models were shown other statements; capture the same ones in the same order")
    if probes.validation_questions != other_probes.validation_questions:
        raise BadValue("the two sets of probes were validated on other questions; fit both with the same seed")
    cosine = cosine_similarity(one.values, other.values, dim=-1)
    return Agreement(cosine, probes.top(top_k), other_probes.top(top_k), None if scores is None else _mc1(*scores))


def _mc1(one: MultipleChoice, other: MultipleChoice) -> Estimate:
    if [row.question for row in one.rows] != [row.question for row in other.rows]:
        raise BadDataset("the two models were asked other questions; ask the same ones in the same order")
    if one.convention != other.convention:
        raise BadDataset(f"MC1 was measured as {one.convention} and as {other.convention}; measure both in one way")
    return bootstrap_mean([b.mc1 - a.mc1 for a, b in zip(one.rows, other.rows, strict=True)])
