"""(IA)^3: learned factors on keys, values and the inner activations of the MLP (Liu et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import peft as hf_peft
import torch
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as INNER
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as TARGETS
from torch import Tensor

from trimtab.errors import BadValue
from trimtab.models.anatomy import text_config
from trimtab.peft.methods.adapters import AttachedAdapter, HubBased, finished_config, require_target_modules
from trimtab.peft.parts.fused import fused_rows, fused_width, is_fused
from trimtab.peft.tunable import Capabilities, HubAdapter


@dataclass(frozen=True)
class IA3(HubBased):
    """Multiplies keys, values and inner MLP activations by learned vectors (Liu et al. 2022, section 3.3); by PEFT.

    There is one factor for each output of a key or value projection, and for each input of the MLP's last one; they
    start at one, so training starts at the model. A fused projection's queries keep the factor one, as in the paper
    (PEFT's default would train theirs too).

    Raises:
        BadValue: a feed-forward module that is not among the targets.
    """

    name: ClassVar[str] = "IA3"
    capabilities: ClassVar[Capabilities] = Capabilities("function composition", mergeable=True)
    learning_rate: ClassVar[float] = 5e-3
    """Factors around one take larger steps than weights."""

    targets: tuple[str, ...] = ()
    """Modules to scale; PEFT's list for the model's type if empty."""
    feedforward: tuple[str, ...] = ()
    """Those of them whose input is scaled instead of the output."""

    def __post_init__(self) -> None:
        stray = set(self.feedforward) - set(self.targets)
        if stray:
            raise BadValue(f"feedforward names {sorted(stray)[0]!r}, which is not among targets; add it there")

    def config(self, model: Any) -> hf_peft.IA3Config:
        """Return PEFT's configuration."""
        kind = text_config(model).model_type
        targets, inner = self.targets or TARGETS.get(kind), self.feedforward or INNER.get(kind, ())
        if targets is None:
            raise BadValue(
                f"PEFT lists no IA3 modules for model type {kind!r}; give targets=(...) and feedforward=(...)"
            )
        require_target_modules(model, targets, self.name)
        return self._config(list(targets), [t for t in inner if t in targets])

    def _config(self, targets: list[str], inner: list[str]) -> hf_peft.IA3Config:
        return hf_peft.IA3Config(task_type="CAUSAL_LM", target_modules=targets, feedforward_modules=inner)

    def finish(self, attached: AttachedAdapter) -> None:
        """Keep the factors of a fused projection's queries at one."""
        from peft.tuners.ia3 import IA3Layer

        base = attached.model.get_base_model()
        layers: dict[str, Any] = {n: m for n, m in attached.model.named_modules() if isinstance(m, IA3Layer)}
        fused = {name: m for name, m in layers.items() if not m.is_feedforward and is_fused(base, m)}
        if not fused:
            return
        if next(base.parameters()).device.type == "meta":
            attached.free = {f"{name}.ia3_l.default": sum(fused_width(base)[1:]) for name in fused}
            return
        rows = fused_rows(base, next(iter(fused.values())))
        mask = torch.where(rows["q"], 0.0, 1.0)[:, None]
        attached.restrict({f"{name}.ia3_l.default": mask for name in fused})

    def scaled_tensors(self, tensors: Mapping[str, Tensor], factor: float | int) -> dict[str, Tensor]:
        """Return the factors at a share of their way from one."""
        return {k: 1 + factor * (v - 1) for k, v in tensors.items()}

    def to_hub(self, tensors: Mapping[str, Tensor], base_name: str) -> HubAdapter:
        """Return the adapter in PEFT's format. Inner modules are those whose factors lie along the input."""
        paths = {k.removeprefix("base_model.model.").removesuffix(".ia3_l"): v for k, v in tensors.items()}
        config = self._config(sorted(paths), sorted(path for path, v in paths.items() if v.shape[0] == 1))
        return HubAdapter(finished_config(config, base_name), dict(tensors))
