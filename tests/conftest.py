"""Fixtures shared by all tests; every test runs offline."""

from __future__ import annotations

import builtins
import functools
import gc
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import is_dataclass
from inspect import isgeneratorfunction
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, ForwardRef, get_args, get_type_hints
from unittest.mock import patch

import jaxtyping
import pytest
import torch
from jaxtyping import _import_hook, _storage

os.environ["HF_HUB_OFFLINE"] = "1"
# tiny tensors gain nothing from a second thread, and on shared cores wait long for it
os.environ.setdefault("OMP_NUM_THREADS", "1")
# tiny tensors gain nothing from threads, and on busy cores their spinning costs a factor of ten
torch.set_num_threads(1)

_jaxtyped = jaxtyping.jaxtyped
_checked: set[CodeType] = set()


def _jaxtyped_where_shaped(*args: Any, **options: Any) -> Any:
    """Check annotations as jaxtyping does, at a fraction of the price: by the type checker, which checks them once.

    jaxtyping binds the arguments of every call and checks them twice, so as to tell more of what is wrong. The sizes of
    named axes are kept for the time of a call as it keeps them. And building a check takes milliseconds: of a function
    inside another one, which is made anew at each call, it is done only when it is first made.
    """
    decorate = _jaxtyped(*args, **options)
    if args:
        return decorate

    def checked(made: Any) -> Any:
        if isinstance(made, FunctionType):
            if "<locals>" in made.__qualname__:
                if made.__code__ in _checked:
                    return made
                _checked.add(made.__code__)
            return function(made)
        if isinstance(made, type) and is_dataclass(made) and "__init__" in vars(made):
            made.__init__ = function(made.__init__)
            return made
        return decorate(made)

    def function(plain: Any) -> Any:
        if not _is_shaped(plain):
            return _switchable(plain, options["typechecker"](plain))
        if isgeneratorfunction(plain) or not _is_readable(plain):
            return decorate(plain)
        return _switchable(plain, _with_sizes(options["typechecker"](plain)))

    return checked


def _is_readable(function: Any) -> bool:
    """Return whether all that its annotations name is there already."""
    with suppress(Exception):
        return bool(get_type_hints(function))
    return False


def _with_sizes(checked: Callable) -> Callable:
    """Return the function with the sizes of named axes of its own kept for the time of a call."""

    @functools.wraps(checked)
    def sized(*args: Any, **kwargs: Any) -> Any:
        _storage.push_shape_memo({})
        try:
            return checked(*args, **kwargs)
        finally:
            _storage.pop_shape_memo()

    return sized


def _is_shaped(function: Any) -> bool:
    """Return whether an annotation says a shape, itself or by the name of a type that does, or cannot be read yet."""
    names = {**vars(builtins), **function.__globals__}
    return any(_says_shape(hint, names) for hint in function.__annotations__.values())


def _says_shape(hint: Any, names: dict[str, Any]) -> bool:
    if isinstance(hint, str):
        return any(word not in names or _says_shape(names[word], {}) for word in re.findall(r"[A-Za-z_]\w*", hint))
    shaped = isinstance(hint, ForwardRef) or getattr(hint, "__module__", None) == "jaxtyping"
    return shaped or any(_says_shape(part, {}) for part in get_args(hint))


def _switchable(plain: Callable, checked: Callable) -> Callable:
    """Return the checked function while checks are switched on, as jaxtyping's own are (see `unchecked`)."""
    config = jaxtyping.config

    @functools.wraps(plain)
    def either(*args: Any, **kwargs: Any) -> Any:
        return (plain if config.jaxtyping_disable else checked)(*args, **kwargs)

    return either


jaxtyping.jaxtyped = _jaxtyped_where_shaped  # the hook of --jaxtyping-packages looks it up at each definition


def _exec_module(loader: Any, module: ModuleType) -> None:
    """Run a module of ours; only its own code is cached under jaxtyping's name.

    jaxtyping's loader has that name stand while the module runs, so that all that it imports, transformers and peft
    among it, was sought under a name that no installer writes, and compiled anew by every worker.
    """
    named = functools.partial(_import_hook._optimized_cache_from_source, loader._typechecker.get_hash())
    with patch("importlib._bootstrap_external.cache_from_source", named):
        code = loader.get_code(module.__name__)
    exec(code, vars(module))


_import_hook._JaxtypingLoader.exec_module = _exec_module


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leave what was imported out of every later search for garbage.

    A Trainer asks for such a search in each run: among the millions of objects of torch, transformers and the checks of
    annotations it took half of the time of a short run.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of data that tests may read but the product does not need."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data folder (TruthfulQA, E2E) is not beside this checkout")
    return folder


@pytest.fixture(scope="session", autouse=True)
def quickly_timed() -> Iterator[None]:
    """Time decoding on fewer tokens than users have it: how long a tiny model takes says nothing."""
    from trimtab.evaluate import cost

    with pytest.MonkeyPatch.context() as few:
        few.setattr(cost, "milliseconds_per_token", functools.partial(cost.milliseconds_per_token, new_tokens=2))
        yield


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the annotation checks off, so that a test meets the library's own refusals as users do."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
