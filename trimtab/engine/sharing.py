"""Which way of sharing prefixes gives a model's plain results: tried out on a few short sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.devices import ran_out_of_memory
from trimtab.engine.batching import Mode
from trimtab.engine.token_tree import TokenTree, TreeRow
from trimtab.engine.tree_forward import may_be_packed
from trimtab.errors import TrimtabError
from trimtab.models.anatomy import base_of
from trimtab.models.identity import remembered, traits, warn_once

Tried: TypeAlias = Callable[[Mode, int], Float[Tensor, "place vocab"]]
"""Gives the wanted logits of a few sequences in a mode, with at most so many of them in one forward."""
WORTHWHILE = 1.15
"""Below this saving in tokens, plain batches of similar length are as fast as anything."""


TRYING = {"cpu": 512, "cuda": 4096}
"""Sharing is tried out where it saves so many tokens, on each device: the trial takes four or five short forwards,
which cost what a few hundred tokens of a long one do, and on a GPU, where reading the weights bounds them, more."""


def worthwhile(model: Any, n_plain: int, n_shared: int) -> bool:
    """Return whether computing so few of so many tokens repays trying it out and doing it."""
    return n_plain >= max(WORTHWHILE * n_shared, n_shared + TRYING.get(base_of(model).device.type, TRYING["cuda"]))


MODES: tuple[Mode, ...] = ("packed", "padded")


def chosen_mode(
    model: Any, tree: TokenTree, n_edits: int, tried: Tried, *, among: tuple[Mode, ...] = MODES
) -> tuple[Mode, str | None]:
    """Return the fastest way that gives this model's plain results and, if the model lets none share, a note on it.

    Args:
        tried: runs the sequences of `TRIED`.
        among: the ways that share, the fastest first.
    """
    plain = n_edits * sum(map(len, tree.paths))
    n_own = int(tree.own.sum())
    shared = len(tree.tokens) - n_own + n_edits * n_own
    if not worthwhile(model, plain, shared):
        return "plain", None
    base = base_of(model)
    try:
        key = " ".join(("mode", *among))
        mode, note = remembered(base, key, traits(base, model), lambda: _first_that_agrees(model, tried, among))
    except FloatingPointError:  # whoever reads the outputs says where it comes from
        return "plain", None
    if note is not None:
        warn_once(base, "warned", note)
    return mode, note


def _first_that_agrees(model: Any, tried: Tried, among: tuple[Mode, ...]) -> tuple[Mode, str | None]:
    """Return the mode and, if it is none that shares, a note on it.

    Raises:
        FloatingPointError: outputs are NaN, so that nothing can be told.
    """
    expected = tried("plain", 1)
    if bool(expected.isnan().any()):
        raise FloatingPointError("the model gives NaN")
    failures = []
    for mode in among:
        failure = _failure(model, mode, tried, expected)
        if failure is None:
            return mode, None
        failures.append(failure)
    name = type(base_of(model)).__name__
    return "plain", f"{name}: prefixes are not shared, every sequence is computed whole ({'; '.join(failures)})"


TRIED = (
    TreeRow((9, 4, 11, 7, 5, 3, 8, 6, 10), 7, 7),
    TreeRow((9, 4, 11, 7, 5, 3, 8, 12, 4, 9), 7, 7),
    TreeRow((9, 4, 11, 7, 6, 3, 4, 10, 5), 6, 6),
)


EXACT, ROUNDED, CEILING = 1e-3, 0.1, 0.5
"""How far results may be from those of single rows, as a share of the logits' spread: in float32, in less, at most.

Each place's difference is its root mean square over the vocabulary, which does not grow with the vocabulary as the
largest one does. A token that sees what it should not, or stands where it should not, moves it by the order of 1."""
NOISE = 3
"""Sharing sums in another order, as batching does: it may be this many times as far away as plain batches are."""


def _failure(model: Any, mode: Mode, tried: Tried, expected: Float[Tensor, "place vocab"]) -> str | None:
    """Return why a mode does not give what plain forwards over single rows give, or None if it does."""
    if mode == "packed" and not may_be_packed(model):
        return "packed: layers of a kind that a mask over ancestors does not describe"
    try:
        found = tried(mode, len(TRIED))
    except TrimtabError:
        raise
    except Exception as cause:  # other people's models raise what they like
        if ran_out_of_memory(cause):
            raise
        return f"{mode}: {type(cause).__name__}"
    far = _distance(found, expected)
    quantized = getattr(base_of(model).config, "quantization_config", None) is not None
    exact = base_of(model).dtype in (torch.float32, torch.float64) and not quantized
    if far <= (EXACT if exact else ROUNDED):
        return None
    noise = max(_distance(tried("plain", n), expected) for n in (2, len(TRIED)))
    if far <= min(CEILING, NOISE * noise):
        return None
    return f"{mode}: other results by {far:.2g} standard deviations, plain batches by {noise:.2g}"


def _distance(found: Float[Tensor, "place vocab"], expected: Float[Tensor, "place vocab"]) -> float:
    """Return the worst place's difference, in standard deviations of its logits."""
    off = (found - expected).square().mean(-1).sqrt() / expected.std(-1).clamp(min=1e-12)
    return float(off.max())
