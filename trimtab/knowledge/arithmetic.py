"""Weights as vectors: what tuning adds to a model's weights, added up, taken away and merged (Ilharco et al. 2023)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

from trimtab.edits.weight_edit import WeightEdit
from trimtab.errors import BadValue, Incompatible
from trimtab.knowledge.merge_rules import MergeRule
from trimtab.models.anatomy import base_of, untouched_layers
from trimtab.models.identity import common_model, fingerprint
from trimtab.models.weights import LowRank, WeightChange, as_whole, differences, inner_product
from trimtab.protocols import Cost, Edit


def task_vector(model: Any, edit: Edit) -> WeightEdit:
    """Return what an edit adds to the model's weights, its strength worked in, as an edit that can be added up.

    An update of low rank, as LoRA's is, stays one, exactly; of all other edits that can be merged it is the difference
    that merging makes, in float32 (bytes as many as the changed weights').

    Raises:
        BadValue: the edit is no change of weights (a prompt, vectors in a model without biases), or changes nothing.
        Incompatible: it was made for another model, or brings weights that the model does not have.
    """
    known = edit.weight_changes(model)
    changes = differences(base_of(model), edit.merged(model)) if known is None else known
    made = {"task_vector_of": edit.describe(), "questions": list(edit.fitted_on)}
    return _vector(model, changes, edit.name, edit.cost, made)


def task_vector_between(base: Any, tuned: Any, *, name: str = "Task vector") -> WeightEdit:
    """Return what a tuned model's weights have more than those of the model that it was tuned from.

    Norms and biases belong to it, tied embeddings stand in it once.

    Raises:
        Incompatible: models of other weights or shapes (another vocabulary is one).
        BadValue: quantised weights; equal models.
    """
    ours, theirs = fingerprint(base)["geometry"], fingerprint(tuned)["geometry"]
    differing = [f"{key} {theirs[key]} against {ours[key]}" for key in ours if ours[key] != theirs[key]]
    if differing:
        raise Incompatible(f"the two models are not of one base: {', '.join(differing)}; name a checkpoint of this one")
    changes = differences(base_of(base), base_of(tuned))
    weights = dict(base_of(base).named_parameters())
    moved, size = (
        math.sqrt(sum(float(part[key].detach().double().square().sum()) for key in changes))
        for part in (changes, weights)
    )
    if moved > size > 0:
        warnings.warn(
            f"{name} is {moved / size:.1f} times as large as the weights it changes: is the model that it is of tuned "
            "from this one?",
            stacklevel=2,
        )
    return _vector(base, changes, name, Cost(), {"task_vector_of": {"model": fingerprint(tuned)["name"]}})


def combined(
    model: Any,
    vectors: Sequence[WeightEdit],
    weights: Sequence[float | int] | None = None,
    *,
    rule: MergeRule | None = None,
    name: str = "",
) -> WeightEdit:
    """Return one edit of several task vectors: their weighted sum, or what a rule (`TIES`, `DARE`) makes of them.

    Negative weights take away: an analogy is `combined(model, [c, b, a], [1, 1, -1])`, the contrastive difference of
    two adapters `combined(model, [good, bad], [1, -1])`. In the sum, changes of low rank stay of low rank (their
    factors are put side by side: adding A's and B's apart, as PEFT's `linear` does, is another function); a rule's
    result is whole.

    Raises:
        Incompatible: they were made for different models.
        BadValue: no vectors; other than one finite weight for each; a result that changes nothing.
    """
    weights = [1.0] * len(vectors) if weights is None else [float(weight) for weight in weights]
    if not vectors or len(weights) != len(vectors) or not all(map(math.isfinite, weights)):
        raise BadValue(f"one finite weight for each of one or more vectors, got {len(vectors)} with weights {weights}")
    for other in vectors[1:]:
        common_model(vectors[0], other)
    names = [f"{weight:+g} {vector.name}" for vector, weight in zip(vectors, weights, strict=True)]
    if rule is None:
        total = reduce(add, _alike(model, [v.scaled(w) for v, w in zip(vectors, weights, strict=True)]))
        changes = total.weight_changes(model)
    else:
        wholes = [{name: as_whole(model, name, c) for name, c in v.weight_changes(model).items()} for v in vectors]
        changes = rule.merged(wholes, weights)
    made = {
        "combined": [v.describe() for v in vectors],
        "weights": weights,
        **({} if rule is None else rule.describe()),
        "questions": sorted({key for vector in vectors for key in vector.fitted_on}),
        "facts": [key for vector in vectors for key in vector.record.get("facts", ())],
    }
    cost = sum((vector.cost for vector in vectors), Cost())
    return _vector(model, changes, name or " ".join(names), cost, made)


def cosine(model: Any, one: WeightEdit, other: WeightEdit) -> float:
    """Return the cosine between two edits' changes, all weights together."""
    a, b = (edit.weight_changes(model) for edit in _alike(model, [one, other]))
    dot, *squares = (
        sum(inner_product(x[name], y[name]) for name in x.keys() & y.keys()) for x, y in ((a, b), (a, a), (b, b))
    )
    return dot / (math.sqrt(math.prod(squares)) or 1.0)


def _alike(model: Any, vectors: Sequence[WeightEdit]) -> Sequence[WeightEdit]:
    """Return the vectors as they are where their changes of each weight are of one kind, else all as whole tensors."""
    kinds: dict[str, set[bool]] = {}
    for vector in vectors:
        for name, change in vector.changes.items():
            kinds.setdefault(name, set()).add(isinstance(change, LowRank))
    mixed = any(len(kind) > 1 for kind in kinds.values())
    return [vector.whole(model) for vector in vectors] if mixed else vectors


def _vector(
    model: Any, changes: Mapping[str, WeightChange], name: str, cost: Cost, made: Mapping[str, Any]
) -> WeightEdit:
    if not changes:
        raise BadValue(f"{name} changes no weight of the model: there is nothing to add or to take away")
    return WeightEdit(
        dict(changes),
        name=name,
        unchanged_layers=untouched_layers(model, changes),
        cost=cost,
        record={"model": fingerprint(model), **made},
    )
