"""What test_compare_run.py runs in processes of their own: a comparison whose fits are slow and leave a line each."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from tests.comparing import METERS
from tests.measuring import random_shift
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.compare import run
from trimtab.protocols import Method


@dataclass(frozen=True)
class Slow(Method):
    """Notes the process that fits, and takes its time."""

    beside: Path
    pause: float
    name: str = "Slow"

    @property
    def space(self):
        return {"strength": (1.0, 2.0, 3.0)}

    def fit(self, model, tokenizer, train, *, knobs=None, seed=0):
        with (self.beside / "fits.txt").open("a") as file:
            file.write(f"{os.getpid()} {knobs}\n")
        time.sleep(self.pause)
        return random_shift(model, seed=seed, name=self.name).scaled(knobs["strength"])


def main(folder: Path | str, *, pause: float, after_another: bool = False) -> None:
    """Run the comparison in `folder`; if so said, once another process has begun to fit."""
    beside = Path(folder).parent
    while after_another and not (beside / "fits.txt").exists():
        time.sleep(0.01)
    arguments = {"seeds": (0,), "trials": 3, "meters": METERS, "out": folder}
    run(tiny_model(), tiny_tokenizer(), tiny_questions(12), [Slow(beside, pause)], **arguments)
