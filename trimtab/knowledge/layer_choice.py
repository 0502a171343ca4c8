"""choose_layer: where to write facts, by what an edit there leaks and breaks, on facts that the model knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from trimtab.datasets.facts import FactSet, atlas
from trimtab.evaluate.factual import fact_meters, known_facts
from trimtab.evaluate.table import measurements_of, summed_up
from trimtab.knowledge.editors import ROME
from trimtab.models.mlp import find_mlp_outputs
from trimtab.progress import tracked

DEPTHS = (0.07, 0.13, 0.2, 0.3)
"""The shares of the depth that are tried (never the first layer where there are others)."""


class TriedLayer(NamedTuple):
    """What edits in one layer did, as shares over facts."""

    layer: int
    paraphrases: float
    kept: float
    leak: float


@dataclass(frozen=True)
class LayerChoice:
    """The layer that was chosen, and what edits in each one did."""

    layer: int
    tried: tuple[TriedLayer, ...]


def choose_layer(
    model: Any,
    tokenizer: Any,
    editor: ROME,
    facts: FactSet | None = None,
    *,
    n_facts: int = 4,
    depths: Sequence[float] = DEPTHS,
    seed: int = 0,
) -> LayerChoice:
    """Return the layer in which single edits keep most neighbours and leak least, for as many paraphrases.

    Not by efficacy, which every layer reaches, nor by causal tracing, which does not tell the best layer from the worst
    (Hase et al. 2023): by kept neighbours plus paraphrases less leak.

    Args:
        facts: to write one at a time; those that ship and that the model knows if not given.

    Raises:
        BadDataset: the model knows none of the facts.
    """
    facts = known_facts(model, tokenizer, atlas() if facts is None else facts, neighbours=2)
    facts = facts[:: max(1, len(facts) // n_facts)][:n_facts]
    sites = find_mlp_outputs(model)
    layers = sorted({min(max(1, round(depth * len(sites))), len(sites) - 1) for depth in depths})
    # of all layers at once: the texts take their time to write
    editor = editor.with_statistics(model, tokenizer, [sites[i] for i in layers], seed=seed)
    meters = [meter for meter in fact_meters() if meter.name in ("paraphrases", "kept", "leak")]
    tried = []
    for layer in tracked(layers, "trying layers"):
        sums = {meter.name: 0.0 for meter in meters}
        for fact in (facts[i : i + 1] for i in range(len(facts))):
            edit = replace(editor, layers=(layer,)).fit(model, tokenizer, fact, seed=seed)
            (found,) = measurements_of(model, tokenizer, fact, [edit], meters)
            for meter in meters:
                sums[meter.name] += float(summed_up(meter, found["facts"]) or 0) / len(facts)
        tried.append(TriedLayer(layer, **sums))
    best = max(tried, key=lambda one: one.kept + one.paraphrases - one.leak)
    return LayerChoice(best.layer, tuple(tried))
