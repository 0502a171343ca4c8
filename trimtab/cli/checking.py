"""What a file says, checked against a dataclass: unknown keys and values that do not fit, one sentence each."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Within:
    """Numbers from `low` to `high`; the ends belong to it unless it is `open`."""

    low: float | int
    high: float | int = float("inf")
    open: bool = False

    def __contains__(self, value: float | int) -> bool:
        return self.low < value < self.high if self.open else self.low <= value <= self.high

    def __str__(self) -> str:
        if not isfinite(self.high):
            return f"above {self.low:g}" if self.open else f"of {self.low:g} or more"
        return f"between {self.low:g} and {self.high:g}"


@dataclass(frozen=True)
class NotEmpty:
    """Lists with one entry or more."""

    def __contains__(self, value: Sequence[Any]) -> bool:
        return len(value) > 0

    def __str__(self) -> str:
        return "with one entry or more"


def parsed(text: str) -> Any:
    """Return what YAML says; numbers such as 5e-4, which its version 1.1 takes for text, are numbers here.

    Raises:
        yaml.YAMLError: it cannot be read.
    """
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), None)
    return yaml.load(text, Loader)


WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "nothing"}


def check(said: Mapping[Any, Any], allowed: type, where: str) -> None:
    """Refuse what `allowed`, a dataclass, has no field for or no room for.

    Raises:
        BadValue: naming the key, what it may be and what it was.
    """
    from trimtab.cli.setup import nearest
    from trimtab.errors import BadValue

    hints = get_type_hints(allowed, include_extras=True)
    known = [f.name for f in fields(allowed) if f.init]
    for key, value in said.items():
        if key not in known:
            raise BadValue(f"{where}: unknown key {key!r:.60}{nearest(str(key), known)}")
        if not fits(value, hints[key]):
            raise BadValue(f"{where}: {key} must be {described(hints[key])}, got {value!r:.60}")


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value read from YAML is what a type hint says; hints of code (callables) fit anything."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return fits(value, parts[0]) and all(value in limit for limit in parts[1:])
    if kind in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if kind is Literal:
        return value in parts
    if kind in (Sequence, tuple, list):
        return isinstance(value, list | tuple) and all(fits(each, parts[0]) for each in value)
    if _is_named_tuple(hint):
        kinds = get_type_hints(hint).values()
        return isinstance(value, list | tuple) and len(value) == len(kinds) and all(map(fits, value, kinds))
    if kind is Mapping:
        return isinstance(value, Mapping) and all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(hint, type) or hint is Any or isinstance(value, hint)


def described(hint: Any) -> str:
    """Return a type hint in words."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return " ".join([described(parts[0]), *map(str, parts[1:])])
    if kind in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(described(part) for part in parts if part is not int or float not in parts))
    if kind is Literal:
        return " or ".join(map(str, parts))
    if kind in (Sequence, tuple, list):
        return f"a list of {described(parts[0])}"
    if _is_named_tuple(hint):
        return f"[{', '.join(hint._fields)}]"
    if kind is Mapping:
        return "keys with values"
    return WORDS.get(hint, "another kind of value")


def _is_named_tuple(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields")
