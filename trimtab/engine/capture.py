"""capture_heads: the activations of every attention head for a list of statements, in one batched pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.activations.captured import HeadActivations
from trimtab.datasets.statements import Statement
from trimtab.engine.batching import Budget
from trimtab.engine.forwards import Computed, Step, run_tree
from trimtab.engine.staging import RowsToCpu
from trimtab.engine.token_tree import TokenTree, TreeRow
from trimtab.engine.tree_forward import to_device
from trimtab.errors import BadDataset, BadValue, Incompatible
from trimtab.models.anatomy import base_of, decoder_layers, moves_weights, text_config
from trimtab.models.heads import find_heads
from trimtab.models.hooks import Replace, on_inputs, on_outputs
from trimtab.models.identity import fingerprint
from trimtab.models.tokens import AnswerTokens, pad_id, require_fits, tokenize_answers


def capture_heads(
    model: Any,
    tokenizer: Any,
    statements: Sequence[Statement],
    *,
    position: Literal["last", "mean_answer"] = "last",
    site: Literal["heads", "residual"] | Mapping[int, tuple[str, int]] | Site = "heads",
    batch_size: int | None = None,
    token_budget: int | None = None,
) -> HeadActivations:
    """Return the activations of every head for every statement.

    Statements of one question share the computation of the question; the record says under "tokens_computed" how
    many tokens that took. The wanted tokens are gathered where the layer lives, so memory beyond one batch does not
    depend on the number of tokens. `values` has shape `example layer head d_head`; with `site="residual"` (the layers'
    outputs) it is `example layer 1 d_model`.

    Args:
        position: `"last"` reads the last token of the answer (as ITI does), `"mean_answer"` the mean over the
            answer's tokens.
        site: `"heads"` reads the input of the attention output projection (Li et al. 2023, eq. 2); for a model of
            your own `{layer: (module name, number of heads)}`, as `find_heads` takes it; or a `Site`.
        batch_size: at most so many statements in one forward; as many as the token budget holds if not given.
        token_budget: how many tokens one forward may hold (see `Budget`).

    Raises:
        UnsupportedModel: the model's heads cannot be found.
        BadDataset: there are no statements, or what was given is something else.
        BadValue: a statement longer than the context; a token that the model does not know; NaN activations (the
            message names the layers).
        Incompatible: the model's modules are not called, as in a compiled graph; a wrapper adds tokens to the texts.
    """
    statements = tuple(statements)
    require_statements(statements)
    require_position(position)
    where = site_of(site)
    places = where.places(model)
    tokens = _tokens(model, tokenizer, statements)
    rows = [TreeRow(t.ids[: t.end], t.start, t.end - 1 if position == "last" else t.start) for t in tokens]
    n_parts, width = places.shape
    exact = torch.promote_types(base_of(model).dtype, torch.float32)
    values = torch.empty(len(rows), len(places.layers), n_parts * width, dtype=exact)
    tree, budget = TokenTree.of(rows, pad_id(tokenizer)), Budget(token_budget, batch_size)
    took = _fill(values, model, tree, budget, where, places.modules)
    record = {
        "model": fingerprint(model),
        "position": position,
        "site": where.name,
        "tokens_computed": took.tokens,
        **where.record,
    }
    return HeadActivations(
        values=values.unflatten(2, places.shape),
        labels=torch.tensor([s.label for s in statements]),
        groups=tuple(s.group for s in statements),
        layers=places.layers,
        record=record,
    ).require_finite()


class Places(NamedTuple):
    """What is read of a model: one module in each of some layers."""

    layers: tuple[int, ...]
    modules: tuple[nn.Module, ...]
    shape: tuple[int, int]
    """How many parts (heads) a layer's vector has, and the width of one."""


@dataclass(frozen=True)
class Site:
    """Where in every layer activations are read."""

    name: str
    """As it stands in records."""
    hooks: Callable[[Iterable[tuple[nn.Module, Replace]]], AbstractContextManager[None]]
    """`on_inputs` or `on_outputs`: whether a module's input or output is read."""
    places: Callable[[Any], Places]
    """Finds the modules of a model."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What stands in records beside the name."""


def head_site(named: Mapping[int, tuple[str, int]] | None = None) -> Site:
    """Return the site of the attention heads, found by `find_heads` or named for it."""

    def places(model: Any) -> Places:
        sites = find_heads(model, named)
        shape = (sites[0].n_heads, sites[0].d_head)
        return Places(tuple(s.layer for s in sites), tuple(s.module for s in sites), shape)

    record = {} if named is None else {"named_heads": [[layer, *place] for layer, place in named.items()]}
    return Site("heads", on_inputs, places, record)


def _layer_outputs(model: Any) -> Places:
    layers = decoder_layers(model)
    return Places(tuple(range(len(layers))), tuple(layers), (1, text_config(model).hidden_size))


SITES = {"heads": head_site(), "residual": Site("residual", on_outputs, _layer_outputs)}


def site_of(given: str | Mapping[int, tuple[str, int]] | Site) -> Site:
    """Return the site of this name, or of heads that are named; raises `BadValue` if there is none of the name."""
    if isinstance(given, Site):
        return given
    if isinstance(given, Mapping):
        return head_site(given)
    if given not in SITES:
        raise BadValue(f"site must be {' or '.join(map(repr, SITES))}, named heads or a Site, got {given!r}")
    return SITES[given]


def require_position(position: str) -> None:
    """Raise `BadValue` if there is no such position."""
    if position not in ("last", "mean_answer"):
        raise BadValue(f"position must be 'last' or 'mean_answer', got {position!r}")


def require_statements(statements: Sequence[Statement]) -> None:
    """Raise `BadDataset` if there are no statements, or what was given is something else."""
    if not statements:
        raise BadDataset("no statements to capture activations for")
    other = next((s for s in statements if not isinstance(s, Statement)), None)
    if other is not None:
        raise BadDataset(
            f"expected statements, got a {type(other).__name__}; make them of questions by QuestionSet.statements()"
        )


def _tokens(model: Any, tokenizer: Any, statements: Sequence[Statement]) -> list[AnswerTokens]:
    texts = [s.text for s in statements]
    starts, templates = [s.answer_start for s in statements], [s.template for s in statements]
    tokens = tokenize_answers(tokenizer, texts, starts, needs_prompt=False, templates=templates)
    require_fits(model, [len(t.ids) for t in tokens], texts)
    return tokens


def _fill(
    values: Float[Tensor, "row layer width"],
    model: Any,
    tree: TokenTree,
    budget: Budget,
    site: Site,
    modules: Sequence[nn.Module],
) -> Computed:
    """Write the mean over each row's wanted places of what the site reads at every module; return what it took."""
    written = RowsToCpu(values)
    # accelerate's hooks take offloaded weights away again only when a module ends
    may_stop = False if moves_weights(model) else None

    def read(edit: int, step: Step, forward: Callable[[], Any]) -> None:  # noqa: ARG001
        nonlocal may_stop
        gather = _Gather(step, len(modules), stops=bool(may_stop))
        hooks = site.hooks((module, gather.reader(i)) for i, module in enumerate(modules))
        with hooks, contextlib.suppress(AllRead):
            forward()
        if may_stop is None:  # the first forward, run whole, tells whether a module is called again
            may_stop = gather.calls == len(modules)
        written.put(step.rows, gather.stacked())

    took = run_tree(model, tree, read, budget=budget, logits=False, task="capturing heads")
    written.finish()
    return took


class AllRead(Exception):
    """Ends a forward of which everything has been read: the last layer's MLP and the model's head need not run."""


class _Gather:
    """Reads the mean over each row's wanted places in every layer."""

    def __init__(self, step: Step, n_layers: int, *, stops: bool = False) -> None:
        self.step, self.stops, self.calls = step, stops, 0
        self.read: list[Tensor | None] = [None] * n_layers
        counts = torch.tensor(step.counts)
        self.where = (step.flat, torch.arange(len(counts)).repeat_interleave(counts), counts)
        self.placed: dict[torch.device, tuple[Tensor, ...]] = {}

    def reader(self, layer: int) -> Any:
        def read(x: Float[Tensor, "batch seq width"]) -> None:
            if x.device not in self.placed:
                self.placed[x.device] = tuple(to_device(t, x.device) for t in self.where)
            if x.shape[:2] != self.step.shape:
                raise Incompatible(
                    f"a forward of {self.step.shape} tokens (batch, seq) has activations of shape {tuple(x.shape)}; "
                    "give the model without what adds tokens to the text, such as PEFT's prompt tuning"
                )
            flat, row, counts = self.placed[x.device]
            found = x.flatten(0, 1)[flat]
            if len(flat) > len(counts):
                exact = found.to(torch.promote_types(x.dtype, torch.float32))
                sums = exact.new_zeros(len(counts), x.shape[-1])
                found = sums.index_add_(0, row, exact) / counts[:, None]
            self.read[layer] = found
            self.calls += 1
            if self.stops and self.calls == len(self.read):
                raise AllRead

        return read

    def stacked(self) -> Float[Tensor, "row layer width"]:
        missing = [i for i, r in enumerate(self.read) if r is None]
        if missing:
            raise Incompatible(
                f"nothing was read in layer(s) {missing}: their modules were not called; use the uncompiled model"
            )
        found = [r for r in self.read if r is not None]
        # layers may live on several devices
        return torch.stack([r.to(found[0].device) for r in found], dim=1)
