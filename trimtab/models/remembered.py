"""What was found out about a model, kept on it for as long as nothing that it rests on changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def remembered(base: Any, what: str, rests_on: Any, find: Callable[[], T]) -> T:
    """Return what `find` gave while `rests_on` was the same; it stands on the model, so it goes when the model goes."""
    mark = f"_trimtab_{what}"
    known = base.__dict__.get(mark)
    if known is None or known[0] != rests_on:
        known = (rests_on, find())
        setattr(base, mark, known)
    return known[1]


def traits(base: Any) -> tuple[Any, ...]:
    """Return what decides how a model computes: its modules, hooks, attention and config, not what its weights say."""
    modules = list(base.modules())
    # every hook has a number of its own, so that no hook of a caller's goes unnoticed
    hooks = [key for m in modules for key in (*m._forward_pre_hooks, *m._forward_hooks)]
    replaced = [id(m.__dict__["forward"]) for m in modules if "forward" in m.__dict__]
    attention = getattr(base.config, "_attn_implementation", None)
    kinds = [(id(m), type(m)) for m in modules]
    return attention, base.dtype, base.device, base.config.to_json_string(), tuple(kinds), tuple(hooks), tuple(replaced)
