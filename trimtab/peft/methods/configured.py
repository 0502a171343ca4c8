"""Any other method of Hugging Face PEFT, by its own configuration object."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import peft as hf_peft
import torch
from torch import Tensor

from trimtab.errors import BadValue
from trimtab.models.anatomy import base_of, input_device
from trimtab.models.calling import inference
from trimtab.peft.methods.adapters import (
    AttachedAdapter,
    HubBased,
    finished_config,
    peft_refusing,
    plain_config,
    scaled_lora,
)
from trimtab.peft.methods.full import require_float_weights
from trimtab.peft.recipe import Recipe
from trimtab.peft.tunable import Capabilities, HubAdapter

PACKABLE = ("LORA", "IA3", "VERA", "LOHA", "LOKR", "OFT", "LN_TUNING")
"""Types known to act on each position by itself, so that several examples may stand in one row."""
FOUR_BIT = (
    "LORA", "IA3", "VERA", "BOFT", "FOURIERFT", "GRALORA", "HIRA", "MISS", "OFT", "PVERA", "RANDLORA", "ROAD", "SHIRA",
    "VBLORA", "WAVEFT", "ADAPTION_PROMPT", "LN_TUNING", "TRAINABLE_TOKENS",
)  # fmt: skip
"""Types found to compute on 4-bit weights what they compute on the dequantised ones; others read the packed bytes."""
SPLIT = (*(kind for kind in FOUR_BIT if kind != "TRAINABLE_TOKENS"), "LOHA", "LOKR", "HRA", "C3A", "DELORA")
"""Types found to learn on weights that two processes split what they learn on whole ones."""
REFUSED = {
    "ADALORA": "prunes its ranks in a training loop of its own, which trimtab does not run",
    "LILY": "averages over all tokens of a row, so that padding and a cache change what it computes",
}
STARTS = ("gaussian", "orthogonal")
"""Starts of LoRA by name that need no data, and leave the model's own weights alone."""


@dataclass(frozen=True)
class Adapter(HubBased):
    """Any other Hugging Face PEFT method, by its own configuration object: `Adapter(peft.VeraConfig(r=64))`.

    Methods that put virtual tokens or keys before the text are refused: PEFT's give other logits under left padding.
    `PromptTuning` and `PrefixTuning` do that rightly and read PEFT's files. The source of each method is named in the
    documentation of its configuration.

    Raises:
        BadValue: no configuration of PEFT, or one for virtual tokens, for what trimtab's loop or padded rows would make
            something else of (AdaLoRA, Lily), or for a start of LoRA that overwrites weights of the model (PiSSA).
    """

    learning_rate: ClassVar[float] = 3e-4

    hub_config: Any

    def __post_init__(self) -> None:
        if not isinstance(self.hub_config, hf_peft.PeftConfig):
            raise BadValue(f"Adapter takes a configuration of Hugging Face PEFT, got {type(self.hub_config).__name__}")
        if self.hub_config.is_prompt_learning:
            raise BadValue(
                f"PEFT's {self._type} gives other logits under left padding than without padding; use PromptTuning "
                "or PrefixTuning of trimtab.peft, which read PEFT's folders of these and of P_TUNING"
            )
        if self._type in REFUSED:
            raise BadValue(f"PEFT's {self._type} {REFUSED[self._type]}; use LoRA")
        start = getattr(self.hub_config, "init_lora_weights", True)
        if isinstance(start, str) and start.lower() not in STARTS:
            raise BadValue(
                f"LoRA's start {start!r} needs data of its own or overwrites weights of the model, which an edit "
                f"leaves as they are; choose init_lora_weights=True, {' or '.join(map(repr, STARTS))}, or let PEFT "
                "convert a finished adapter to plain LoRA (path_initial_model_for_weight_conversion)"
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
        """What PEFT's class can do; packing and 4-bit weights only for types that are known to be right there."""
        tuner = hf_peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING.get(self.hub_config.peft_type)
        mergeable = hasattr(tuner, "merge_and_unload")
        family = "function composition" if self._type == "IA3" else "parameter composition"
        # activated LoRA acts from a sequence of tokens on, which a packed row would carry into the next example
        packing = self._type in PACKABLE and not getattr(self.hub_config, "alora_invocation_tokens", None)
        four_bit, split = self._type in FOUR_BIT, self._type in SPLIT
        scaling = self._type == "LORA" and not self.hub_config.use_dora
        return Capabilities(family, mergeable, four_bit, packing, sharding=split, scaling=scaling)

    def config(self, model: Any) -> Any:  # noqa: ARG002
        """Return the configuration as given."""
        return self.hub_config

    def require_runs_on(self, model: Any) -> None:
        """Raise `BadValue` if the model's weights are quantised and PEFT's class may read their bytes as numbers."""
        super().require_runs_on(model)
        if not self.capabilities.four_bit:
            require_float_weights(model, self.name)

    def finish(self, attached: AttachedAdapter) -> None:
        """Run two tokens: what PEFT attaches to a model it cannot always run on it."""
        base = base_of(attached.model)
        if next(base.parameters()).is_meta:
            return
        tokens = torch.zeros(1, 2, dtype=torch.long, device=input_device(base))
        with peft_refusing(f"{self.name} does not run on the model"), inference(attached.model):
            attached.model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)

    def require_scalable(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise `BadValue` unless there is nothing but LoRA's updates in the tensors."""
        super().require_scalable(tensors)
        if not all(".lora_" in name for name in tensors):
            raise BadValue(f"{self.name} cannot be scaled: it stores more than LoRA's updates; use it as it is")

    def scaled_tensors(self, tensors: Mapping[str, Tensor], factor: float | int) -> dict[str, Tensor]:
        """Return LoRA's tensors with the update multiplied."""
        return scaled_lora(tensors, factor)

    def describe(self) -> dict[str, Any]:
        """Return the configuration as plain values."""
        return {"method": "Adapter", "hub_config": plain_config(self.hub_config)}

    @classmethod
    def from_plain(cls, own: Mapping[str, Any], recipe: Recipe) -> Any:
        """Return the method from its configuration's plain values, leaving out what this version of PEFT lacks."""
        return cls(hf_peft.PeftConfig.from_peft_type(**{**own["hub_config"], "inference_mode": False}), recipe=recipe)

    def to_hub(self, tensors: Mapping[str, Tensor], base_name: str) -> HubAdapter:
        """Return the adapter in PEFT's format."""
        return HubAdapter(finished_config(self.hub_config, base_name), dict(tensors))
