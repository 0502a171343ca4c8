"""Tunable: what the trainer and a tuned edit ask of a tuning method."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor

from trimtab.errors import BadValue
from trimtab.models.stored_bits import has_four_bit
from trimtab.peft.parts.attached import Attached
from trimtab.peft.recipe import Recipe
from trimtab.protocols import Knobs, Method

Own = TypeVar("Own", bound="Tunable")
Family = Literal["function composition", "input composition", "parameter composition", "full"]


@dataclass(frozen=True)
class Capabilities:
    """What a method can do, for tables and for refusing early."""

    family: Family
    mergeable: bool
    """Whether a tuned model can be written as a plain checkpoint (`trimtab.export.checkpoint`)."""
    four_bit: bool = True
    """Whether it runs on NF4 or FP4 weights."""
    packing: bool = True
    """Whether several examples in one row (positions restart, no attention mask) give each example's own logits."""
    checkpointing: bool = True
    """Whether it runs under non-reentrant gradient checkpointing."""
    sharding: bool = True
    """Whether it is known to train on weights that are split over processes (FSDP)."""
    scaling: bool = True
    """Whether its effect has a strength, so that `edit.scaled` has a meaning."""


@dataclass(frozen=True)
class HubAdapter:
    """An adapter in the folder format of Hugging Face PEFT."""

    config: dict[str, Any]
    """What `adapter_config.json` holds."""
    tensors: dict[str, Tensor]
    """What `adapter_model.safetensors` holds."""


@dataclass(frozen=True)
class Tunable(Method):
    """A way of tuning without the training itself: what is attached to a model, stored, scaled and written.

    Subclasses are frozen dataclasses whose own fields say what is attached; they check their values in
    `__post_init__`. `name`, `capabilities` and `learning_rate` are class attributes, or properties where they hang on
    the fields. `recipe` says how the method is trained.
    """

    capabilities: ClassVar[Capabilities]
    """What the method can do."""
    learning_rate: ClassVar[float]
    """The peak of the learning rate if the recipe names none."""
    scales_from_start: ClassVar[bool] = False
    """Whether `load` scales by what stands in the model, so that an edit keeps its strength beside its tensors."""
    recipe: Recipe = field(default_factory=Recipe, kw_only=True)
    """Epochs, learning rate, batch size and the like."""

    @property
    def space(self) -> Mapping[str, Sequence[Any]]:
        """What may be chosen among: a third, once and three times the method's learning rate; none if one is named."""
        if self.recipe.learning_rate is not None:
            return {}
        return {"learning_rate": tuple(round(self.learning_rate * factor, 10) for factor in (1 / 3, 1.0, 3.0))}

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

    def attach_for_use(self, model: Any, *, seed: int) -> Attached:
        """Return the parts as `attach` does, for an edit's tensors to be loaded into and not to be trained."""
        return self.attach(model, seed=seed)

    @abstractmethod
    def parameter_count(self, model_or_config: Any) -> int:
        """Return how many numbers would be trained, from a model or its config alone, without weights."""

    def require_scalable(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: ARG002
        """Raise `BadValue` if scaling an edit of these tensors has no meaning."""
        if not self.capabilities.scaling:
            raise BadValue(f"{self.name} cannot be scaled: its effect has no strength; use it as it is")

    def scaled_tensors(self, tensors: Mapping[str, Tensor], factor: float | int) -> dict[str, Tensor]:
        """Return the tensors of the edit with its effect multiplied; 0 must equal no edit to the bit.

        Here for parts that start at zero and act linearly.
        """
        return {name: factor * t for name, t in tensors.items()}

    def load(self, attached: Attached, tensors: Mapping[str, Tensor], strength: float | int) -> None:
        """Put an edit's tensors in place at a strength; raises `Incompatible` for other names or shapes."""
        attached.load(tensors if strength == 1 else self.scaled_tensors(tensors, strength))

    def to_hub(self, tensors: Mapping[str, Tensor], base_name: str) -> HubAdapter | None:  # noqa: ARG002
        """Return the adapter in PEFT's own format, or None if the method does not exist there."""
        return None

    def from_hub(self, adapter: HubAdapter) -> dict[str, Tensor]:
        """Return the tensors that `to_hub` was given; here of methods that keep them under PEFT's names."""
        return dict(adapter.tensors)

    def with_knobs(self: Own, knobs: Knobs | None) -> Own:
        """Return the method with fields of its own or of its recipe set.

        Raises:
            BadValue: a knob that is neither.
        """
        knobs = knobs or {}
        shared, own = ({f.name for f in fields(part)} - {"recipe"} for part in (self.recipe, self))
        for key in knobs:
            if key not in shared | own:
                known = [f.name for f in (*fields(self), *fields(self.recipe)) if f.name != "recipe"]
                raise BadValue(f"{self.name} has no knob {key!r}; choose among {', '.join(known)}")
        recipe = replace(self.recipe, **{key: value for key, value in knobs.items() if key in shared})
        return replace(self, recipe=recipe, **{key: value for key, value in knobs.items() if key in own - shared})

    def describe(self) -> dict[str, Any]:
        """Return the method and its own fields as plain values (the recipe stands in the record of the run)."""
        own = {k: v for k, v in asdict(self).items() if k != "recipe"}
        return {"method": type(self).__name__, **own}

    @classmethod
    def from_plain(cls, own: Mapping[str, Any], recipe: Recipe) -> Any:
        """Return the method from the fields that `describe` gave, lists being tuples again."""
        return cls(**own, recipe=recipe)

    def require_runs_on(self, model: Any) -> None:
        """Raise `BadValue` if the model has 4-bit weights and the method cannot run on them."""
        if not self.capabilities.four_bit and has_four_bit(model):
            raise BadValue(
                f"{self.name} cannot run on 4-bit weights: it works on the weights themselves; load the model without "
                "quantization, or choose a method that leaves them alone (trimtab methods lists them)"
            )
