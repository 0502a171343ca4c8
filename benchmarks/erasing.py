"""What erasing a style does to a real model: LEACE, ACE and an ablation, in some layers and in all.

    python benchmarks/erasing.py --model MODEL --out benchmarks/results/erasing.json

From the repository's root; some minutes of one core with SmolLM2-135M-Instruct. Each row is what the command beside it
prints; the table of docs/erasing.md is made of them.
"""

from __future__ import annotations

from typing import Any

from speed_common import on_a_model, setting

import trimtab as tt
from trimtab.datasets import contrast_pairs
from trimtab.datasets.prose import neutral_texts
from trimtab.evaluate.contrast import pair_margin
from trimtab.evaluate.drift import NeutralTexts, drift_meters
from trimtab.steer import ACE, LEACE, Ablation, readable
from trimtab.storage import write_json

PAIRS = "examples/formal_casual.jsonl"
SOME = tuple(range(10, 21))
ROWS: dict[str, tuple[str, Any]] = {
    "`leace`, layers 10-20": ("leace --layers 10-20", LEACE(layers=SOME)),
    "`leace`, all 30": ("leace", LEACE()),
    "`ace`, layer 17": ("ace", ACE()),
    "`ace`, all 30": ("ace --layers all", ACE(layers=tuple(range(30)))),
    "`ablate`, layers 10-20 (direction of depth 0.6)": (
        "ablate --layers 10-20 --depth 0.6",
        Ablation(layers=SOME, depths=(0.6,)),
    ),
    "`ablate`, all 30 (direction of depth 0.6)": ("ablate --depth 0.6", Ablation(depths=(0.6,))),
}


def main() -> None:
    """Erase and measure, as asked."""
    model, tokenizer, out = on_a_model(__doc__)
    train, held = contrast_pairs(PAIRS).split(test=0.4, seed=0)
    meters = (pair_margin(), *drift_meters(NeutralTexts(tuple(neutral_texts(32)))))
    rows = []
    for name, (flags, method) in ROWS.items():
        edit = method.fit(model, tokenizer, train, seed=0)
        edits, layers = [tt.NoEdit(), edit, edit.randomised(0)], sorted(edit.layers)
        shown = sorted({layers[0], layers[len(layers) // 2], layers[-1], model.config.num_hidden_layers - 1})
        shares = readable(model, tokenizer, held, edits, layers=shown, seed=0)
        measured = tt.compare.table(model, tokenizer, held, edits, meters=meters).rows
        found = [
            {
                "read": {n: [round(100 * x, 1) for x in (s, s.low, s.high)] for n, s in zip(shown, of, strict=True)},
                **{k: round(float(row[m]), 3) for k, m in (("margin", "pair_margin"), ("ce", "ce"), ("kl", "kl"))},
            }
            for of, row in zip(shares, measured, strict=True)
        ]
        said = f"trimtab erase -m SmolLM2-135M-Instruct --pairs {PAIRS} --how {flags}"
        rows.append({"row": name, "command": said, **dict(zip(("unedited", "edit", "random"), found, strict=True))})
        print(rows[-1], flush=True)
    write_json(out, {"model": "SmolLM2-135M-Instruct, float32", "setting": setting(), "rows": rows})


if __name__ == "__main__":
    main()
