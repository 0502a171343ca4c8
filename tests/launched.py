"""What test_distributed.py runs under a launcher: capture, probes, scores, answers and drift of one model."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.activations import Head
from trimtab.edits.vectors import HeadShift
from trimtab.engine import capture_store
from trimtab.engine.capture import capture_heads
from trimtab.engine.capture_store import capture_to_store
from trimtab.evaluate import drift, generate_answers, multiple_choice
from trimtab.models.identity import fingerprint
from trimtab.probes import fit_mass_mean


def main(folder: Path, die_after: int | None = None) -> None:
    """Write what this process found to `folder`; kill it without warning after so many shards."""
    torch.set_num_threads(1)
    model, tokenizer, questions = tiny_model("llama"), tiny_tokenizer(), tiny_questions(7)
    shift = HeadShift(
        (Head(0, 1), Head(2, 3)),
        torch.full((2, 12), 12**-0.5),
        torch.ones(2),
        3.0,
        record={"model": fingerprint(model)},
    )
    written = 0

    def counted(*args: object, **options: object) -> object:
        nonlocal written
        if written == die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        written += 1
        return capture_heads(*args, **options)

    capture_store.capture_heads = counted
    store = capture_to_store(model, tokenizer, questions.statements(), folder / "store", per_shard=3)
    found = {
        "shards written": written,
        "values": store.load().values.tolist(),
        "labels": store.labels.tolist(),
        "probes": fit_mass_mean(store).accuracy.tolist(),
        "logprobs": [a.logprob for r in multiple_choice(model, tokenizer, questions, shift).rows for a in r.answers],
        "answers": [r.answer for r in generate_answers(model, tokenizer, questions, shift, max_new_tokens=8).rows],
        "drift": drift(model, tokenizer, shift, texts=[f"The sky is number {i}." for i in range(5)]).per_text,
    }
    shift.save(folder / "shift")
    rank = os.environ.get("RANK", "alone")
    (folder / f"found-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
