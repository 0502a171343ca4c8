"""Prompt tuning: trained embeddings of virtual tokens before the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from trimtab.errors import BadValue
from trimtab.models.anatomy import base_of, decoder_of
from trimtab.peft.methods.base import TuningMethod
from trimtab.peft.parts.attaching import AttachedParts, frozen_base, hold, master_dtype
from trimtab.peft.parts.sublayers import config_of
from trimtab.peft.parts.virtual_tokens import VirtualTokens, keys_and_values, vocabulary_embeddings
from trimtab.peft.tunable import Capabilities, HubAdapter

PROMPT = "prompt_embeddings"  # PEFT's name


@dataclass(frozen=True)
class PromptTuning(TuningMethod):
    """Trains the embeddings of virtual tokens that stand before the text (Lester et al. 2021).

    They are `n_tokens d_model`, and start as embeddings of random tokens of the vocabulary, as that paper advises.
    Padding may be on either side, and the model is called as ever: logits are of the given tokens alone.

    Raises:
        BadValue: fewer than one token.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        "input composition", mergeable=False, sharding=False, scaling=False
    )
    """FSDP gathers a layer's weights again for the backward of its output, and the prompt's own pass through the layers
    is read at their keys and values."""
    learning_rate: ClassVar[float] = 3e-2
    """Large: prompts learn slowly."""

    n_tokens: int = 20
    """Virtual tokens."""

    def __post_init__(self) -> None:
        require_tokens(self.n_tokens)

    @property
    def name(self) -> str:
        """How many tokens."""
        return f"Prompt tuning n={self.n_tokens}"

    def attach(self, model: Any, *, seed: int) -> AttachedParts:
        """Return the prompt on the model; raises `UnsupportedModel` if some layer has no attention."""
        with frozen_base(model) as undo:
            start = vocabulary_embeddings(model, self.n_tokens, seed)
            prompt = nn.Parameter(start.to(master_dtype(base_of(model).dtype)))
            tokens = VirtualTokens(model, self.n_tokens, lambda: keys_and_values(model, prompt.to(start.dtype)))
            hold(decoder_of(model), PROMPT, prompt, undo)
            undo.enter_context(tokens.present())
            return AttachedParts(model, {PROMPT: prompt}, undo, f"the {self.name}")

    def parameter_count(self, model_or_config: Any) -> int:
        """Return tokens times the width of an embedding."""
        return self.n_tokens * config_of(model_or_config).hidden_size

    def to_hub(self, tensors: Mapping[str, Tensor], base_name: str) -> HubAdapter:
        """Return the prompt as PEFT stores it."""
        return HubAdapter(hub_config("PROMPT_TUNING", self.n_tokens, base_name), {PROMPT: tensors[PROMPT]})


def require_tokens(n_tokens: int) -> None:
    """Raise `BadValue` unless there is at least one virtual token."""
    if n_tokens < 1:
        raise BadValue(f"n_tokens must be 1 or more virtual tokens, got {n_tokens}")


def hub_config(kind: str, n_tokens: int, base_name: str) -> dict[str, Any]:
    """Return what PEFT's `adapter_config.json` holds of virtual tokens; PEFT reads the sizes off the model."""
    return {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "num_virtual_tokens": n_tokens,
        "inference_mode": True,
    }
