"""The memory that a step will take, by estimate, beside what is there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from trimtab.devices import free_bytes, in_bytes
from trimtab.errors import OutOfMemory
from trimtab.models.anatomy import base_of, decoder_layers, input_device, text_config
from trimtab.models.stored_bits import stored_quantised
from trimtab.peft.parts.attached import Trained
from trimtab.peft.recipe import Recipe

if TYPE_CHECKING:
    from trimtab.peft.train.sharding import Sharding

OPTIMIZER_BYTES = {"adamw_8bit": 2, "paged_adamw": 8, "paged_adamw_8bit": 2}
"""Of bitsandbytes' optimisers, a trained number; torch's AdamW keeps two numbers of the parameter's own dtype, which
for 16-bit weights is that of their float32 copies."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what holds them, on the model's device; `untuned` is in the CPU's memory wherever the model is."""

    weights: int
    """The model's, with the scales of quantised ones and the method's parts."""
    untuned: int
    """See `Trained`."""
    gradients: int
    optimizer: int
    activations: int
    """With the weights that a forward makes anew, or casts."""
    logits: int
    step: int
    """What the optimiser takes for a moment, when activations and logits are gone: torch's AdamW on a GPU one number
    more for each trained one, and float32 copies of 16-bit weights their gradients."""
    on_cpu: bool
    """Whether the model is on the CPU, so that `untuned` counts towards the total."""
    sharded: bool = False
    """Whether the weights are split: then these are bytes of each process, beside the model that it was given."""

    @property
    def total(self) -> int:
        """The sum on the model's device: an estimate of the peak."""
        given = 0 if self.sharded else self.weights
        return given + self.added + (self.untuned if self.on_cpu else 0)

    @property
    def added(self) -> int:
        """What a step takes beyond what stands in memory before it."""
        made = self.weights if self.sharded else 0
        return made + self.gradients + self.optimizer + max(self.activations + self.logits, self.step)


def estimate_memory(
    model: Any, trained: Trained, recipe: Recipe, *, length: int, columns: int, sharding: Sharding | None = None
) -> MemoryEstimate:
    """Return an estimate for forwards of `recipe.micro_batch` rows of `length` tokens, `columns` of which have logits.

    Activations a layer and token: eight vectors of the model's width and four of the MLP's (attention by SDPA keeps
    no scores); under checkpointing one vector a layer, and one layer in full.
    """
    config, base = text_config(model), base_of(model)
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    size = 2 if recipe.precision or base.dtype in (torch.bfloat16, torch.float16) else base.dtype.itemsize
    rows = recipe.micro_batch or recipe.batch_size
    layer = rows * length * (8 * width + 4 * inner) * size
    kept = rows * length * width * size
    n_layers = config.num_hidden_layers
    weights = sum(map(stored_bytes, (*base.parameters(), *base.buffers())))
    # autocast's copies of float32 weights, which the backward pass reads; checkpointed layers make them anew
    cast = weights // 2 if recipe.precision and base.dtype == torch.float32 and not recipe.checkpointing else 0
    n_trained = trained.n
    if sharding:
        weights = _held_of(model, weights, sharding)
        n_trained = math.ceil(n_trained / sharding.processes) if trained.in_place else n_trained
    copies = 4 if trained.itemsize == 2 else 0
    wide = max(4, trained.itemsize)
    device = sharding.device if sharding else input_device(base)
    foreach = device.type == "cuda" and recipe.optimizer == "adamw"
    return MemoryEstimate(
        weights=weights,
        untuned=trained.untuned,
        gradients=trained.itemsize * n_trained,
        optimizer=(OPTIMIZER_BYTES.get(recipe.optimizer, 2 * wide) + copies) * n_trained,
        activations=(layer + n_layers * kept if recipe.checkpointing else n_layers * layer) + trained.remade + cast,
        # in the model's precision, in float32, and the gradient
        logits=rows * columns * config.vocab_size * (size + 8),
        step=(wide * foreach + copies) * n_trained,
        on_cpu=device.type == "cpu",
        sharded=sharding is not None,
    )


def _held_of(model: Any, weights: int, sharding: Sharding) -> int:
    """Return the bytes of split weights that a process holds: its share, and what is gathered at a time.

    That is two layers (the next one is fetched while one runs) and what stands outside the layers.
    """
    layers = [sum(p.nbytes for p in layer.parameters()) for layer in decoder_layers(model)]
    gathered = 2 * max(layers) + max(0, weights - sum(layers)) if sharding.reshard else weights
    return weights // sharding.processes + gathered


def stored_bytes(tensor: Any) -> int:
    """Return the bytes of a weight or buffer, with the scales of a quantised one."""
    quantised = stored_quantised(tensor)
    return tensor.nbytes if quantised is None else quantised[0] // 8


def require_memory(
    model: Any,
    trained: Trained,
    recipe: Recipe,
    *,
    length: int,
    columns: int,
    free: int | None = None,
    sharding: Sharding | None = None,
) -> MemoryEstimate:
    """Return the estimate; raises `OutOfMemory`, saying what would fit, if it is more than there is."""
    free = free_bytes(sharding.device if sharding else input_device(model)) if free is None else free
    of_recipe = partial(estimate_memory, model, trained, length=length, columns=columns, sharding=sharding)
    wanted = of_recipe(recipe)
    if wanted.added <= free:
        return wanted
    beyond = "with this process's part of the weights" if sharding else "beyond the weights"
    raise OutOfMemory(
        f"a step would take about {in_bytes(wanted.added)} {beyond}, {in_bytes(free)} are free; "
        + _what_fits(of_recipe, recipe, free)
    )


def _what_fits(of_recipe: Callable[[Recipe], MemoryEstimate], recipe: Recipe, free: int) -> str:
    rows = recipe.micro_batch or recipe.batch_size
    sizes = [n for n in range(rows, 0, -1) if recipe.batch_size % n == 0]
    for checkpointing in (recipe.checkpointing, True):
        for n in sizes:
            smaller = replace(recipe, micro_batch=n, checkpointing=checkpointing)
            if of_recipe(smaller).added <= free:
                extra = " and checkpointing=True" if checkpointing and not recipe.checkpointing else ""
                return f"micro_batch={n}{extra} would fit"
    return (
        "no smaller micro_batch would fit either: shorten the examples, take a method with fewer trainable parameters, "
        "a 4-bit model or an 8-bit optimizer"
    )
