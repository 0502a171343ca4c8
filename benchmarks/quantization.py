"""What 4-bit and 8-bit weights cost the embedded model: cross-entropy on neutral text, and bits per parameter.

    python benchmarks/quantization.py [--out benchmarks/results/quantization.json] [--tiny]

The kinds are paired on the same texts: the cost is the mean over texts of the difference in cross-entropy, with a
95 % bootstrap interval. KL is from the model in float32. Took 12 minutes on one thread of a busy CPU.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path
from typing import Any, get_args

import torch

from trimtab.cli.setup import quiet
from trimtab.datasets import neutral_texts
from trimtab.intervals import bootstrap_mean
from trimtab.models import load_model
from trimtab.models.load.quantization import Quantization
from trimtab.models.stored_bits import bits_per_parameter
from trimtab.storage import versions, write_json

MAX_TOKENS = 128


@torch.inference_mode()
def per_text(plain: Any, other: Any, tokenizer: Any, texts: list[str]) -> list[tuple[float, float]]:
    """Return (CE of `other`, KL(plain || other)) of each text, in nats per token."""
    pairs = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"][:MAX_TOKENS]])
        one, two = (model(input_ids=ids).logits[0, :-1].float().log_softmax(-1) for model in (plain, other))
        kl = (one.exp() * (one - two)).sum(-1).mean()
        pairs.append((float(torch.nn.functional.nll_loss(two, ids[0, 1:])), float(kl)))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "quantization.json")
    parser.add_argument("--tiny", action="store_true", help="8 texts, to try the script out")
    options = parser.parse_args()
    quiet()
    started = time.perf_counter()
    texts = neutral_texts(8 if options.tiny else 240)
    plain, tokenizer = load_model("embedded", device="cpu")
    base = [ce for ce, _ in per_text(plain, plain, tokenizer, texts)]
    rows: list[dict[str, Any]] = [
        {"kind": "float32", "ce": bootstrap_mean(base).as_dict(), "bits": 32.0, "bits_whole_model": 32.0}
    ]
    for kind in get_args(Quantization):
        model = load_model("embedded", device="cpu", quantization=kind).model
        pairs, bits = per_text(plain, model, tokenizer, texts), bits_per_parameter(model)
        rows.append(
            {
                "kind": kind,
                "ce": bootstrap_mean([ce for ce, _ in pairs]).as_dict(),
                "ce_cost": bootstrap_mean([ce - b for (ce, _), b in zip(pairs, base, strict=True)]).as_dict(),
                "kl": bootstrap_mean([kl for _, kl in pairs]).as_dict(),
                "bits": bits.quantised,
                "bits_whole_model": bits.whole,
            }
        )
    result = {
        "command": " ".join(["python", "benchmarks/quantization.py", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **versions()},
        "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "seconds": round(time.perf_counter() - started),
        "texts": len(texts),
        "rows": rows,
    }
    write_json(options.out, result)
    print(markdown(rows))


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table for the documentation."""
    lines = [
        "| Weights | CE on neutral text | cost in CE (95 % interval) | KL | bits per quantised weight | of all |",
        "|" + " --- |" * 6,
    ]
    for row in rows:
        cost, kl = row.get("ce_cost"), row.get("kl")
        shown = f"{cost['mean']:+.4f} ({cost['low']:+.4f} to {cost['high']:+.4f})" if cost else "-"
        divergence = f"{kl['mean']:.4f}" if kl else "-"
        lines.append(
            f"| {row['kind']} | {row['ce']['mean']:.4f} | {shown} | {divergence} | {row['bits']:.3f} | "
            f"{row['bits_whole_model']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
