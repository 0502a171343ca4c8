"""LoRA: a low-rank update beside chosen projections (Hu et al. 2021), with rsLoRA and DoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import peft as hf_peft
import torch
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as QUERY_AND_VALUE
from torch import Tensor

from trimtab.errors import BadValue
from trimtab.models.anatomy import output_width, text_config
from trimtab.peft.methods.adapters import (
    AttachedAdapter,
    HubBased,
    finished_config,
    require_target_modules,
    scaled_lora,
)
from trimtab.peft.parts.fused import fused_rows, fused_width, is_fused
from trimtab.peft.tunable import Capabilities, HubAdapter


@dataclass(frozen=True)
class LoRA(HubBased):
    """Adds `alpha / r * B A x` to what each target projection gives (Hu et al. 2022, section 4.1); trained by PEFT.

    A is `r d_in` and starts at random, B is `d_out r` and starts at zero, so training starts at the model. On 4-bit
    weights (`load_model(quantization="nf4-dq")`) this is QLoRA (Dettmers et al. 2023).

    Raises:
        BadValue: a rank below 1, an alpha that is not above 0, a dropout that is no share, or unknown targets.
    """

    learning_rate: ClassVar[float] = 5e-4
    """Low-rank updates take larger steps than full fine-tuning."""

    r: int = 8
    alpha: float | int | None = None
    """Scale of the update; twice the rank if not given."""
    targets: str | tuple[str, ...] = "all"
    """`"all"`: every linear module of the layers (as QLoRA); `"qv"`: queries and values (as the LoRA paper), the rows
    of both in a fused projection; or module names."""
    dropout: float = 0.0
    """Share of the inputs of A that are zeroed while training."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) (Kalajdzievski 2023)."""
    dora: bool = False
    """Train the norm of each output's weights apart from their direction (Liu et al. 2024)."""

    def __post_init__(self) -> None:
        if self.r < 1:
            raise BadValue(f"LoRA's rank must be at least 1, got {self.r}")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise BadValue(f"LoRA's alpha must be a number above 0, got {self.alpha}")
        if not self.targets:
            raise BadValue("LoRA needs one target or more; choose all, qv or give a tuple of module names")
        if isinstance(self.targets, str) and self.targets not in ("all", "qv"):
            raise BadValue(f"unknown targets {self.targets!r}; choose all, qv or give a tuple of module names")
        if not 0 <= self.dropout < 1:
            raise BadValue(f"dropout is a share between 0 and 1, got {self.dropout}")
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", tuple(self.targets))

    @property
    def name(self) -> str:
        """`LoRA`, `rsLoRA` or `DoRA`, with the rank."""
        return f"{'DoRA' if self.dora else 'rsLoRA' if self.rslora else 'LoRA'} r={self.r}"

    @property
    def capabilities(self) -> Capabilities:
        """Everything; DoRA's update is not a product, so that it has no strength."""
        return Capabilities("parameter composition", mergeable=True, scaling=not self.dora)

    def config(self, model: Any) -> hf_peft.LoraConfig:
        """Return PEFT's configuration. A fused projection gets one block of rank r for each of q and v."""
        if self.targets == "all":
            return self._config("all-linear")
        kind = text_config(model).model_type
        targets = QUERY_AND_VALUE.get(kind) if self.targets == "qv" else self.targets
        if targets is None:
            raise BadValue(
                f"PEFT lists no query and value projections for model type {kind!r}; name them: targets=('...', '...')"
            )
        targets = list(targets)
        require_target_modules(model, targets, self.name)
        return self._config(targets, blocks=2 if self.targets == "qv" and len(targets) == 1 else 1)

    def _config(self, targets: str | list[str], blocks: int = 1) -> hf_peft.LoraConfig:
        alpha = 2 * self.r if self.alpha is None else self.alpha
        return hf_peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=blocks * self.r,
            # the scale of each block is that of rank r
            lora_alpha=alpha * (blocks**0.5 if self.rslora else blocks),  # pyright: ignore[reportArgumentType]
            target_modules=targets,
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            use_dora=self.dora,
        )

    def finish(self, attached: AttachedAdapter) -> None:
        """Check the rank against every layer; on a fused projection, keep each block to its rows."""
        from peft.tuners.lora import LoraLayer

        layers: dict[str, Any] = {n: m for n, m in attached.model.named_modules() if isinstance(m, LoraLayer)}
        for name, layer in layers.items():
            if self.r > min(layer.in_features, layer.out_features):
                raise BadValue(
                    f"rank {self.r} is larger than the layer {name.removeprefix('base_model.model.')} "
                    f"({layer.in_features} x {layer.out_features}); choose a smaller one"
                )
        config = attached.model.peft_config["default"]
        if self.targets == "qv" and config.r == 2 * self.r:
            base = attached.model.get_base_model()
            first = next(iter(layers.values()))
            if not is_fused(base, first):
                raise BadValue(
                    f"{self.name} on q and v: the model has one projection of width {output_width(first)} for them, "
                    "which is not queries, keys and values in one; name the modules with targets=(...)"
                )
            names = [f"{name}.lora_B.default.weight" for name in layers]
            if next(base.parameters()).device.type == "meta":
                query, _, value = fused_width(base)
                attached.free = dict.fromkeys(names, self.r * (query + value))
            else:
                rows = fused_rows(base, first)
                blocks = torch.stack([rows["q"], rows["v"]], 1).float()
                attached.restrict(dict.fromkeys(names, blocks.repeat_interleave(self.r, 1)))

    def scaled_tensors(self, tensors: Mapping[str, Tensor], factor: float | int) -> dict[str, Tensor]:
        """Return the tensors with the update multiplied."""
        return scaled_lora(tensors, factor)

    def to_hub(self, tensors: Mapping[str, Tensor], base_name: str) -> HubAdapter:
        """Return the adapter in PEFT's format."""
        ranks = {v.shape[0] for k, v in tensors.items() if k.endswith("lora_A.weight")}
        paths = {k.removeprefix("base_model.model.").split(".lora_")[0] for k in tensors if ".lora_A" in k}
        chosen = isinstance(self.targets, tuple)
        names = self.targets if chosen else sorted({path.split(".")[-1] for path in paths})
        config = self._config(list(names), blocks=max(ranks, default=self.r) // self.r)
        return HubAdapter(finished_config(config, base_name), dict(tensors))
