"""Attaching trainable parts to a live model so that every trace of them can be taken off again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trimtab.errors import BadValue, Incompatible
from trimtab.models.anatomy import base_of, decoder_of, stored_weight
from trimtab.models.hooks import held_by_this_thread, is_compiled
from trimtab.peft.parts.attached import Attached, Trained, copy_strictly


class AttachedParts(Attached):
    """Parameters (trained) and buffers (fixed) by name; takes over the stack of what undoes attaching them.

    A method that moves the weights themselves says how many bytes of them stand in memory twice (see `Trained`).
    """

    def __init__(
        self,
        model: Any,
        places: Mapping[str, Tensor],
        undo: ExitStack,
        what: str,
        *,
        untuned: int = 0,
        remade: int = 0,
        in_place: bool = False,
    ) -> None:
        self.model, self.places, self.what = model, dict(places), what
        self.untuned, self.remade, self.in_place = untuned, remade, in_place
        self.undo = undo.pop_all()

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters to train, by name."""
        return {name: place for name, place in self.places.items() if isinstance(place, nn.Parameter)}

    def trained(self) -> Trained:
        """Return how much is trained and held twice."""
        return replace(super().trained(), untuned=self.untuned, remade=self.remade, in_place=self.in_place)

    def tensors(self) -> dict[str, Tensor]:
        """Return all parts, detached."""
        return {name: place.detach() for name, place in self.places.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors into the parts; raises `Incompatible` for other names or shapes."""
        copy_strictly(self.places, tensors, self.what)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Return the model with its weights as they are now; raises `BadValue` if more than its weights is changed."""
        if not self.in_place and not self.remade:
            return super().merged()
        owned = [
            (module, name, getattr(module, name).clone())
            for module in self.model.modules()
            if not isinstance(module, parametrize.ParametrizationList)
            for name in [*module._parameters, *getattr(module, "parametrizations", ())]
            if getattr(module, name) is not None
        ]
        self.detach()
        for module, name, value in owned:
            if name in module._parameters:  # the parts themselves are gone
                getattr(module, name).data = value  # and not written into, since a twin shares the model's memory
        return self.model

    def detach(self) -> None:
        """Leave the model exactly as before."""
        self.undo.close()


def require_no_compiled_graph(model: Any) -> None:
    """Raise `Incompatible` if a graph of the model was compiled already."""
    if is_compiled(model):
        raise Incompatible(
            "the model was compiled before tuning parts were attached, so they would be ignored silently; "
            "use the uncompiled model"
        )


def require_whole(model: Any) -> None:
    """Raise `BadValue` if weights are offloaded: parts beside them would stand on no device either, and give NaN."""
    base = base_of(model)
    for name, parameter in base.named_parameters():
        # a skeleton without weights, whose numbers are only counted, is no offloaded model
        if parameter.is_meta and stored_weight(base, name) is not None:
            raise BadValue(
                f"tuning parts need every weight on a device, and {name} is offloaded: load the model whole, quantised "
                "if it is too large (quantization), or over several GPUs"
            )


@contextlib.contextmanager
def frozen_base(model: Any) -> Iterator[ExitStack]:
    """Freeze the model and yield a stack to hang further undoing on; all is undone unless `AttachedParts` takes it.

    Raises:
        BadValue: weights are offloaded.
        Incompatible: the model was compiled, so that what is attached would be ignored silently; another thread has
            an edit in place.
    """
    require_no_compiled_graph(model)
    require_whole(model)
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    with ExitStack() as stack:
        stack.enter_context(held_by_this_thread(decoder_of(model)))
        stack.callback(_thaw, before)
        for parameter, _, _ in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        yield stack


def _thaw(before: list[tuple[nn.Parameter, bool, Tensor | None]]) -> None:
    for parameter, requires_grad, grad in before:
        parameter.requires_grad_(requires_grad)
        parameter.grad = grad


def hold(owner: nn.Module, name: str, part: nn.Module | nn.Parameter, undo: ExitStack) -> None:
    """Make `part` a child or parameter of `owner` (so that devices, optimisers and wrappers find it) until undone."""
    while hasattr(owner, name):  # another edit's part may stand there already
        name += "_"
    if isinstance(part, nn.Parameter):
        owner.register_parameter(name, part)
    else:
        part.train(owner.training)
        owner.add_module(name, part)
    undo.callback(delattr, owner, name)


def master_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which parts are kept: half precision would round small steps away."""
    return torch.promote_types(dtype, torch.float32)


def empty_linear(d_in: int, d_out: int) -> nn.Linear:
    """Return a linear module whose weights are still to be filled; no random number is drawn."""
    return nn.Linear(d_in, d_out, device="meta").to_empty(device="cpu")
