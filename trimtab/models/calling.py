"""How a model is called: in evaluation mode and without gradients, with the arguments that it takes, giving numbers."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import BadValue
from trimtab.models.anatomy import base_of
from trimtab.protocols import Edit, EnterAt


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Run the block without gradients and with every module in evaluation mode; restore each module's mode."""
    with evaluation(model), torch.inference_mode():
        yield


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Run the block with every module in evaluation mode; restore each module's mode."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Run the block with gradients, of activations alone, and every module in evaluation mode; restore both after."""
    training = [module for module in model.modules() if module.training]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    try:
        for parameter in trained:
            parameter.requires_grad = False
        with torch.enable_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad = True
        for module in training:
            module.training = True


def logits_limit(model: Any, keep: int) -> dict[str, int]:
    """Return the argument that makes the model's head run on the last `keep` positions only, if it has one."""
    takes = "logits_to_keep" in inspect.signature(base_of(model).forward).parameters
    return {"logits_to_keep": keep} if takes else {}


def cache_name(model: Any) -> str:
    """Return the name under which the model takes and gives its cache; transformers 5.2x renamed it."""
    return "cache" if "cache" in inspect.signature(base_of(model).forward).parameters else "past_key_values"


def takes_positions(model: Any) -> bool:
    """Return whether the model is told its tokens' positions, rather than counting them itself."""
    return "position_ids" in inspect.signature(base_of(model).forward).parameters


def entering(edit: Edit | None, model: Any) -> EnterAt:
    """Return what enters the edit on the model again and again; None stands for no edit."""
    return (lambda _: contextlib.nullcontext(model)) if edit is None else edit.prepared(model)


def require_numbers(values: Tensor, what: str) -> None:
    """Raise `BadValue` if some value is NaN or above every number; -inf is a logarithm of 0."""
    found = "NaN" if bool(values.isnan().any()) else "infinite" if bool(values.isposinf().any()) else None
    if found:
        raise BadValue(
            f"{what} came out as {found}: check the model's weights, load it in float32 or bfloat16, or lower the "
            "edit's strength"
        )
