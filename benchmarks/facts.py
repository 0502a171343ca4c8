"""Facts edited into a real model: every editor beside tuning, the prompt and chance.

    python benchmarks/facts.py MODEL FACTS [--count 8] [--one] [--cache DIR] [--out FILE]

MODEL is a folder or hub id; FACTS is a file of facts, or `atlas`. Facts that the model does not know are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import trimtab as tt
from trimtab.datasets.facts import FactSet
from trimtab.edits.weight_edit import WeightEdit
from trimtab.evaluate.drift import NeutralTexts, drift_meters
from trimtab.evaluate.factual import fact_meters, known_facts
from trimtab.knowledge import EMMET, MEMIT, ROME, AlphaEdit, FineTuneL
from trimtab.prompting import FactsInContext
from trimtab.protocols import Method

TEXTS = 8


def methods(cache: str | None) -> list[Method]:
    own: dict[str, Any] = {"cache": cache}
    return [
        FactsInContext(),
        ROME(**own),
        ROME(moment="identity", name="ROME, C = I"),
        MEMIT(**own),
        EMMET(**own),
        AlphaEdit(**own),
        FineTuneL(),
        tt.peft.LoRA(r=8, recipe=tt.peft.Recipe(max_steps=25, batch_size=8, learning_rate=5e-3)),
    ]


def row_of(model: Any, tokenizer: Any, facts: FactSet, edits: list[tt.Edit]) -> list[dict[str, Any]]:
    meters = [*fact_meters(), *drift_meters(NeutralTexts(tuple(tt.datasets.neutral_texts(TEXTS))))]
    table = tt.compare.table(model, tokenizer, facts, edits, meters=meters)
    return [row.as_dict() for row in table.rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("facts")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--one", action="store_true", help="Each fact in a model of its own.")
    parser.add_argument("--cache")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    model, tokenizer = tt.load_model(given.model)
    facts = tt.datasets.atlas() if given.facts == "atlas" else tt.datasets.facts_from_file(given.facts)
    facts = known_facts(model, tokenizer, facts, neighbours=2)
    facts = facts[:: max(1, len(facts) // given.count)][: given.count]
    found = [{**row, "facts": len(facts)} for row in row_of(model, tokenizer, facts, [tt.NoEdit()])]
    for method in methods(given.cache):
        if given.only and method.name not in given.only:
            continue
        groups = [facts[i : i + 1] for i in range(len(facts))] if given.one else [facts]
        for group in groups:
            start, spent = time.perf_counter(), time.process_time()
            edit = method.fit(model, tokenizer, group, seed=0)
            seconds, spent = time.perf_counter() - start, time.process_time() - spent
            edits: list[tt.Edit] = [edit.renamed(method.name)]
            if method.name == "ROME" and isinstance(edit, WeightEdit):
                edits.append(edit.randomised(0))
            for row in row_of(model, tokenizer, group, edits):
                found.append({**row, "seconds": seconds, "cpu_seconds": spent, "facts": [f.key for f in group]})
                short = {k: round(v["mean"], 4) if isinstance(v, dict) and "mean" in v else v for k, v in row.items()}
                print(json.dumps({**short, "edit": None, "seconds": seconds, "cpu": spent}), flush=True)
            if given.out:
                given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
