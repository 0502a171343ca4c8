"""The only file that registers hooks and swaps forwards: reading and replacing what modules take and give."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn

from trimtab.errors import Incompatible

Replace: TypeAlias = Callable[[Tensor], Tensor | None]
"""Gets a module's first input or output; returns what stands in its place, or None to leave it."""
ReplaceArguments: TypeAlias = Callable[[dict[str, Any]], Mapping[str, Any] | None]
"""Gets a module's arguments by name; those that it returns stand in the place of the given ones."""


@contextlib.contextmanager
def on_inputs(hooks: Iterable[tuple[nn.Module, Replace]]) -> Iterator[None]:
    """Call each function on its module's first input at every forward inside the block."""
    with ExitStack() as stack:
        for module, function in hooks:
            _before(stack, module, partial(_replace_first_input, function))
        yield


@contextlib.contextmanager
def on_outputs(hooks: Iterable[tuple[nn.Module, Replace]]) -> Iterator[None]:
    """Call each function on its module's (first) output at every forward inside the block."""
    with ExitStack() as stack:
        for module, function in hooks:
            stack.callback(module.register_forward_hook(partial(_replace_first_output, function)).remove)
            _trace_again(stack, module)
        yield


@contextlib.contextmanager
def on_arguments(hooks: Iterable[tuple[nn.Module, ReplaceArguments]]) -> Iterator[None]:
    """Call each function on its module's arguments by name at every forward inside the block."""
    with ExitStack() as stack:
        for module, function in hooks:
            names = list(inspect.signature(module.forward).parameters)
            _before(stack, module, partial(_replace_arguments, function, names))
        yield


@contextlib.contextmanager
def swapped_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let these functions stand for the modules' own forwards; hooks stay where they are."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, forward in before.items():
            _put_forward(module, forward)


def is_compiled(model: Any) -> bool:
    """Return whether `torch.compile` (or `generate`'s own compilation) already holds a graph of this model."""
    if getattr(model, "_compiled_call", None) is not None:
        return True
    return any(
        hasattr(part, "_orig_mod")
        or part._compiled_call_impl is not None
        or hasattr(part.__dict__.get("forward"), "_torchdynamo_orig_callable")
        for part in model.modules()
    )


def require_uncompiled(model: Any) -> None:
    """Raise `Incompatible` if a graph of the model was compiled already."""
    if is_compiled(model):
        raise Incompatible(
            "the model was compiled before the edit was applied, so its hooks would be ignored silently; "
            "apply the edit first and compile inside the block, or use the uncompiled model"
        )


@dataclass(eq=False)
class Switch:
    """Whether an edit that is in place acts at the moment."""

    suspended: bool = False


@dataclass
class _Holder:
    thread: int
    depth: int = 0
    switches: list[Switch] = field(default_factory=list)


_HOLDERS: weakref.WeakKeyDictionary[nn.Module, _Holder] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


@contextlib.contextmanager
def held_by_this_thread(decoder: nn.Module) -> Iterator[list[Switch]]:
    """Keep other threads' edits off the decoder; edits of this thread may be nested. Yields their switches.

    Raises:
        Incompatible: an edit of another thread is in place.
    """
    here = threading.get_ident()
    with _LOCK:
        holder = _HOLDERS.setdefault(decoder, _Holder(here))
        if holder.thread != here:
            raise Incompatible(
                "another thread has an edit in place on this model, and both would act in either's forwards; wait "
                "until its block has ended, or give each thread a model of its own"
            )
        holder.depth += 1
    try:
        yield holder.switches
    finally:
        with _LOCK:
            holder.depth -= 1
            if holder.depth == 0:
                del _HOLDERS[decoder]


def has_edits(decoder: nn.Module) -> bool:
    """Return whether vectors are added in the decoder at present."""
    return decoder in _HOLDERS and bool(_HOLDERS[decoder].switches)


@contextlib.contextmanager
def edits_suspended(decoder: nn.Module) -> Iterator[None]:
    """Run the block as if no vectors were added in the decoder: edits neither change nor refuse its forwards."""
    switches = list(_HOLDERS[decoder].switches) if decoder in _HOLDERS else []
    before = [switch.suspended for switch in switches]
    for switch in switches:
        switch.suspended = True
    try:
        yield
    finally:
        for switch, suspended in zip(switches, before, strict=True):
            switch.suspended = suspended


class _Hooked:
    """A module's forward as its own attribute, for as long as hooks of this file are on the module.

    Compiled code does not ask whether hooks came to a module that had none, but it asks for this attribute: what was
    compiled over the module, and nothing else, is traced again with the hooks, and found again without them.
    """

    def __init__(self, module: nn.Module) -> None:
        self.own, self.hooks = vars(module).get("forward"), 0
        functools.update_wrapper(self, module.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's forward."""
        return self.__wrapped__(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


def _trace_again(stack: ExitStack, module: nn.Module) -> None:
    forward = vars(module).get("forward")
    if not isinstance(forward, _Hooked):
        forward = vars(module)["forward"] = _Hooked(module)
    forward.hooks += 1
    stack.callback(_unhook, module, forward)


def _unhook(module: nn.Module, forward: _Hooked) -> None:
    forward.hooks -= 1
    if forward.hooks == 0 and vars(module).get("forward") is forward:
        _put_forward(module, forward.own)


def _put_forward(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    if forward is None:
        vars(module).pop("forward", None)
    else:
        vars(module)["forward"] = forward


def _before(stack: ExitStack, module: nn.Module, hook: Callable[..., Any]) -> None:
    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
    _trace_again(stack, module)


def _replace_first_input(
    function: Replace,
    module: nn.Module,  # noqa: ARG001
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    if args:
        new = function(args[0])
        return None if new is None else ((new, *args[1:]), kwargs)
    name = next(iter(kwargs))
    new = function(kwargs[name])
    return None if new is None else (args, {**kwargs, name: new})


def _replace_arguments(
    function: ReplaceArguments,
    names: Sequence[str],
    module: nn.Module,  # noqa: ARG001
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    placed = dict(zip(names, args, strict=False))
    new = function({**placed, **kwargs})
    if new is None:
        return None
    by_name = {name: value for name, value in new.items() if name not in placed}
    return tuple(new.get(name, value) for name, value in placed.items()), {**kwargs, **by_name}


def _replace_first_output(function: Replace, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ARG001
    first = output[0] if isinstance(output, tuple) else output
    new = function(first)
    if new is None:
        return None
    return (new, *output[1:]) if isinstance(output, tuple) else new
