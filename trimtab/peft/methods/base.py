"""What every way of tuning is made of: a method (a frozen description), and its parts attached to one live model."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from trimtab.errors import BadValue, Incompatible
from trimtab.models.processes import split_like
from trimtab.peft.train.recipe import Recipe
from trimtab.protocols import Method

if TYPE_CHECKING:
    from trimtab.peft.edit import TunedEdit

Family = Literal["function composition", "input composition", "parameter composition", "full"]


@dataclass(frozen=True)
class Capabilities:
    """What a method can do, for tables and for refusing early."""

    family: Family
    mergeable: bool
    """Whether `merge` can write the tuned model as a plain checkpoint."""
    four_bit: bool
    """Whether it runs on NF4 or FP4 weights."""
    packing: bool
    """Whether several examples in one row (positions restart, no attention mask) give each example's own logits."""
    checkpointing: bool
    """Whether it runs under non-reentrant gradient checkpointing."""
    sharding: bool = False
    """Whether it is known to train on weights that are split over processes (FSDP)."""


@dataclass(frozen=True)
class HubAdapter:
    """An adapter in the folder format of Hugging Face PEFT."""

    config: dict[str, Any]
    """What `adapter_config.json` holds."""
    tensors: dict[str, Tensor]
    """What `adapter_model.safetensors` holds."""


@dataclass(frozen=True)
class Trained:
    """What a method trains, and the weights of which it holds a second copy."""

    n: int
    """Trained numbers."""
    itemsize: int = 4
    """Bytes of each."""
    untuned: int = 0
    """Bytes of weights kept as they were, in the CPU's memory, while they are trained (full fine-tuning)."""
    remade: int = 0
    """Bytes of weights that each forward makes anew (intrinsic dimension)."""
    in_place: bool = False
    """Whether it is weights of the model itself that are trained, and nothing beside them."""


class Attached(ABC):
    """One method's trainable parts on one live model.

    `model` is what to call: the same object or a wrapper of it. It takes `input_ids`, `attention_mask` (padding on
    either side), `position_ids` (as the base model counts them, without virtual tokens), `use_cache` and
    `logits_to_keep` (a number of last positions, or the places of positions among the given tokens), and its logits
    stand for the given tokens alone: batch seq vocab.
    """

    model: nn.Module

    @abstractmethod
    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters to train, by name."""

    def trained(self) -> Trained:
        """Return how much is trained and held twice."""
        parameters = self.trainable().values()
        return Trained(sum(p.numel() for p in parameters), max(p.element_size() for p in parameters))

    def undecayed(self) -> list[nn.Parameter]:
        """Return those of the parameters that weight decay must leave alone."""
        return []

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored of a tuned model: enough to rebuild it exactly. Detached, not copied."""

    def resume_tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds; more than `tensors` where training needs parts that the result does not."""
        return self.tensors()

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put in place what `tensors` or `resume_tensors` returned.

        Raises:
            Incompatible: a key is missing or unexpected, or a shape differs (see `copy_strictly`).
        """

    def merged(self) -> nn.Module:
        """Return the plain model with the parts worked into its weights; only called on a copy, which it consumes."""
        raise BadValue("this method's parts cannot be worked into the weights; use the edit as it is")

    @abstractmethod
    def detach(self) -> None:
        """Leave the model exactly as before: modules, weights, requires_grad, modes, hooks. May be called twice."""


@dataclass(frozen=True)
class TuningMethod(Method):
    """A way of tuning: `fit` gives a `TunedEdit`. Implements `trimtab.Method`.

    Subclasses are frozen dataclasses whose own fields say what is attached; they check their values in
    `__post_init__`. `recipe` says how it is trained.
    """

    recipe: Recipe = field(default_factory=Recipe, kw_only=True)
    """Epochs, learning rate, batch size and the like."""

    @property
    @abstractmethod
    def name(self) -> str:
        """A short name for tables, such as `LoRA r=8`."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What the method can do."""

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """The peak of the learning rate if the recipe names none."""

    @property
    def grid(self) -> Sequence[Mapping[str, Any]]:
        """The settings a comparison may choose among: a third, once and three times the method's learning rate."""
        return tuple({"learning_rate": round(self.learning_rate * factor, 10)} for factor in (1 / 3, 1.0, 3.0))

    @abstractmethod
    def attach(self, model: Any, *, seed: int) -> Attached:
        """Return the method's parts on the model: the base frozen, only the parts trainable.

        The random number generators and every module's mode are as before; the seed alone decides the start.
        Whatever fails leaves the model as it was. Call `self.require_runs_on(model)` first.

        Raises:
            BadValue: the method does not fit the model (unknown modules, a rank too large, 4-bit weights), or weights
                of it are offloaded.
            Incompatible: the model was compiled before, or carries an adapter that this one cannot stand beside.
            UnsupportedModel: layers that do not have what the method acts on.
        """

    @abstractmethod
    def parameter_count(self, model_or_config: Any) -> int:
        """Return how many numbers would be trained, from a model or its config alone, without weights."""

    def scaled_tensors(self, tensors: Mapping[str, Tensor], factor: float | int) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the tensors of the edit with its effect multiplied; 0 must equal no edit to the bit.

        Raises:
            BadValue: scaling has no meaning for the method.
        """
        raise BadValue(f"{self.name} cannot be scaled by {factor}: its effect has no strength; use it as it is")

    def to_hub(self, tensors: Mapping[str, Tensor], base_name: str) -> HubAdapter | None:  # noqa: ARG002
        """Return the adapter in PEFT's own format, or None if the method does not exist there."""
        return None

    def from_hub(self, adapter: HubAdapter) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the tensors that `to_hub` was given."""
        raise Incompatible(f"{self.name} has no form in Hugging Face PEFT; save and load it with trimtab alone")

    def with_knobs(self, knobs: Mapping[str, Any] | None) -> TuningMethod:
        """Return the method with fields of its own or of its recipe set.

        Raises:
            BadValue: a knob that is neither.
        """
        method = self
        for key, value in (knobs or {}).items():
            if key in {f.name for f in fields(self.recipe)}:
                method = replace(method, recipe=replace(method.recipe, **{key: value}))
            elif key in {f.name for f in fields(self)} - {"recipe"}:
                method = replace(method, **{key: value})
            else:
                known = [f.name for f in (*fields(self), *fields(self.recipe)) if f.name != "recipe"]
                raise BadValue(f"{self.name} has no knob {key!r}; choose among {', '.join(known)}")
        return method

    def describe(self) -> dict[str, Any]:
        """Return the method and its own fields as plain values (the recipe stands in the record of the run)."""
        own = {k: v for k, v in asdict(self).items() if k != "recipe"}
        return {"method": type(self).__name__, **own}

    def require_runs_on(self, model: Any) -> None:
        """Raise `BadValue` if the model has 4-bit weights and the method cannot run on them."""
        if not self.capabilities.four_bit and has_four_bit(model):
            raise BadValue(
                f"{self.name} cannot run on 4-bit weights: it works on the weights themselves; load the model without "
                "quantization, or choose a method that leaves them alone (trimtab methods lists them)"
            )

    def fit(
        self,
        model: Any,
        tokenizer: Any,
        train: Any,
        *,
        knobs: Mapping[str, Any] | None = None,
        seed: int = 0,
        out: str | Path | None = None,
        resume: bool = True,
    ) -> TunedEdit:
        """Return the edit tuned on the training questions (or on `SftExample` pairs); the model is left as it was.

        Args:
            train: a `QuestionSet`, whose true answers are learned, or a sequence of `SftExample`.
            knobs: fields of the method or its recipe to set for this run.
            seed: of the parts' start, the order of the examples and dropout.
            out: folder for checkpoints; without it none are kept.
            resume: go on from the last checkpoint in `out` if it was made with the same specification.

        Raises:
            BadDataset: an example with nothing to learn, naming it.
            BadValue: the method does not fit the model, weights are offloaded, there is too little memory, or a loss
                is not a number.
            Incompatible: `out` holds another run, the model was compiled before, or carries an adapter already.
            UnsupportedModel: layers that do not have what the method acts on.
        """
        from trimtab.peft.methods.snapshot import random_state_kept
        from trimtab.peft.train.fit import fit_method

        with random_state_kept(model):
            return fit_method(self.with_knobs(knobs), model, tokenizer, train, seed=seed, out=out, resume=resume)


def has_four_bit(model: Any) -> bool:
    """Return whether some weights are held in 4 bits by bitsandbytes."""
    return any(type(p).__name__ == "Params4bit" for p in model.parameters())


def has_separate_experts(names: Iterable[str]) -> bool:
    """Return whether some weights, by their names, are of experts that are modules of their own.

    A process that sent such an expert no token has no gradient of it, and others would wait for one.
    """
    return any(re.search(r"\.experts\.\d", name) for name in names)


def copy_strictly(places: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy each tensor into the place of its name, all or none.

    Raises:
        Incompatible: naming the first missing or unexpected key, or the shapes that differ.
    """
    missing, unexpected = sorted(places.keys() - tensors.keys()), sorted(tensors.keys() - places.keys())
    if missing or unexpected:
        parts = [f"lacks {missing[0]!r}"] if missing else []
        parts += [f"has the unexpected {unexpected[0]!r}"] if unexpected else []
        n = len(missing) + len(unexpected)
        raise Incompatible(
            f"{what} {' and '.join(parts)} ({n} of {len(places)} names differ); it was made with other settings or "
            "for another model"
        )
    for key, place in places.items():
        if place.shape != tensors[key].shape:
            raise Incompatible(
                f"{what} holds {key!r} of shape {tuple(tensors[key].shape)}, this model needs {tuple(place.shape)}; "
                "it was made with other settings or for another model"
            )
    for key, place in places.items():
        place.detach().copy_(split_like(tensors[key], place))
