"""Memory: what a step will take by estimate, what is there, and what was taken at the peak."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from trimtab.errors import BadValue
from trimtab.models.anatomy import base_of, decoder_layers, input_device, text_config
from trimtab.models.stored_bits import stored_quantised
from trimtab.peft.methods.base import Trained
from trimtab.peft.train.recipe import Recipe
from trimtab.posix import posix_module

if TYPE_CHECKING:
    from trimtab.peft.train.sharding import Sharding

OPTIMIZER_BYTES = {"adamw_8bit": 2, "paged_adamw": 8, "paged_adamw_8bit": 2}
"""Of bitsandbytes' optimisers, a trained number; torch's AdamW keeps two numbers of the parameter's own dtype."""


@dataclass(frozen=True)
class Estimate:
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
    more for each trained one."""
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


def estimate(
    model: Any, trained: Trained, recipe: Recipe, *, length: int, columns: int, sharding: Sharding | None = None
) -> Estimate:
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
    device = sharding.device if sharding else input_device(base)
    foreach = device.type == "cuda" and recipe.optimizer == "adamw"
    return Estimate(
        weights=weights,
        untuned=trained.untuned,
        gradients=trained.itemsize * n_trained,
        optimizer=OPTIMIZER_BYTES.get(recipe.optimizer, 2 * trained.itemsize) * n_trained,
        activations=(layer + n_layers * kept if recipe.checkpointing else n_layers * layer) + trained.remade + cast,
        # in the model's precision, in float32, and the gradient
        logits=rows * columns * config.vocab_size * (size + 8),
        step=trained.itemsize * n_trained if foreach else 0,
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


def require_room_on_cpu(wanted: int, free: int | None = None) -> None:
    """Raise `BadValue` if the CPU's memory has no room for `wanted` bytes of weights kept as they were."""
    free = free_on_cpu() if free is None else free
    if wanted > free:
        raise BadValue(
            f"keeping the untuned weights takes {_gb(wanted)} of the CPU's memory, {_gb(free)} are free; tune fewer of "
            "the topmost layers, or take a method that leaves the weights alone (trimtab methods lists them)"
        )


def available(device: torch.device) -> int:
    """Return the bytes free on a device."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return free_on_cpu()


def free_on_cpu(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the bytes of the CPU's memory that this process may still take: a container's or a job's limit counts.

    Limits are those of the process's control groups (Linux, both versions; a limit holds for all groups inside).
    """
    free = psutil.virtual_memory().available
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, kinds, place = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        # in a container the path may be the host's, of which only the root is seen
        for group in (Path(place), *Path(place).parents):
            free = min(free, _free_in(groups / kinds / group.relative_to("/"), *names))
    return free


def _free_in(group: Path, limit: str, taken: str) -> int:
    """Return what a control group may still take; cached files give way, so they count as free."""
    try:
        most, now = ((group / name).read_text().strip() for name in (limit, taken))
        held = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # the group is not seen from here, or has no limit
        return sys.maxsize
    if most == "max":
        return sys.maxsize
    cached = sum(int(held.get(f"total_{name}", held.get(name, 0))) for name in ("inactive_file", "active_file"))
    return max(0, int(most) - int(now) + cached)


def require_memory(
    model: Any,
    trained: Trained,
    recipe: Recipe,
    *,
    length: int,
    columns: int,
    free: int | None = None,
    sharding: Sharding | None = None,
) -> Estimate:
    """Return the estimate; raises `BadValue`, saying what would fit, if it is more than there is."""
    free = available(sharding.device if sharding else input_device(model)) if free is None else free
    of_recipe = partial(estimate, model, trained, length=length, columns=columns, sharding=sharding)
    wanted = of_recipe(recipe)
    if wanted.added <= free:
        return wanted
    beyond = "with this process's part of the weights" if sharding else "beyond the weights"
    raise BadValue(
        f"a step would take about {_gb(wanted.added)} {beyond}, {_gb(free)} are free; "
        + _what_fits(of_recipe, recipe, free)
    )


def _what_fits(of_recipe: Callable[[Recipe], Estimate], recipe: Recipe, free: int) -> str:
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


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size > 1e8 else f"{size / 1e6:.1f} MB"


class PeakMemory:
    """Measures the peak from its creation on, in bytes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        try:  # Linux: 5 resets the high-water mark of the resident set
            Path("/proc/self/clear_refs").write_text("5")
            self._resettable = True
        except OSError:
            self._resettable = False

    def read(self) -> dict[str, int]:
        """Return the peaks: `rss`, and on a GPU `cuda_allocated` and `cuda_reserved`."""
        found = {"rss": self._rss()}
        if self._device.type == "cuda":
            found["cuda_allocated"] = torch.cuda.max_memory_allocated(self._device)
            found["cuda_reserved"] = torch.cuda.max_memory_reserved(self._device)
        return found

    def _rss(self) -> int:
        if self._resettable:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        resource = posix_module("resource", "measuring the peak of memory")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
