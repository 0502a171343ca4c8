"""Changing what modules take or give at the positions that are to be edited, such as by adding vectors to heads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.activations.labelled import Head
from trimtab.errors import BadValue, Incompatible, ShapeError
from trimtab.models.anatomy import base_of, decoder_layers, decoder_of, text_config
from trimtab.models.heads import HeadSite, find_heads
from trimtab.models.hooks import (
    Switch,
    held_by_this_thread,
    on_arguments,
    on_inputs,
    on_outputs,
    require_uncompiled,
)
from trimtab.protocols import Positions, TokenMask


class Affine(NamedTuple):
    """A change of each position by what stands there: `x - left @ right @ (x - centre)`."""

    left: Float[Tensor, "width rank"]
    right: Float[Tensor, "rank width"]
    centre: Float[Tensor, " width"]

    @property
    def shape(self) -> torch.Size:
        """Of what it changes, as a vector has it."""
        return self.centre.shape

    def added(self, x: Tensor) -> Tensor:
        """Return what is added to each position."""
        return (self.centre - x) @ self.right.T @ self.left.T


class CodeBook(NamedTuple):
    """A change of the positions that lie within a key's radius: `strength` times the way to the nearest one's value."""

    keys: Float[Tensor, "entry width"]
    values: Float[Tensor, "entry width"]
    radii: Float[Tensor, " entry"]
    strength: Float[Tensor, ""]

    @property
    def shape(self) -> torch.Size:
        """Of what it changes, as a vector has it."""
        return self.keys.shape[1:]

    def added(self, x: Tensor) -> Tensor:
        """Return what is added to each position: nothing where no key is near."""
        x = x.to(self.keys.dtype)
        # sums of squares, since differences of large products do not tell what is near
        away = torch.cdist(x, self.keys.expand(len(x), -1, -1), compute_mode="donot_use_mm_for_euclid_dist")
        share, nearest = (away / self.radii).min(-1)
        return torch.where((share <= 1)[..., None], self.strength * (self.values[nearest] - x), torch.zeros_like(x))


Change: TypeAlias = Float[Tensor, " width"] | Affine | CodeBook
"""A vector that is added, or what is added by what stands there."""


class Place(NamedTuple):
    """Where a change is made."""

    layer: int
    """That it belongs to, for messages."""
    hooked: Callable[..., AbstractContextManager[None]]
    """`on_inputs` or `on_outputs`."""
    module: nn.Module
    change: Change


def add_to_heads(
    model: Any,
    deltas: Mapping[Head, Float[Tensor, " d_head"]],
    positions: Positions = "generated",
    *,
    heads: Sequence[HeadSite] | None = None,
) -> AbstractContextManager[Any]:
    """Add a vector to chosen heads' activations, at the input of the attention output projection; yields the model.

    Where it acts is `positions`: `"generated"` is the last position of each forward and demands a KV cache for
    forwards over several positions; a mask must have the forward's shape. A function that was compiled around the
    model is traced again at its first call inside the block. `heads` are the model's sites, found
    by `find_heads` if not given.

    Raises:
        BadValue: a head the model does not have; `"generated"` in a forward without a cache or with right padding.
        ShapeError: a delta or a mask of the wrong shape.
        Incompatible: the model was compiled before, another thread has an edit in place, or a forward ran in which
            the hooks did not fire.
    """
    require_uncompiled(model)  # before forwards of a compiled model look for its heads
    sites = {site.layer: site for site in (find_heads(model) if heads is None else heads)}
    vectors: dict[int, Tensor] = {}
    for (layer, head), delta in deltas.items():
        site = sites.get(layer)
        if site is None or not 0 <= head < site.n_heads:
            n_heads = next(iter(sites.values())).n_heads
            raise BadValue(f"no head {head} in layer {layer}: the model has layers 0-{max(sites)} of {n_heads} heads")
        _require_width(delta, site.d_head, f"layer {layer} head {head}")
        vector = vectors.setdefault(layer, torch.zeros(site.n_heads, site.d_head, dtype=delta.dtype))
        vector[head] += delta.cpu()
    places = [Place(layer, on_inputs, sites[layer].module, v.flatten()) for layer, v in vectors.items()]
    return changed_at(model, places, positions)


def changed_residual(
    model: Any, changes: Mapping[int, Change], positions: Positions = "generated"
) -> AbstractContextManager[Any]:
    """Change the residual stream after chosen decoder layers (counted from 0) at `positions`, as by adding vectors.

    Raises:
        BadValue, ShapeError: a layer that the model does not have, a change of another width; as `add_to_heads`.
        Incompatible: as `add_to_heads`.
    """
    require_layers(model, changes)
    layers = decoder_layers(model)
    return changed_at(model, [Place(i, on_outputs, layers[i], change) for i, change in changes.items()], positions)


def require_layers(model: Any, changes: Mapping[int, Change]) -> None:
    """Raise `BadValue` for a layer that the model does not have, `ShapeError` for a change of another width."""
    n_layers, d_model = len(decoder_layers(model)), text_config(model).hidden_size
    for layer, change in changes.items():
        if not 0 <= layer < n_layers:
            raise BadValue(f"no layer {layer}: the model has layers 0-{n_layers - 1}")
        _require_width(change, d_model, f"layer {layer}")


@contextlib.contextmanager
def changed_at(model: Any, places: Sequence[Place], positions: Positions) -> Iterator[Any]:
    """Make each change, yield the model, and check that they acted. Places whose vector is zero run as they are.

    Raises:
        BadValue, Incompatible, ShapeError: as `add_to_heads`.
    """
    require_uncompiled(model)
    if isinstance(positions, str) and positions not in ("generated", "all"):
        raise BadValue(f"positions must be 'generated', 'all' or a mask (batch, seq), got {positions!r}")
    decoder, switch = decoder_of(model), Switch()
    changers: list[tuple[int, _Changer]] = []
    ran = False

    def note(output: Any) -> None:  # noqa: ARG001
        nonlocal ran
        # written and never read in a forward: a compiled one would be traced again for every other value
        if not switch.suspended:
            ran = True

    with contextlib.ExitStack() as stack:
        switches = stack.enter_context(held_by_this_thread(decoder))
        switches.append(switch)
        stack.callback(switches.remove, switch)
        if isinstance(positions, str) and positions == "generated":
            checks = [(decoder, _require_one_position), (base_of(model), _require_one_prediction)]
            hooks = [(m, lambda given, c=c: None if switch.suspended else c(given)) for m, c in checks]
            stack.enter_context(on_arguments(hooks))
        stack.enter_context(on_outputs([(decoder, note)]))
        for layer, hooked, module, change in places:
            if not isinstance(change, Tensor) or bool(change.any()):
                changer = _Changer(change, positions, switch)
                changer.place(_home(module), base_of(model).dtype)
                changers.append((layer, changer))
                stack.enter_context(hooked([(module, changer)]))
        yield model
    silent = sorted({layer for layer, changer in changers if not changer.fired})
    if ran and silent:
        raise Incompatible(f"the edit never acted on layer(s) {silent}: their projections were not called as modules")


def _require_width(change: Change, width: int, where: str) -> None:
    if change.shape != (width,):
        raise ShapeError(f"delta for {where}: expected {(width,)}, got {tuple(change.shape)}")


class _Changer:
    """Makes one change at the positions; keeps a copy of it for each device and dtype it meets."""

    def __init__(self, change: Change, positions: Positions, switch: Switch) -> None:
        self.change, self.positions, self.switch = change, positions, switch
        self.placed: dict[tuple[torch.device, torch.dtype], Change] = {}
        self.fired = False

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Keep a copy of the change there; a compiled forward that finds it need not be traced a second time."""
        # a small copy to the device need not wait for what the device is computing
        if isinstance(self.change, Tensor):
            self.placed[device, dtype] = self.change.to(device=device, dtype=dtype, non_blocking=True)
        else:
            exact = torch.promote_types(dtype, torch.float32)
            parts = (part.to(device=device, dtype=exact, non_blocking=True) for part in self.change)
            self.placed[device, dtype] = type(self.change)(*parts)

    def __call__(self, x: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch seq width"] | None:
        if self.switch.suspended:
            return None
        self.fired = True
        if (x.device, x.dtype) not in self.placed:
            self.place(x.device, x.dtype)
        if isinstance(self.positions, str):
            if self.positions == "all" or x.shape[1] == 1:
                return x + self._added(x)
            return torch.cat([x[:, :-1], x[:, -1:] + self._added(x[:, -1:])], dim=1)
        mask = _mask_for(self.positions, x).to(x.device)
        if mask.dtype == torch.bool:
            return torch.where(mask[..., None], x + self._added(x), x)
        return x + mask[..., None].to(x.dtype) * self._added(x)

    def _added(self, x: Tensor) -> Tensor:
        change = self.placed[x.device, x.dtype]
        return change if isinstance(change, Tensor) else change.added(x).to(x.dtype)


def _home(module: nn.Module) -> torch.device:
    """Return where a module's weights are; offloaded ones are on the CPU until they are wanted."""
    weight = next(module.parameters(), None)
    return torch.device("cpu") if weight is None or weight.is_meta else weight.device


def _mask_for(positions: Tensor | TokenMask, x: Float[Tensor, "batch seq width"]) -> Tensor:
    mask = positions.value if isinstance(positions, TokenMask) else positions
    if mask is None:
        raise ShapeError("the TokenMask has no value: set mask.value before each forward")
    if mask.shape != x.shape[:2]:
        raise ShapeError(
            f"the mask is {tuple(mask.shape)}, the forward is {tuple(x.shape[:2])} (batch, seq); give one entry per "
            "token"
        )
    return mask


def _require_one_position(given: dict[str, Any]) -> None:
    """Refuse a forward of the decoder in which "generated" has no meaning."""
    tokens = given.get("input_ids")
    tokens = given.get("inputs_embeds") if tokens is None else tokens
    if tokens is None or tokens.shape[1] == 1:
        return
    past = _cache_among(given)
    if past is None:
        raise BadValue(
            f"positions='generated' in one forward over {tokens.shape[1]} positions without a cache would edit the "
            "last one only; pass a mask (batch, seq) of the positions to edit, or positions='all'"
        )
    if not hasattr(past, "get_seq_length"):
        raise BadValue(
            f"positions='generated' edits the last position of each row, and a {type(past).__name__} (continuous "
            "batching) packs several sequences into one; call generate in place of generate_batch"
        )
    if _ends_in_padding(given.get("attention_mask"), past, tokens.shape[1]):
        raise BadValue(
            "positions='generated' needs left padding: some rows of this batch end in padding; "
            "set tokenizer.padding_side = 'left'"
        )


def _require_one_prediction(given: dict[str, Any]) -> None:
    """Refuse, on the whole model, a step that predicts tokens at several positions and edits the last one only."""
    wanted = given.get("logits_to_keep")
    # without a cache it is no step of a generation: the decoder's check speaks of it
    if isinstance(wanted, int) and wanted > 1 and _cache_among(given) is not None:
        raise BadValue(
            f"positions='generated' edits the last position of a forward only, and this one is to predict {wanted} "
            "tokens at once, as assisted (speculative) generation does; generate without assistant_model and "
            "prompt_lookup_num_tokens, or pass a mask (batch, seq) of the positions to edit"
        )


def _cache_among(given: Mapping[str, Any]) -> Any:
    # transformers 5.24 renamed the argument
    return given.get("cache", given.get("past_key_values"))


def _ends_in_padding(mask: Any, past: Any, length: int) -> bool:
    if isinstance(mask, Mapping):
        mask = next(iter(mask.values()))
    if not isinstance(mask, Tensor):
        return False
    if mask.ndim == 2:
        return not bool(mask[:, -1].all())
    # with a static cache, generate() has expanded the mask already: the last token must be seen by itself
    place = int(past.get_seq_length()) + length - 1
    if mask.ndim != 4 or place >= mask.shape[-1]:
        return False
    own = mask[:, 0, -1, place]
    return not bool(own.all() if own.dtype == torch.bool else (own == 0).all())
