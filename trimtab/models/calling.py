"""How a model is called: in evaluation mode and without gradients, with the arguments that it takes, giving numbers."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import BadValue
from trimtab.models.anatomy import base_of, decoder_of, input_device
from trimtab.models.hooks import edits_suspended
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
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad = False
        with evaluation(model), torch.enable_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad = True


def tried_out(model: Any, tokens: Sequence[int], *hooks: AbstractContextManager[None]) -> None:
    """Run the model on a few tokens, as if no edit were in place, under hooks that see or change what its parts do."""
    base = base_of(model)
    ids = torch.tensor([tokens], device=input_device(base))
    with contextlib.ExitStack() as stack:
        for context in (inference(base), edits_suspended(decoder_of(model)), *hooks):
            stack.enter_context(context)
        base(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)


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


def cache_behind(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Any:
    """Return the cache of left-padded rows of tokens, for forwards that go on behind them."""
    positions = {"position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0)} if takes_positions(model) else {}
    given = {"input_ids": input_ids, "attention_mask": attention_mask, **positions, **logits_limit(model, 1)}
    return getattr(model(**given, use_cache=True), cache_name(model))


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
