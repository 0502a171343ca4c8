"""What was found out about a model, kept on it for as long as nothing that it rests on changes."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Memory(dict[str, tuple[Any, Any]]):
    """What a model remembers, with what each thing rests on; copies and pickles of the model start with nothing."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def remembered(base: Any, what: str, rests_on: Any, find: Callable[[], T]) -> T:
    """Return what `find` gave while `rests_on` was the same; it stands on the model, so it goes when the model goes."""
    memory = base.__dict__.get("_trimtab_memory")
    if memory is None:
        memory = base._trimtab_memory = Memory()
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
