"""Whether a plain value, as JSON or YAML give it, has the fields and types that annotations state; by pydantic."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, to_json

from trimtab.errors import BadValue

SHOULD_BE = "Input should be "
"""How pydantic begins to say what it expected."""


def checked(value: Any, wanted: Any) -> Any:
    """Return a plain value as what `wanted` is: a dataclass, a `TypedDict` or any other annotation.

    Nothing is converted but a list into a tuple, where one is wanted, and an integer into a number. Fields that are
    not those of a `TypedDict` or dataclass are left out.

    Raises:
        BadValue: saying which field is missing, or is what and should be what; or as the dataclass itself refuses.
    """
    try:
        return _adapter(wanted).validate_json(to_json(value), strict=True)
    except ValidationError as cause:
        raise BadValue(_in_words(cause.errors(include_url=False), value)) from None


def fault(value: Any, wanted: Any) -> str | None:
    """Return why a plain value is not what is wanted, as `checked` would say it, or None."""
    try:
        checked(value, wanted)
    except BadValue as wrong:
        return str(wrong)
    return None


@functools.cache
def _adapter(wanted: Any) -> Any:
    return TypeAdapter(wanted)


def _in_words(errors: Sequence[ErrorDetails], value: Any) -> str:
    places = [_place(error["loc"], value) for error in errors]
    # of what the alternatives of a union say, that about the innermost value says most
    inner = max((p for p in places if p.startswith(places[0])), key=len)
    here = [error for error, place in zip(errors, places, strict=True) if place == inner]
    if here[0]["type"] == "missing":
        return f"field {'.'.join(filter(None, (inner, str(here[0]['loc'][-1]))))!r} is missing"
    said = " or ".join(dict.fromkeys(error["msg"].removeprefix(SHOULD_BE) for error in here))
    said = f", expected {said}" if here[0]["msg"].startswith(SHOULD_BE) else f"; {said[0].lower()}{said[1:]}"
    return f"{f'field {inner!r}' if inner else 'it'} is {here[0]['input']!r:.40}{said}"


def _place(steps: Sequence[int | str], value: Any) -> str:
    """Return where an error is, as `a.b[1]`: pydantic also counts the alternatives of a union as steps."""
    place = ""
    for step in steps:
        if isinstance(value, dict) and step in value:
            place, value = f"{place}.{step}", value[step]
        elif isinstance(value, list | tuple) and isinstance(step, int):
            place, value = f"{place}[{step}]", value[step]
    return place.removeprefix(".")
