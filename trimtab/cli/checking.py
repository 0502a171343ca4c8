"""What a user's YAML says: read without repeated keys, and made into dataclasses; one sentence a mistake."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from trimtab.errors import BadValue, nearest

T = TypeVar("T")


def yaml_value(text: str, what: str) -> Any:
    """Return what YAML says; numbers such as 5e-4, which its version 1.1 takes for text, are numbers here.

    Raises:
        BadValue: it cannot be read, or a key stands twice; beginning with `what`.
    """
    import re

    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.YAMLError(f"the key {key!r} stands twice")
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), None)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as cause:
        raise BadValue(f"{what}: {' '.join(str(cause).split())}") from cause


def made(kind: type[T], said: Mapping[Any, Any], where: str) -> T:
    """Return a dataclass with the fields that a user set, its own or those of a dataclass among its fields.

    Raises:
        BadValue: a key that is no field (the nearest ones are offered), or a value of another type or range.
    """
    from trimtab.fields import checked

    hints = get_type_hints(kind)
    own = [f.name for f in fields(kind) if f.init]  # pyright: ignore[reportArgumentType]
    inner = {f.name: name for name in own if is_dataclass(hints[name]) for f in fields(hints[name])}
    values: dict[str, Any] = {}
    for key, value in said.items():
        if key in own:
            values[key] = value
        elif key in inner:
            values.setdefault(inner[key], {})[key] = value
        else:
            raise BadValue(f"{where}: unknown key {key!r:.60}{nearest(str(key), [*own, *inner])}")
    try:
        return checked(values, kind)
    except BadValue as cause:
        raise BadValue(f"{where}: {cause}") from cause
