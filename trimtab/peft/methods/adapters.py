"""A Hugging Face PEFT adapter on a live model, and what the methods that PEFT trains share."""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import peft as hf_peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from trimtab.devices import ran_out_of_memory
from trimtab.errors import BadValue, Incompatible, TrimtabError, first_line
from trimtab.models.anatomy import base_of
from trimtab.models.plain import skeleton
from trimtab.models.seeds import torch_seeded
from trimtab.models.weights import LowRank, WeightChange
from trimtab.peft.methods.base import TuningMethod
from trimtab.peft.parts.attached import Attached, Trained, copy_strictly
from trimtab.peft.parts.attaching import require_no_compiled_graph, require_whole
from trimtab.peft.parts.snapshot import Snapshot

NAME = "default"


@contextlib.contextmanager
def peft_refusing(what: str, advice: str = "") -> Iterator[None]:
    """Raise `BadValue` for whatever PEFT raises: it has many kinds, and a file's configuration may hold anything."""
    try:
        yield
    except TrimtabError:
        raise
    except Exception as cause:
        if ran_out_of_memory(cause):
            raise
        raise BadValue(f"{what}: PEFT says {first_line(cause)!r}{advice}") from cause


class AttachedAdapter(Attached):
    """A PEFT adapter on a live model; the model to call is PEFT's wrapper."""

    def __init__(self, model: Any, config: Any, *, seed: int, what: str) -> None:
        base = base_of(model)
        if getattr(base, "peft_config", None):
            raise Incompatible(f"the model carries an adapter already; detach or merge it before attaching {what}")
        self.what = what
        self._snapshot, before = Snapshot(base), list(base.parameters())
        self._own: list[tuple[nn.Parameter, Tensor]] = []
        """Parameters of the model itself that are trained in place (biases), as they were."""
        self.free: dict[str, int] = {}
        """Free numbers in parameters of which only some entries are trained."""
        self._undecayed: list[nn.Parameter] = []
        try:
            with torch_seeded(seed, base), warnings.catch_warnings(), peft_refusing(f"{what} does not fit the model"):
                warnings.filterwarnings("ignore", message=".*(fan_in_fan_out|is_gradient_checkpointing).*")
                # a copy, since get_peft_model writes into the configuration it is given
                self.model: Any = hf_peft.get_peft_model(base, copy.deepcopy(config), adapter_name=NAME)
            self.model.train(base.training)
            self._snapshot.restore_modes()
            self._own = [(p, p.detach().to("cpu", copy=True)) for p in before if p.requires_grad]
        except BaseException:
            self._snapshot.restore()
            raise

    def restrict(self, masks: Mapping[str, Tensor]) -> None:
        """Train only the entries of the named parameters where the mask is 1; the others keep their start."""
        parameters = self.trainable()
        for name, mask in masks.items():
            parameter = parameters[name]
            self.free[name] = int(mask.expand_as(parameter).sum())
            if bool(parameter.detach()[(mask == 0).expand_as(parameter)].any()):
                self._undecayed.append(parameter)  # decay would move what has no gradient
            parameter.register_hook(mask.to(device=parameter.device, dtype=parameter.dtype).mul)

    def trained(self) -> Trained:
        """Return how many numbers are free."""
        free = sum(self.free.get(name, p.numel()) for name, p in self.trainable().items())
        return replace(super().trained(), n=free)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the adapter's parameters."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def undecayed(self) -> list[nn.Parameter]:
        """Return the parameters with entries other than zero that keep their start."""
        return self._undecayed

    def tensors(self) -> dict[str, Tensor]:
        """Return the adapter's state under PEFT's own names."""
        with warnings.catch_warnings():
            # it takes LoRA's biases for shards of weights that were not gathered
            warnings.filterwarnings("ignore", message=".*LoRA tensor\\(s\\) have invalid shape")
            # "auto" would look for the config on the hub; the base's own embeddings are no part of the adapter
            state = hf_peft.get_peft_model_state_dict(self.model, adapter_name=NAME, save_embedding_layers=False)
        return {name: tensor.detach() for name, tensor in state.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put an adapter's state in place, strictly.

        Raises:
            Incompatible: other names or shapes, or embeddings of the adapter's own that are not the model's.
        """
        own, base = self.tensors(), dict(self.model.named_parameters())
        # PEFT writes the base's embeddings beside an adapter on them
        beside = [key for key in tensors if key not in own and key in base]
        for key in beside:
            if base[key].shape != tensors[key].shape or not torch.allclose(base[key], tensors[key].to(base[key]), 1e-2):
                raise Incompatible(
                    f"the adapter ({self.what}) brings {key!r} of its own, which is not this model's; load the model "
                    "that it was made on"
                )
        copy_strictly(own, {k: t for k, t in tensors.items() if k not in beside}, f"the adapter ({self.what})")

    def weight_changes(self) -> dict[str, WeightChange] | None:
        """Return LoRA's updates as factors, their scale in the left one; None for all else that PEFT has."""
        from peft.tuners.lora import LoraLayer

        if not all(re.search(r"\.lora_[AB]\.default\.weight$", name) for name in self.trainable()):
            return None
        changes: dict[str, WeightChange] = {}
        for name, module in self.model.get_base_model().named_modules():
            if isinstance(module, LoraLayer):
                module: Any = module
                right, left = (part[NAME].weight.detach().float().cpu() for part in (module.lora_A, module.lora_B))
                if right.ndim != 2 or module.use_dora.get(NAME):
                    return None
                changes[f"{name}.weight"] = LowRank(module.scaling[NAME] * left, right.clone())
        return changes

    def merged(self) -> nn.Module:
        """Return the base with the adapter's update in its weights."""
        self.model.eval()  # dropout must not be worked in
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                for weight in module.get_base_layer().parameters(recurse=False):
                    weight.data = weight.data.clone()  # a twin's memory is the model's
        with peft_refusing(f"{self.what} cannot be merged", "; use it as it is"):
            return self.model.merge_and_unload()  # every class has it, not every method can

    @torch.no_grad()
    def detach(self) -> None:
        """Take the adapter off."""
        self._snapshot.restore()
        while self._own:
            parameter, value = self._own.pop()
            parameter.copy_(value)


@dataclass(frozen=True)
class HubBased(TuningMethod):
    """A method whose parts are a PEFT adapter."""

    @abstractmethod
    def config(self, model: Any) -> Any:
        """Return the PEFT configuration for a model."""

    def finish(self, attached: AttachedAdapter) -> None:
        """Check what was attached, and restrict what is trained; raise `BadValue` if it does not fit."""

    def attach(self, model: Any, *, seed: int) -> AttachedAdapter:
        """Return the adapter on the model.

        Raises:
            BadValue: the method does not fit the model: unknown modules (the nearest are named), a rank too large.
            Incompatible: the model carries an adapter already, or was compiled.
        """
        self.require_runs_on(model)
        require_no_compiled_graph(model)
        require_whole(model)
        attached = AttachedAdapter(model, self.config(base_of(model)), seed=seed, what=self.name)
        try:
            self.finish(attached)
        except BaseException:
            attached.detach()
            raise
        return attached

    def parameter_count(self, model_or_config: Any) -> int:
        """Return how many numbers would be trained, counted on a model without weights."""
        attached = self.attach(skeleton(model_or_config), seed=0)
        return attached.trained().n


def plain_config(config: Any) -> dict[str, Any]:
    """Return a PEFT configuration as plain values."""
    return {k: _plain(v) for k, v in config.to_dict().items()}


def finished_config(config: Any, base_name: str) -> dict[str, Any]:
    """Return what adapter_config.json holds for an adapter on a base model."""
    return {**plain_config(config), "base_model_name_or_path": base_name, "inference_mode": True}


def _plain(value: Any) -> Any:
    if isinstance(value, set | tuple | list):
        return sorted(value) if isinstance(value, set) else [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return getattr(value, "value", value)


def scaled_lora(tensors: Mapping[str, Tensor], factor: float | int) -> dict[str, Tensor]:
    """Return LoRA's tensors with each update B A multiplied: B takes the factor."""
    return {k: v * factor if "lora_B" in k or "lora_embedding_B" in k else v for k, v in tensors.items()}


def require_target_modules(model: nn.Module, targets: Iterable[str], what: str) -> None:
    """Raise `BadValue`, offering the nearest names, if a target is the end of no module's path."""
    names = [name for name, m in model.named_modules() if name and not isinstance(m, nn.ModuleList)]
    ends = sorted({name.split(".")[-1] for name in names})
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in names):
            close = get_close_matches(target, ends, n=3, cutoff=0.4) or ends
            raise BadValue(f"{what}: the model has no module {target!r}; the nearest are {', '.join(close[:6])}")
