"""What of an answer a reader reads: its reading beside what is counted, with and without standardised coordinates.

    python benchmarks/readers.py --model smollm2 --units runs/sweeps
    python benchmarks/readers.py --model gemma3-270m --asking primer --units runs/gemma

The answers are those of units of `behaviours.py`, unedited and shifted, cut to the tokens that `fit` reads. Readers are
learnt from pairs drawn anew (18, and 12 for their layer and ends), with the direction that `Reader` takes and with the
plain mean difference. What is correlated is how far an answer moved by its reading and by its count, from the unedited
model's to the same prompt; correlations are means over the drawn pairs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from trimtab.datasets.asking import asking_for
from trimtab.datasets.behaviours import BEHAVIOURS, behaviour
from trimtab.models import load_model
from trimtab.steer.reading import ReadAnswers, Reader, read_texts
from trimtab.steer.screen import item_differences
from trimtab.storage import versions, write_json

RECORD = Path("benchmarks/results/readers.json")


def compared(model: Any, tokenizer: Any, name: str, units: list[dict[str, Any]], said: argparse.Namespace) -> dict:
    """Return both readers' figures of one behaviour."""
    of, form = behaviour(name), asking_for(said.asking, tokenizer)
    sets = [units[0]["before"]["texts"], *(unit["after"]["texts"] for unit in units)]
    counts = np.array([[of.count(text) for text in texts] for texts in sets])
    answered = sorted({both for texts in sets for both in zip(of.prompts, texts, strict=True)})
    tokens = ReadAnswers.max_new_tokens
    cut = [tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)[:tokens]) for _, text in answered]
    told = [
        form.statement(prompt, text.strip() or ".", True, str(i))
        for i, ((prompt, _), text) in enumerate(zip(answered, cut, strict=True))
    ]
    found: dict[str, list[float]] = {"standardised": [], "plain": []}
    for seed in range(said.draws):
        order = np.random.default_rng([seed, 99]).permutation(len(of.pairs)).tolist()
        parts = (of.pairs.select(sorted(some)).asked_as(said.asking, tokenizer) for some in (order[:18], order[18:30]))
        acts = [read_texts(model, tokenizer, part.statements()) for part in parts]
        plain = Reader.along(item_differences(acts[0]).mean(0)[:, 0], acts[1])
        for kind, reader in (("standardised", Reader.of(*acts)), ("plain", plain)):
            read = dict(zip(answered, reader.read(model, tokenizer, told), strict=True))
            values = np.array([[read[both] for both in zip(of.prompts, texts, strict=True)] for texts in sets])
            moved = [(rows[1:] - rows[0]).ravel() for rows in (values, counts)]
            found[kind].append(float(np.corrcoef(*moved)[0, 1]))
    return {"behaviour": name, "answers": len(answered), **{k: round(float(np.mean(v)), 3) for k, v in found.items()}}


def main() -> None:
    """Compare the readers on every behaviour, and add the rows to the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--asking", default="auto")
    parser.add_argument("--units", type=Path, required=True, help="a folder of behaviours.py")
    parser.add_argument("--draws", type=int, default=5, help="of pairs to learn readers from")
    said = parser.parse_args()
    logging.disable_progress_bar()
    model, tokenizer = load_model(said.model)
    rows = []
    for name in BEHAVIOURS:
        units = [json.loads(path.read_text()) for path in sorted(said.units.glob(f"{name}-*.json"))]
        rows.append(compared(model, tokenizer, name, units, said))
        print(rows[-1], flush=True)
    held = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    of = {"command": f"python benchmarks/readers.py --model {said.model} --asking {said.asking}", "rows": rows}
    write_json(RECORD, {**held, said.model: {**of, "draws": said.draws, "versions": versions()}})


if __name__ == "__main__":
    main()
