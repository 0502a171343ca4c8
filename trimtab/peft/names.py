"""From records and adapter files back to the method they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft as hf_peft

from trimtab.activations.captured import Head
from trimtab.errors import BadValue, Incompatible
from trimtab.peft.methods.base import HubAdapter, TuningMethod
from trimtab.peft.methods.bottleneck import Bottleneck
from trimtab.peft.methods.configured import Adapter
from trimtab.peft.methods.full import FullFineTuning
from trimtab.peft.methods.head_offsets import HeadOffsets, HeadScalings
from trimtab.peft.methods.ia3 import IA3
from trimtab.peft.methods.intrinsic import IntrinsicDimension
from trimtab.peft.methods.lora import LoRA
from trimtab.peft.methods.prefix_tuning import PrefixTuning
from trimtab.peft.methods.prompt_tuning import PromptTuning
from trimtab.peft.train.recipe import Recipe

METHODS: dict[str, type[TuningMethod]] = {
    "LoRA": LoRA,
    "IA3": IA3,
    "Bottleneck": Bottleneck,
    "PromptTuning": PromptTuning,
    "PrefixTuning": PrefixTuning,
    "HeadOffsets": HeadOffsets,
    "HeadScalings": HeadScalings,
    "IntrinsicDimension": IntrinsicDimension,
    "FullFineTuning": FullFineTuning,
}
"""The methods that records name, besides `Adapter`."""
VIRTUAL_TOKENS: dict[str, type[PromptTuning] | type[PrefixTuning]] = {
    "PROMPT_TUNING": PromptTuning,
    "P_TUNING": PromptTuning,  # its encoder is collapsed to the same embeddings when it is saved
    "PREFIX_TUNING": PrefixTuning,
}
"""PEFT's types that methods of trimtab run; PEFT's own classes run all others."""


def method_from_record(described: Mapping[str, Any], recipe: Mapping[str, Any]) -> TuningMethod:
    """Return the method that `describe` described, with its recipe."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in described.items() if k != "method"}
    kind = described["method"]
    if "heads" in fields:
        fields["heads"] = tuple(Head(*head) for head in fields["heads"])
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
    try:
        if kind in VIRTUAL_TOKENS:
            return VIRTUAL_TOKENS[kind](adapter.config["num_virtual_tokens"])
        # EVA's start reads data; a finished adapter needs no start
        finished = {"init_lora_weights": True} if adapter.config.get("init_lora_weights") == "eva" else {}
        return Adapter(config_from_plain({**adapter.config, **finished}))
    except (BadValue, TypeError, ValueError, KeyError) as cause:
        raise Incompatible(f"cannot use the adapter at {path} (type {kind}): {cause}") from cause


def config_from_plain(values: Mapping[str, Any]) -> Any:
    """Return a PEFT configuration from plain values, ignoring what this version of PEFT does not know."""
    return hf_peft.PeftConfig.from_peft_type(**{**values, "inference_mode": False})
