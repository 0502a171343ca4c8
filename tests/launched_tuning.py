"""What test_distributed.py runs under a launcher: a method tuned on a tiny model, and what its record says."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab import peft

METHODS = {
    "lora": peft.LoRA(r=4, recipe=peft.Recipe(learning_rate=0.02)),
    "houlsby": peft.Bottleneck("houlsby", 4, recipe=peft.Recipe(learning_rate=0.02)),
    "full": peft.FullFineTuning(recipe=peft.Recipe(learning_rate=0.002)),
}


def main(folder: Path, knobs: dict[str, Any], name: str = "lora") -> None:
    """Write what this process learned to `folder`, and save the edit as every process does."""
    torch.set_num_threads(1)
    method = METHODS[name]
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    model = tiny_model("llama-gqa").to(device)
    # 12 examples
    edit = method.fit(model, tiny_tokenizer(), tiny_questions(6), knobs=knobs, out=folder / "run")
    assert not any(p._backward_hooks for p in model.parameters())
    keys = ("losses", "steps", "tokens_seen", "examples_seen")
    found = {
        "tensors": {name: tensor.tolist() for name, tensor in edit.tensors.items()},
        "planned": edit.record["plan"]["steps"],
        **{key: edit.record[key] for key in keys},
    }
    edit.save(folder / "edit")
    rank = os.environ.get("RANK", "alone")
    (folder / f"found-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), *sys.argv[3:])
