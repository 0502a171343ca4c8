"""Any other method of Hugging Face PEFT, by its own configuration object."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import peft as hf_peft
from torch import Tensor

from trimtab.errors import BadValue
from trimtab.peft.adapters import HubBased, finished_config, plain_config, scaled_lora
from trimtab.peft.method import Capabilities, HubAdapter

PACKABLE = ("LORA", "IA3", "VERA", "LOHA", "LOKR", "ADALORA", "OFT", "LN_TUNING")
"""Types known to act on each position by itself, so that several examples may stand in one row."""


@dataclass(frozen=True)
class Adapter(HubBased):
    """Any other Hugging Face PEFT method, by its own configuration object: `Adapter(peft.VeraConfig(r=64))`.

    Methods that put virtual tokens or keys before the text are refused: PEFT's give other logits under left padding.
    `PromptTuning` and `PrefixTuning` do that rightly and read PEFT's files. The source of each method is named in the
    documentation of its configuration.

    Raises:
        BadValue: no configuration of PEFT, or one for virtual tokens.
    """

    hub_config: Any

    def __post_init__(self) -> None:
        if not isinstance(self.hub_config, hf_peft.PeftConfig):
            raise BadValue(f"Adapter takes a configuration of Hugging Face PEFT, got {type(self.hub_config).__name__}")
        if self.hub_config.is_prompt_learning:
            raise BadValue(
                f"PEFT's {self._type} gives other logits under left padding than without padding; use PromptTuning "
                "or PrefixTuning of trimtab.peft, which read and write PEFT's folders"
            )
        if self.hub_config.task_type is None:
            config = copy.deepcopy(self.hub_config)
            config.task_type = "CAUSAL_LM"
            object.__setattr__(self, "hub_config", config)

    @property
    def _type(self) -> str:
        return str(getattr(self.hub_config.peft_type, "value", self.hub_config.peft_type))

    @property
    def name(self) -> str:
        """PEFT's name of the method."""
        return f"PEFT {self._type}"

    @property
    def capabilities(self) -> Capabilities:
        """What PEFT's class can do; packing only for types known to act on each position by itself."""
        tuner = hf_peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING.get(self.hub_config.peft_type)
        mergeable = hasattr(tuner, "merge_and_unload")
        family = "function composition" if self._type == "IA3" else "parameter composition"
        return Capabilities(family, mergeable, four_bit=True, packing=self._type in PACKABLE, checkpointing=True)

    @property
    def learning_rate(self) -> float:
        """3e-4."""
        return 3e-4

    def config(self, model: Any) -> Any:  # noqa: ARG002
        """Return the configuration as given."""
        return self.hub_config

    def scaled_tensors(self, tensors: Mapping[str, Tensor], factor: float | int) -> dict[str, Tensor]:
        """Return LoRA's tensors with the update multiplied."""
        if self._type != "LORA" or self.hub_config.use_dora:
            return super().scaled_tensors(tensors, factor)
        return scaled_lora(tensors, factor)

    def describe(self) -> dict[str, Any]:
        """Return the configuration as plain values."""
        return {"method": "Adapter", "hub_config": plain_config(self.hub_config)}

    def to_hub(self, tensors: Mapping[str, Tensor], base_name: str) -> HubAdapter:
        """Return the adapter in PEFT's format."""
        return HubAdapter(finished_config(self.hub_config, base_name), dict(tensors))
