"""Which model this is: its checkpoint, cheaply, by two values of every weight, and what is known of it already."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from typing_extensions import TypedDict

from trimtab.embedded import EMBEDDED, EMBEDDED_FOLDER
from trimtab.errors import Incompatible
from trimtab.models.anatomy import base_of, stored_weight, text_config
from trimtab.models.weights import unchanged
from trimtab.protocols import Edit

T = TypeVar("T")

WITHIN_A_DTYPE, ACROSS_DTYPES = 1e-5, 2**-7
"""Relative tolerances: records keep six digits; bfloat16 keeps 8 bits, so values differ by up to 2^-8."""


class Fingerprint(TypedDict):
    """What `fingerprint` returns, as it stands in records."""

    name: str
    geometry: dict[str, Any]
    sample: dict[str, tuple[float, float]]
    dtype: str
    quantization: str | None
    adapter: list[str]


def fingerprint(model: Any) -> dict[str, Any]:
    """Return the model's identity for records.

    `geometry` and `sample` (two values of every weight that 4-bit and 8-bit loading leave alone, by the weight's
    name, as it is without the changes that an edit has in place) tell checkpoints apart; `dtype`, `quantization` and
    `adapter` are recorded beside them.
    """
    base, config = base_of(model), text_config(model)
    if base in _STANDING_FOR:
        return _STANDING_FOR[base]
    quantization = getattr(base.config, "quantization_config", None)
    if quantization is not None and not isinstance(quantization, Mapping):
        quantization = quantization.to_dict()
    return {
        "name": name_of(model),
        "revision": getattr(base.config, "_commit_hash", None),
        "geometry": {
            "model_type": config.model_type,
            "n_layers": getattr(config, "num_hidden_layers", None),
            "n_heads": getattr(config, "num_attention_heads", None),
            "d_model": getattr(config, "hidden_size", None),
        },
        "sample": _sample(base),
        "dtype": str(base.dtype).removeprefix("torch."),
        "quantization": _quantization_name(quantization),
        "adapter": sorted(getattr(model, "peft_config", None) or {}),
    }


_STANDING_FOR: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
"""Model -> the fingerprint of the one that it passes for at present."""


@contextlib.contextmanager
def standing_for(model: Any, original: Mapping[str, Any]) -> Iterator[None]:
    """Let a model pass for the one of this fingerprint, from which it was made by working an edit into it.

    Further edits of the same original can then be worked into it.
    """
    base = base_of(model)
    before = _STANDING_FOR.get(base)
    _STANDING_FOR[base] = dict(original)
    try:
        yield
    finally:
        if before is None:
            del _STANDING_FOR[base]
        else:
            _STANDING_FOR[base] = before


def name_of(model: Any) -> str:
    """Return the model's hub id or the last part of its folder: records may be shared, machines' paths may not."""
    name = base_of(model).config.name_or_path
    if not name or not Path(name).is_absolute():
        return name
    return EMBEDDED if Path(name) == EMBEDDED_FOLDER else Path(name).name


def require_same_model(made_on: Mapping[str, Any], model: Any, what: str) -> None:
    """Refuse another checkpoint or geometry; warn about another dtype, quantisation or adapter.

    Raises:
        Incompatible: naming what differs.
    """
    here = fingerprint(model)
    if made_on["geometry"] != here["geometry"]:
        theirs, ours = made_on["geometry"], here["geometry"]
        differing = ", ".join(f"{k} {theirs.get(k)} against {ours[k]}" for k in ours if theirs.get(k) != ours[k])
        raise Incompatible(
            f"{what} was made for another model{_names(made_on, here)}: {differing}; fit it on this one, or name "
            "that model"
        )
    weight = differing_weight(made_on, here)
    if weight is not None:
        raise Incompatible(
            f"{what} was made for another checkpoint of this architecture{_names(made_on, here)}: {weight} differs; "
            "fit it on this one, or name that model"
        )
    for key in ("dtype", "quantization", "adapter"):
        if made_on[key] != here[key]:
            there, now = (_in_words(side[key]) for side in (made_on, here))
            made = f"{key} {there}" if there else f"no {key}"
            warnings.warn(f"{what} was made with {made}, the model has {now or 'none'}", stacklevel=3)


def common_model(one: Edit, other: Edit) -> dict[str, Any] | None:
    """Return the fingerprint that two edits share, or the only one; raises `Incompatible` for different models."""
    ours, theirs = one.record.get("model"), other.record.get("model")
    if not ours or not theirs:
        return ours or theirs
    if ours["geometry"] != theirs["geometry"] or differing_weight(ours, theirs) is not None:
        raise Incompatible(
            f"cannot add {one.name} and {other.name}: they were made for different models "
            f"({ours['name'] or 'unnamed'} and {theirs['name'] or 'unnamed'}); fit both on the same one"
        )
    return ours


def _in_words(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else value or ""


def _names(made_on: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return both names in brackets, or nothing: a model that was built rather than loaded has none."""
    theirs, ours = made_on["name"], here["name"]
    return f" ({theirs or 'unnamed'}, here {ours or 'unnamed'})" if theirs or ours else ""


def differing_weight(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Return the name of a weight whose sampled values differ between two fingerprints, or None.

    Weights that only one of them has (quantised or wrapped in the other) are not compared.
    """
    tolerance = WITHIN_A_DTYPE if one["dtype"] == other["dtype"] else ACROSS_DTYPES
    shared = [name for name in one["sample"] if name in other["sample"]]
    if not shared:
        return "every weight"
    a, b = (torch.tensor([side["sample"][name] for name in shared], dtype=torch.float64) for side in (one, other))
    different = ~torch.isclose(a, b, rtol=tolerance, atol=1e-6, equal_nan=True).all(1)
    return shared[int(different.int().argmax())] if bool(different.any()) else None


def _sample(base: Any) -> dict[str, list[float]]:
    names, values = [], []
    for name, weight in _plain_weights(base):
        # a resized vocabulary adds rows at the end, so rows are counted from the start
        places = [[min(size, 1000) * third // 3 for size in weight.shape] for third in (1, 2)]
        names.append(name)
        values.append(torch.stack([weight.detach()[tuple(place)] for place in places]).float())
    table: list[list[float]] = [[]] * len(names)
    for device in {v.device for v in values}:
        here = [i for i, v in enumerate(values) if v.device == device]
        for i, pair in zip(here, torch.stack([values[i] for i in here]).tolist(), strict=True):
            table[i] = [float(f"{v:.6g}") for v in pair]
    return dict(zip(names, table, strict=True))


def _plain_weights(base: Any) -> Iterator[tuple[str, Tensor]]:
    for name, weight in base.named_parameters():
        quantized = getattr(weight, "quant_state", None) is not None or not weight.is_floating_point()
        stored = stored_weight(base, name) if weight.is_meta else unchanged(weight)
        if stored is None or weight.numel() == 0 or quantized:
            continue
        yield name.replace(".base_layer", ""), stored


def _quantization_name(config: Mapping[str, Any] | None) -> str | None:
    if config is None:
        return None
    if config.get("load_in_8bit"):
        return "int8"
    if config.get("load_in_4bit"):
        return f"{config.get('bnb_4bit_quant_type')}{'-dq' if config.get('bnb_4bit_use_double_quant') else ''}"
    return str.__str__(config.get("quant_method") or "None")  # an enum's value, without its class's name


_MEMORY: weakref.WeakKeyDictionary[Any, dict[str, tuple[Any, Any]]] = weakref.WeakKeyDictionary()
"""Model -> what was found out about it -> what that rests on, and the finding."""


def remembered(base: Any, what: str, rests_on: Any, find: Callable[[], T]) -> T:
    """Return what `find` gave for this model while `rests_on` was the same; it is forgotten when the model goes."""
    memory = _MEMORY.setdefault(base, {})
    if what not in memory or memory[what][0] != rests_on:
        memory[what] = (rests_on, find())
    return memory[what][1]


def warn_once(base: Any, what: str, note: str) -> None:
    """Warn of a model's trait, unless the same was said of it already."""
    remembered(base, what, note, lambda: warnings.warn(note, stacklevel=5))


def traits(base: Any, model: Any = None) -> tuple[Any, ...]:
    """Return what decides how a model computes: its modules, hooks, attention and config, not what its weights say.

    `model` is what is called, if that is a wrapper around `base`: it may do more than the model in it.
    """
    modules = list((base if model is None else model).modules())
    # every hook has a number of its own, so that no hook of a caller's goes unnoticed
    hooks = [key for m in modules for key in (*m._forward_pre_hooks, *m._forward_hooks)]
    # weak references, since another object may come to stand where one was freed, and then has its id
    replaced = [weakref.ref(m.__dict__["forward"]) for m in modules if "forward" in m.__dict__]
    kinds = [(weakref.ref(m), type(m), type(m).forward) for m in modules]
    # parts may have a config, and so a kind of attention, of their own
    attention = [getattr(getattr(m, "config", None), "_attn_implementation", None) for m in modules]
    # as a text that takes whatever values a caller has put into the config
    return base.dtype, base.device, repr(base.config.to_dict()), attention, hooks, replaced, kinds
