"""Bundles: a parameter of a verb that is a dataclass stands for the flags of its fields, each typed once."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function as typer reads it, with the fields of its bundles among its parameters.

    A bundle is a frozen dataclass whose fields are annotated as typer's options are. What stands as the parameter's
    default holds the flags' defaults, so that verbs may differ in them.
    """
    parameters = inspect.signature(function, eval_str=True).parameters
    bundles = {name: p.default for name, p in parameters.items() if is_dataclass(p.default)}
    flags: list[inspect.Parameter] = []
    for name, parameter in parameters.items():
        flags += _flags(bundles[name]) if name in bundles else [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]

    @functools.wraps(function)
    def called(**given: Any) -> None:
        made = {name: type(b)(**{f.name: given.pop(f.name) for f in fields(b)}) for name, b in bundles.items()}
        function(**given, **made)

    del called.__wrapped__  # its parameters are not those that typer must read
    called.__signature__ = inspect.Signature(flags)  # pyright: ignore[reportAttributeAccessIssue]
    called.__annotations__ = {flag.name: flag.annotation for flag in flags}
    return called


def _flags(bundle: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(type(bundle), include_extras=True)
    return [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=getattr(bundle, f.name), annotation=hints[f.name]
        )
        for f in fields(bundle)
    ]
