"""Which way of sharing prefixes gives a model's plain results: tried out on a few short sequences."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.engine.passes import Computed, Limits, Pass, Step, kept_logits, kept_places
from trimtab.engine.past import Mode, may_be_packed
from trimtab.engine.token_tree import TokenTree, TreeRow
from trimtab.errors import TrimtabError
from trimtab.models.anatomy import base_of
from trimtab.models.identity import remembered, traits, warn_once
from trimtab.protocols import TokenMask

WORTHWHILE = 1.15
"""Below this saving in tokens, plain batches of similar length are as fast as anything."""


TRYING = {"cpu": 512, "cuda": 4096}
"""Sharing is tried out where it saves so many tokens, on each device: the trial takes four or five short forwards,
which cost what a few hundred tokens of a long one do, and on a GPU, where reading the weights bounds them, more."""


def worthwhile(model: Any, n_plain: int, n_shared: int) -> bool:
    """Return whether computing so few of so many tokens repays trying it out and doing it."""
    return n_plain >= max(WORTHWHILE * n_shared, n_shared + TRYING.get(base_of(model).device.type, TRYING["cuda"]))


def chosen_mode(model: Any, tree: TokenTree, n_edits: int, pad: int, mask: TokenMask, computed: Computed) -> Mode:
    """Return the fastest way that gives this model's plain results."""
    plain = n_edits * sum(map(len, tree.paths))
    n_own = int(tree.own.sum())
    shared = len(tree.tokens) - n_own + n_edits * n_own
    if not worthwhile(model, plain, shared):
        return "plain"
    base = base_of(model)
    try:
        computed.mode, note = remembered(
            base, "mode", traits(base, model), lambda: _first_that_agrees(model, pad, mask)
        )
    except FloatingPointError:  # whoever reads the outputs says where it comes from
        return "plain"
    if note is not None:
        computed.notes.append(note)
        warn_once(base, "warned", note)
    return computed.mode


def _first_that_agrees(model: Any, pad: int, mask: TokenMask) -> tuple[Mode, str | None]:
    """Return the mode and, if it is none that shares, a note on it.

    Raises:
        FloatingPointError: outputs are NaN, so that nothing can be told.
    """
    expected = _tried(model, "plain", pad, mask, max_rows=1)
    if bool(expected.isnan().any()):
        raise FloatingPointError("the model gives NaN")
    failures = []
    for mode in MODES:
        failure = _failure(model, mode, pad, mask, expected)
        if failure is None:
            return mode, None
        failures.append(failure)
    name = type(base_of(model)).__name__
    return "plain", f"{name}: prefixes are not shared, every sequence is computed whole ({'; '.join(failures)})"


MODES: tuple[Mode, ...] = ("packed", "padded")
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


def _failure(model: Any, mode: Mode, pad: int, mask: TokenMask, expected: Float[Tensor, "place vocab"]) -> str | None:
    """Return why a mode does not give what plain forwards over single rows give, or None if it does."""
    if mode == "packed" and not may_be_packed(model):
        return "packed: layers of a kind that a mask over ancestors does not describe"
    try:
        found = _tried(model, mode, pad, mask, max_rows=len(TRIED))
    except (torch.OutOfMemoryError, TrimtabError):
        raise
    except Exception as cause:  # other people's models raise what they like
        return f"{mode}: {type(cause).__name__}"
    far = _distance(found, expected)
    quantized = getattr(base_of(model).config, "quantization_config", None) is not None
    exact = base_of(model).dtype in (torch.float32, torch.float64) and not quantized
    if far <= (EXACT if exact else ROUNDED):
        return None
    noise = max(_distance(_tried(model, "plain", pad, mask, max_rows=n), expected) for n in (2, len(TRIED)))
    if far <= min(CEILING, NOISE * noise):
        return None
    return f"{mode}: other results by {far:.2g} standard deviations, plain batches by {noise:.2g}"


def _distance(found: Float[Tensor, "place vocab"], expected: Float[Tensor, "place vocab"]) -> float:
    """Return the worst place's difference, in standard deviations of its logits."""
    off = (found - expected).square().mean(-1).sqrt() / expected.std(-1).clamp(min=1e-12)
    return float(off.max())


@torch.inference_mode()
def _tried(model: Any, mode: Mode, pad: int, mask: TokenMask, max_rows: int) -> Tensor:
    found: dict[int, Tensor] = {}

    def read(index: int, step: Step, forward: Callable[[], Any]) -> None:  # noqa: ARG001
        values = kept_logits(forward().logits, step)[kept_places(step)].double().cpu()
        found.update(zip(step.rows, values.split(step.counts), strict=True))

    n_known = base_of(model).get_input_embeddings().weight.shape[0]
    rows = [TreeRow([t % n_known for t in row.ids], row.split, row.wanted) for row in TRIED]
    limits = Limits.of(model, None, max_rows)
    enter = {0: lambda: contextlib.nullcontext(model)}
    Pass(model, TokenTree.grown(rows), rows, mode, pad, limits, mask, Computed(), read).run(enter, "")
    return torch.cat([found[i] for i in range(len(rows))])
