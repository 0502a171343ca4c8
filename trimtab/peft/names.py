"""From records and adapter files back to the method they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft as hf_peft

from trimtab.errors import BadValue, Incompatible
from trimtab.peft.adapters import Adapter
from trimtab.peft.ia3 import IA3
from trimtab.peft.lora import LoRA
from trimtab.peft.method import HubAdapter, TuningMethod
from trimtab.peft.recipe import Recipe

METHODS: dict[str, type[TuningMethod]] = {m.__name__: m for m in (LoRA, IA3)}
"""The methods that records name, besides `Adapter`."""
READ_FROM_HUB: dict[str, str] = {
    "PROMPT_TUNING": "PromptTuning",
    "P_TUNING": "PromptTuning",
    "PREFIX_TUNING": "PrefixTuning",
}
"""PEFT's types that methods of trimtab read; PEFT's own classes run all others."""


def method_from_record(described: Mapping[str, Any], recipe: Mapping[str, Any]) -> TuningMethod:
    """Return the method that `describe` described, with its recipe."""
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in described.items() if k != "method"}
    kind = described["method"]
    if kind == "Adapter":
        return Adapter(config_from_plain(fields["hub_config"]), recipe=Recipe(**recipe))
    if kind not in METHODS:
        raise Incompatible(f"the record names the method {kind!r}, which this version of trimtab does not have")
    return METHODS[kind](**fields, recipe=Recipe(**recipe))


def method_of_hub(adapter: HubAdapter, path: Path) -> TuningMethod:
    """Return the method of an adapter that was made elsewhere.

    Raises:
        Incompatible: a type that PEFT does not know, or that trimtab cannot run.
    """
    kind = str(adapter.config.get("peft_type"))
    own = READ_FROM_HUB.get(kind)
    try:
        return METHODS[own].of_hub(adapter) if own in METHODS else Adapter(config_from_plain(adapter.config))
    except (BadValue, TypeError, ValueError, KeyError) as cause:
        raise Incompatible(f"cannot use the adapter at {path} (type {kind}): {cause}") from cause


def config_from_plain(values: Mapping[str, Any]) -> Any:
    """Return a PEFT configuration from plain values, ignoring what this version of PEFT does not know."""
    return hf_peft.PeftConfig.from_peft_type(**{**values, "inference_mode": False})
