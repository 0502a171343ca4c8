"""How many neutral texts, and how much of each, tell the drift of a shift: what `choose_place` measures it on.

    python benchmarks/drift_texts.py --model smollm2

Shifts of three behaviours (thirty pairs each) at every third layer, at the strength that a ranking expects to drift by
0.2 nats, are measured on the texts for choosing, cut to several lengths, and on others, cut to 128 tokens as `trimtab
evaluate` cuts them. A row is a number of texts and a length: the root mean square, over shifts and over disjoint sets
of that many texts, of the logarithm of what they say over what the others say.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from trimtab.datasets.behaviours import BEHAVIOURS, behaviour
from trimtab.datasets.prose import neutral_texts, validation_texts
from trimtab.edits.vectors import ResidualShift
from trimtab.evaluate.drift import drifts
from trimtab.models import load_model
from trimtab.steer import fit
from trimtab.steer.spec import ShiftSpec
from trimtab.storage import versions, write_json

LENGTHS, NUMBERS = (32, 48, 64, 96, 128), (3, 6, 12, 18)
RECORD = Path("benchmarks/results/drift_texts.json")


def shifts_of(model: Any, tokenizer: Any, name: str, budget: float) -> list[ResidualShift]:
    """Return the shifts of a behaviour: of every third layer that `fit` ranks."""
    fitted = fit(model, tokenizer, behaviour(name).pairs[:30], ShiftSpec(quick=True))
    ranking, directions = fitted.ranking, fitted.directions
    assert ranking is not None
    made = []
    for layer in sorted(ranking.sites)[::3]:
        vector = directions.values[directions.layers.index(layer), 0].float()
        record = {"model": fitted.shift.record["model"]}
        shift = ResidualShift((layer,), vector[None], name=f"{name} {layer}", record=record)
        made.append(shift.scaled(ranking.reach([layer], budget)))
    return made


def main() -> None:
    """Measure, and add the rows to the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    said = parser.parse_args()
    logging.disable_progress_bar()
    model, tokenizer = load_model(said.model)
    edits = [shift for name in BEHAVIOURS for shift in shifts_of(model, tokenizer, name, 0.2)]
    how: dict[str, Any] = {"batch_size": 16}
    others = drifts(model, tokenizer, edits, texts=neutral_texts()[:100], max_tokens=128, **how)
    wanted = np.array([float(d.kl) for d in others])
    rows = []
    for tokens in LENGTHS:
        found = drifts(model, tokenizer, edits, texts=validation_texts(), max_tokens=tokens, **how)
        kl = np.array([[of for _, of in d.per_text] for d in found])
        for n in NUMBERS:
            sets = [np.log(kl[:, at : at + n].mean(1) / wanted) for at in range(0, kl.shape[1] - n + 1, n)]
            rms = float(np.sqrt(np.mean(np.square(sets))))
            rows.append({"texts": n, "tokens": tokens, "sets": len(sets), "rms": round(rms, 4)})
            print(rows[-1], flush=True)
    held = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    command = f"python benchmarks/drift_texts.py --model {said.model}"
    of = {"command": command, "device": str(model.device), "shifts": len(edits), "rows": rows, "versions": versions()}
    write_json(RECORD, {**held, said.model: of})


if __name__ == "__main__":
    main()
