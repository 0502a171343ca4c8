"""From records and adapter files back to the method they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from trimtab.errors import BadValue, Incompatible
from trimtab.peft.recipe import Recipe
from trimtab.peft.tunable import HubAdapter, Tunable

HOMES = {
    "LoRA": "lora",
    "IA3": "ia3",
    "Bottleneck": "bottleneck",
    "PromptTuning": "prompt_tuning",
    "PrefixTuning": "prefix_tuning",
    "HeadOffsets": "head_offsets",
    "HeadScalings": "head_offsets",
    "IntrinsicDimension": "intrinsic",
    "FullFineTuning": "full",
    "Adapter": "configured",
}
"""The file in `trimtab.peft.methods` of each method that records name."""
VIRTUAL_TOKENS = {
    "PROMPT_TUNING": "PromptTuning",
    "P_TUNING": "PromptTuning",  # its encoder is collapsed to the same embeddings when it is saved
    "PREFIX_TUNING": "PrefixTuning",
}
"""PEFT's types that methods of trimtab run; PEFT's own classes run all others."""


def method_class(kind: str) -> Any:
    """Return the class of a method by its name: one of trimtab's, or one of your own that was imported.

    Raises:
        Incompatible: there is none.
    """
    if kind in HOMES:
        return resolve_name(f"trimtab.peft.methods.{HOMES[kind]}:{kind}")
    for found in _subclasses(Tunable):
        if found.__name__ == kind:
            return found
    raise Incompatible(
        f"the record names the method {kind!r}, which trimtab does not have; if it is your own, import its class first"
    )


def _subclasses(of: type) -> Iterator[type]:
    for found in of.__subclasses__():
        yield found
        yield from _subclasses(found)


def method_from_record(described: Mapping[str, Any], recipe: Mapping[str, Any]) -> Any:
    """Return the method that `describe` described, with its recipe."""
    own = {k: tuple(v) if isinstance(v, list) else v for k, v in described.items() if k != "method"}
    return method_class(described["method"]).from_plain(own, Recipe(**recipe))


def method_of_hub(adapter: HubAdapter, path: Path) -> Any:
    """Return the method of an adapter that was made elsewhere.

    Raises:
        Incompatible: a type that PEFT does not know, or that trimtab cannot run.
    """
    kind = str(adapter.config.get("peft_type"))
    try:
        if kind in VIRTUAL_TOKENS:
            return method_class(VIRTUAL_TOKENS[kind])(adapter.config["num_virtual_tokens"])
        # EVA's start reads data; a finished adapter needs no start
        finished = {"init_lora_weights": True} if adapter.config.get("init_lora_weights") == "eva" else {}
        return method_class("Adapter").from_plain({"hub_config": {**adapter.config, **finished}}, Recipe())
    except (BadValue, TypeError, ValueError, KeyError) as cause:
        raise Incompatible(f"cannot use the adapter at {path} (type {kind}): {cause}") from cause
