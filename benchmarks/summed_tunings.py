"""What sums of tunings do on a real model: three LoRAs added, taken away, halved and merged, beside random ones.

    python benchmarks/summed_tunings.py --model MODEL --out benchmarks/results/summed_tunings.json

From the repository's root; some ten minutes of one core with SmolLM2-135M-Instruct. The table of docs/weights.md is
made of what it writes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from speed_common import command, on_a_model, setting

import trimtab as tt
from trimtab.datasets import contrast_pairs
from trimtab.datasets.prose import neutral_texts
from trimtab.evaluate.contrast import pair_margin
from trimtab.evaluate.drift import NeutralTexts, drift_meters
from trimtab.knowledge import DARE, TIES, combined, task_vector
from trimtab.knowledge.arithmetic import cosine
from trimtab.storage import write_json

TRAINED_ON = 20


def sums(model: Any, tuned: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of the table: edits by name."""
    cheerful, grumpy, formal = (tuned[name] for name in ("cheerful", "grumpy", "formal"))
    both = [cheerful, formal]
    return {
        "Baseline": tt.NoEdit(),
        "cheerful": cheerful,
        "half of cheerful": cheerful.scaled(0.5),
        "- cheerful": cheerful.scaled(-1),
        "cheerful - grumpy": combined(model, [cheerful, grumpy], [1, -1]),
        "cheerful - random of grumpy (control)": combined(model, [cheerful, grumpy.randomised(0)], [1, -1]),
        "random of cheerful (control)": cheerful.randomised(0),
        "cheerful + formal": combined(model, both),
        "`ties` of both, density 0.2": combined(model, both, rule=TIES(0.2)),
        "`dare` of both, density 0.5": combined(model, both, rule=DARE(0.5)),
        "formal": formal,
    }


def main() -> None:
    """Tune, add up and measure, as asked."""
    model, tokenizer, out = on_a_model(__doc__)
    sets = {name: contrast_pairs(f"examples/{name}.jsonl") for name in ("cheerful_grumpy", "formal_casual")}
    first = sets["cheerful_grumpy"]
    turned = first.with_items(tuple(replace(p, positive=p.negative, negative=p.positive) for p in first))
    tuned = {}
    for name, pairs in {"cheerful": first, "grumpy": turned, "formal": sets["formal_casual"]}.items():
        asked_as = pairs[:TRAINED_ON].asked_as("auto", tokenizer)
        edit = tt.peft.LoRA().fit(model, tokenizer, asked_as, knobs={"epochs": 4, "batch_size": 4}, seed=0)
        tuned[name] = replace(task_vector(model, edit), name=name)
    edits = [edit.renamed(name) for name, edit in sums(model, tuned).items()]
    meters = [pair_margin(), *drift_meters(NeutralTexts(tuple(neutral_texts(16))))]
    own, other = (
        {
            row.name: row.as_dict()
            for row in tt.compare.table(model, tokenizer, pairs[TRAINED_ON:], edits, meters=meters[:n]).rows
        }
        for pairs, n in zip(sets.values(), (len(meters), 1), strict=True)
    )
    rows = {
        name: {"cheerful": row["pair_margin"], "formal": other[name]["pair_margin"], "kl": row["kl"]}
        for name, row in own.items()
    }
    near = {f"cheerful, {name}": cosine(model, tuned["cheerful"], tuned[name]) for name in ("grumpy", "formal")}
    write_json(out, {"command": command(), "setting": setting(), "rows": rows, "cosines": near})


if __name__ == "__main__":
    main()
