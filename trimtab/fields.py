"""Whether a JSON value has the fields and types that a class of annotations states."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict


def fault(value: Any, wanted: Any, name: str = "") -> str | None:
    """Return what is wrong with a value read from JSON, as "field 'a.b' ...", or None.

    Args:
        wanted: a `TypedDict` (other fields may stand beside its own), `list[...]`, `tuple[...]` for a list of that
            length, `dict[str, ...]`, `float` (any number), another class, a union of them, or `Any`.
        name: where the value stands.
    """
    if wanted is Any:
        return None
    origin, inner = get_origin(wanted), get_args(wanted)
    if is_typeddict(wanted):
        return _fault_of_fields(value, wanted, name) if isinstance(value, dict) else _not(value, "an object", name)
    if origin in (Union, types.UnionType):
        faults = [fault(value, one, name) for one in inner]
        # the first alternative is the one that says most
        return None if None in faults else faults[0]
    if origin is list or origin is tuple:
        if not isinstance(value, list) or (origin is tuple and len(value) != len(inner)):
            return _not(value, f"a list of {len(inner)}" if origin is tuple else "a list", name)
        each = inner if origin is tuple else inner * len(value)
        return _first(fault(v, one, f"{name}[{i}]") for i, (v, one) in enumerate(zip(value, each, strict=True)))
    if origin is dict and isinstance(value, dict):
        return _first(fault(v, inner[1], f"{name}.{key}") for key, v in value.items())
    return None if _is(value, origin or wanted) else _not(value, _NAMES.get(origin or wanted, "null"), name)


_NAMES = {int: "an integer", float: "a number", str: "a text", bool: "true or false", dict: "an object"}


def _is(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _fault_of_fields(value: dict[str, Any], wanted: Any, name: str) -> str | None:
    for key, kind in get_type_hints(wanted, include_extras=True).items():
        inside = f"{name}.{key}" if name else key
        optional = get_origin(kind) is NotRequired
        if key not in value:
            if optional:
                continue
            return f"field {inside!r} is missing"
        found = fault(value[key], get_args(kind)[0] if optional else kind, inside)
        if found:
            return found
    return None


def _first(faults: Iterable[str | None]) -> str | None:
    return next((f for f in faults if f), None)


def _not(value: Any, wanted: str, name: str) -> str:
    return f"field {name!r} is {value!r:.40}, expected {wanted}"
