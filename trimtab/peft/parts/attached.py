"""Attached: a method's trainable parts on one live model, as the trainer and a tuned edit see them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from trimtab.errors import BadValue, Incompatible
from trimtab.models.processes import split_like
from trimtab.models.weights import WeightChange


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

    def weight_changes(self) -> dict[str, WeightChange] | None:
        """Return what the parts add to weights, by name in the base model; None where that is no product of factors."""
        return None

    def merged(self) -> nn.Module:
        """Return the plain model with the parts worked into its weights; only called on a twin, which it consumes.

        Nothing is written into memory that the twin shares with its model.
        """
        raise BadValue("this method's parts cannot be worked into the weights; use the edit as it is")

    @abstractmethod
    def detach(self) -> None:
        """Leave the model exactly as before: modules, weights, requires_grad, modes, hooks. May be called twice."""


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
