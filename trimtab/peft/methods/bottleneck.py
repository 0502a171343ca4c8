"""Bottleneck adapters: a small two-layer network on the output of attention and feed-forward sublayers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from trimtab.errors import BadValue
from trimtab.models.anatomy import base_of, text_config
from trimtab.models.hooks import on_outputs
from trimtab.peft.methods.base import TuningMethod
from trimtab.peft.parts.attaching import AttachedParts, empty_linear, frozen_base, hold, master_dtype
from trimtab.peft.parts.sublayers import attention_blocks, config_of, feed_forward
from trimtab.peft.tunable import Capabilities

Style = Literal["houlsby", "pfeiffer", "lin"]
STYLES = ("houlsby", "pfeiffer", "lin")


@dataclass(frozen=True)
class Bottleneck(TuningMethod):
    """Adds `up(act(down(x)))` to the outputs of sublayers, before the residual addition.

    `"houlsby"` (Houlsby et al. 2019, section 2): after attention and after the feed-forward network, GELU.
    `"pfeiffer"` (Pfeiffer et al. 2021, AdapterFusion): after the feed-forward network only, ReLU. `"lin"` (Lin et al.
    2020; Adapter-L in the LoRA paper): as Pfeiffer's, with a layer norm of its own before `down`. `down` is
    `width d_model` and starts at random, `up` is `d_model width` and starts at 0, so that tuning starts from the base
    model to the bit.

    Raises:
        BadValue: an unknown style, or a width below 1.
    """

    capabilities: ClassVar[Capabilities] = Capabilities("function composition", mergeable=False)
    """Works on any weights, packed or not; not linear, so it cannot be merged."""
    learning_rate: ClassVar[float] = 1e-3
    """As in the published recipes, between LoRA's and prompt tuning's."""

    style: Style = "pfeiffer"
    width: int = 16
    """Of the bottleneck: hidden units of each adapter."""

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise BadValue(f"unknown adapter style {self.style!r}; choose {', '.join(STYLES)}")
        if self.width < 1:
            raise BadValue(f"the width of a bottleneck must be 1 or more, got {self.width}")

    @property
    def name(self) -> str:
        """Style and width."""
        return f"{self.style.capitalize()} adapter w={self.width}"

    def attach(self, model: Any, *, seed: int) -> AttachedParts:
        """Return the adapters on the model, in float32 if the model is in half precision.

        Raises:
            BadValue: the bottleneck is wider than the model.
            UnsupportedModel: a layer without attention or feed-forward network.
        """
        d_model = text_config(model).hidden_size
        self._check_width(d_model)
        generator = torch.Generator().manual_seed(seed)
        dtype, places = master_dtype(base_of(model).dtype), {}
        with frozen_base(model) as undo:
            hooks = []
            for name, layer, module in self._sites(model):
                adapter = BottleneckModule(d_model, self.width, self.style, generator)
                adapter.to(device=next(module.parameters()).device, dtype=dtype)
                hold(layer, f"adapter_{name.split('.')[-1]}", adapter, undo)
                places |= {f"{name}.{key}": parameter for key, parameter in adapter.named_parameters()}
                hooks.append((module, adapter))
            undo.enter_context(on_outputs(hooks))
            return AttachedParts(model, places, undo, f"the {self.name}")

    def _sites(self, model: Any) -> list[tuple[str, nn.Module, nn.Module]]:
        """Return (name, layer, module whose output is adapted), in layer order."""
        sites = []
        for layer, block, projection in attention_blocks(model):
            if self.style == "houlsby":
                sites.append((f"layers.{layer}.attention", block, projection))
            sites.append((f"layers.{layer}.feed_forward", block, feed_forward(block, projection)))
        return sites

    def _check_width(self, d_model: int) -> None:
        if self.width > d_model:
            raise BadValue(f"a bottleneck of width {self.width} is wider than the model ({d_model}); choose less")

    def parameter_count(self, model_or_config: Any) -> int:
        """Return (2 d w + w + d) per adapter, and 2 d more for a layer norm."""
        config = config_of(model_or_config)
        d_model = config.hidden_size
        self._check_width(d_model)
        each = 2 * d_model * self.width + self.width + d_model + (2 * d_model if self.style == "lin" else 0)
        return config.num_hidden_layers * each * (2 if self.style == "houlsby" else 1)

    def scaled_tensors(self, tensors: Mapping[str, Tensor], factor: float | int) -> dict[str, Tensor]:
        """Return the tensors with `up` multiplied: what the adapters add is linear in it."""
        return {name: t * factor if ".up." in name else t for name, t in tensors.items()}


class BottleneckModule(nn.Module):
    """x + up(act(down(norm(x)))), with `up` zero at the start."""

    def __init__(self, d_model: int, width: int, style: Style, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model) if style == "lin" else nn.Identity()
        self.down = empty_linear(d_model, width)
        self.up = empty_linear(width, d_model)
        self.activation = functional.gelu if style == "houlsby" else functional.relu
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Return x with what the bottleneck adds, in x's dtype."""
        added = self.up(self.activation(self.down(self.norm(x.to(self.down.weight.dtype)))))
        return x + added.to(x.dtype)
