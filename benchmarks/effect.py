"""The picture of effect against drift in README.md and docs/results/smollm2.md, from a published record.

python benchmarks/effect.py docs/results/smollm2_casual.json.xz docs/images/effect.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from packed import unpack

from trimtab.compare.comparison import Comparison
from trimtab.report.charts import effect_figure

ROWS = (
    "Baseline", "Few-shot", "CAA", "ITI", "ITI (within KL budget)", "Random tries (CAA)", "Random tries (ITI)",
    "LoRA r=8", "Head offsets k=8", "Prefix tuning n=10 (within KL budget)", "Full fine-tuning",
)  # fmt: skip

if __name__ == "__main__":
    record, picture = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        unpack(record, Path(folder) / "run")
        run = Comparison.load(Path(folder) / "run")
        figure = effect_figure([run.row(name) for name in ROWS], run.main, run.control_of)
        figure.savefig(picture, dpi=100, bbox_inches="tight")
    print("; ".join(f"{n} {name}" for n, name in enumerate(ROWS, 1)))
