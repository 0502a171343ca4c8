"""card_of: the model card of an edit, from what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trimtab.hub import is_hub_id


def card_of(name: str, about: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Return a model card as Markdown.

    Args:
        name: of the edit.
        about: its description; texts and numbers of it are shown.
        record: how it was made.
    """
    base, data = str((record.get("model") or {}).get("name", "")), record.get("data") or {}
    told = {key: value for key, value in about.items() if isinstance(value, str | int | float | bool)}
    if base:
        told["made for"] = base
    if data:
        told["made from"] = f"{data.get('n', '?')} items of {data.get('name', '?')}"
    if record.get("asking"):
        told["asked in"] = f"{record['asking']} form"
    if sweep := record.get("sweep"):
        before, chosen = sweep["trials"][0]["score"], sweep["chosen"]
        figures = (
            f"{sweep['metric']} {before:.3f} -> {chosen['score']:.3f} at a KL of {chosen['kl']:.3f} nats per token"
        )
        told[f"chosen on {sweep['n_validation']} held-out items"] = figures
    head = ["library_name: trimtab", "tags: [steering, model-editing]"]
    return "\n".join(
        [
            "---", *head, *[f"base_model: {base}"] * is_hub_id(base), "---", "", f"# {name}", "",
            "An edit of a language model made with trimtab: it changes what the model says, and holds no copy of it.",
            "", "| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in told.items()),
            "", "```python", "import trimtab as tt", "",
            f"model, tokenizer = tt.load_model({json.dumps(base or 'MODEL')})",
            'edit = tt.from_pretrained("ORG/NAME")  # or this folder',
            "with edit.applied(model):", "    ...  # model.generate, a transformers pipeline", "```", "",
        ]
    )  # fmt: skip
