"""What test_sharding.py runs under `accelerate launch --use_fsdp`: methods on split weights, and refusals."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from tests.tuning import METHODS
from trimtab.errors import TrimtabError
from trimtab.models import load_model

KNOBS = {"batch_size": 4, "micro_batch": 2, "save_every": 2}


def tune(folder: Path, name: str, family: str) -> None:
    """Write what a method learned on split weights, and hold that the model is the same objects and numbers."""
    model = tiny_model(family)
    before = {key: (p, p.data_ptr(), p.detach().clone()) for key, p in model.named_parameters()}
    edit = METHODS[name].fit(model, tiny_tokenizer(), tiny_questions(6), knobs=KNOBS, out=folder / name / "run")
    assert edit.record["sharded"] and edit.record["plan"]["memory"]["sharded"]
    assert before.keys() == dict(model.named_parameters()).keys()
    for key, parameter in model.named_parameters():
        whose, place, value = before[key]
        assert parameter is whose and parameter.data_ptr() == place and torch.equal(parameter, value), key
        assert parameter.requires_grad and parameter.grad is None, key
    edit.save(folder / name / "edit")  # every process calls it, the first one writes
    save_file(dict(edit.tensors), folder / name / f"tensors-{rank()}.safetensors")
    keys = ("losses", "steps", "tokens_seen", "examples_seen")
    (folder / name / f"found-{rank()}.json").write_text(json.dumps({key: edit.record[key] for key in keys}))


def refusals(folder: Path) -> None:
    """Write what is said to runs that cannot be split."""
    full, quick = METHODS["full"], METHODS["lora"]
    eight_bit, half = ({"optimizer": "adamw_8bit"}, {"precision": "fp16"})
    jobs: dict[str, Callable[[], Any]] = {
        "prompt": lambda: fit(METHODS["prompt"]),
        "four bit": lambda: fit(quick, load_model(folder / "saved", quantization="nf4", device="cpu").model),
        "other weights": lambda: fit(quick, tiny_model(seed=rank())),
        "optimiser": lambda: fit(replace(full, recipe=replace(full.recipe, **eight_bit))),
        "precision": lambda: fit(replace(full, recipe=replace(full.recipe, **half))),
    }
    said = {name: refused(job) for name, job in jobs.items()}
    os.environ["FSDP_VERSION"] = "1"
    said["version"] = refused(lambda: fit(quick))
    os.environ |= {"FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"}
    said["checkpointing"] = refused(lambda: fit(quick))
    (folder / f"said-{rank()}.json").write_text(json.dumps(said))


def loaded(folder: Path) -> None:
    """Write whether every process reads the weights, which transformers leaves to the first one under FSDP."""
    model = load_model(folder / "saved", device="cpu").model
    (folder / f"norm-{rank()}.json").write_text(json.dumps(float(sum(p.norm() for p in model.parameters()))))


def fit(method: Any, model: Any = None) -> None:
    method.fit(model or tiny_model(), tiny_tokenizer(), tiny_questions(6))


def refused(job: Callable[[], Any]) -> str:
    try:
        job()
    except TrimtabError as refusal:
        return str(refusal)
    return ""


def rank() -> int:
    return int(os.environ["RANK"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, what, family = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    if what == "refusals":
        refusals(place)
        loaded(place)
    else:
        for one in what.split(","):
            (place / one).mkdir(exist_ok=True)
            tune(place, one, family)
