"""capture_heads: the activations of every attention head for a list of statements, in one batched pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.activations.captured import HeadActivations
from trimtab.datasets.questions import Statement
from trimtab.engine.forwards import run_rows
from trimtab.engine.passes import Computed, Step
from trimtab.engine.past import sent
from trimtab.engine.staging import RowsToCpu
from trimtab.engine.token_tree import TreeRow
from trimtab.errors import BadDataset, BadValue, Incompatible
from trimtab.models.anatomy import base_of, decoder_layers, moves_weights, text_config
from trimtab.models.heads import find_heads
from trimtab.models.hooks import on_inputs, on_outputs
from trimtab.models.identity import fingerprint
from trimtab.models.tokens import AnswerTokens, pad_id, require_fits, tokenize_answers


def capture_heads(
    model: Any,
    tokenizer: Any,
    statements: Sequence[Statement],
    *,
    position: Literal["last", "mean_answer"] = "last",
    site: Literal["heads", "residual"] = "heads",
    batch_size: int | None = None,
    token_budget: int | None = None,
    heads: Mapping[int, tuple[str, int]] | None = None,
) -> HeadActivations:
    """Return the activations of every head for every statement.

    Statements of one question share the computation of the question; the record says under "tokens_computed" how
    many tokens that took. The wanted tokens are gathered where the layer lives, so memory beyond one batch does not
    depend on the number of tokens. `values` has shape `example layer head d_head`; with `site="residual"` (the layers'
    outputs) it is `example layer 1 d_model`.

    Args:
        position: `"last"` reads the last token of the answer (as ITI does), `"mean_answer"` the mean over the
            answer's tokens.
        site: `"heads"` reads the input of the attention output projection (Li et al. 2023, eq. 2).
        batch_size: at most so many statements in one forward; as many as the token budget holds if not given.
        token_budget: how many tokens one forward may hold (see `run_rows`).
        heads: for a model of your own: `{layer: (module name, number of heads)}`, as `find_heads` takes it.

    Raises:
        UnsupportedModel: the model's heads cannot be found.
        BadDataset: there are no statements, or what was given is something else.
        BadValue: a statement longer than the context; a token that the model does not know; NaN activations (the
            message names the layers).
        Incompatible: the model's modules are not called, as in a compiled graph; a wrapper adds tokens to the texts.
    """
    statements = tuple(statements)
    require_statements(statements)
    require_place(position, site)
    tokens = _tokens(model, tokenizer, statements)
    rows = [TreeRow(t.ids[: t.end], t.start, t.end - 1 if position == "last" else t.start) for t in tokens]
    layers, modules, shape = _places(model, site, heads)
    exact = torch.promote_types(base_of(model).dtype, torch.float32)
    values = torch.empty(len(rows), len(layers), shape[0] * shape[1], dtype=exact)
    options = {"pad": pad_id(tokenizer), "token_budget": token_budget, "max_rows": batch_size}
    took = _fill(values, model, rows, on_inputs if site == "heads" else on_outputs, modules, **options)
    record = {
        "model": fingerprint(model),
        "position": position,
        "site": site,
        "tokens_computed": took.tokens,
        **({} if heads is None else {"named_heads": [[layer, *named] for layer, named in heads.items()]}),
    }
    return HeadActivations(
        values=values.unflatten(2, shape),
        labels=torch.tensor([s.label for s in statements]),
        groups=tuple(s.group for s in statements),
        layers=tuple(layers),
        record=record,
    ).require_finite()


def require_place(position: str, site: str) -> None:
    """Raise `BadValue` if there is no such position or site."""
    if position not in ("last", "mean_answer") or site not in ("heads", "residual"):
        raise BadValue(
            f"position must be 'last' or 'mean_answer' and site 'heads' or 'residual', got {position!r}, {site!r}"
        )


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
    tokens = tokenize_answers(tokenizer, texts, [s.answer_start for s in statements], needs_prompt=False)
    require_fits(model, [len(t.ids) for t in tokens], texts)
    return tokens


def _fill(
    values: Float[Tensor, "row layer width"],
    model: Any,
    rows: Sequence[TreeRow],
    on: Any,
    modules: Sequence[nn.Module],
    **options: Any,
) -> Computed:
    """Write the mean over each row's wanted places of what `on` reads at every module; return what it took."""

    written = RowsToCpu(values)
    # accelerate's hooks take offloaded weights away again only when a module ends
    may_stop = False if moves_weights(model) else None

    def read(edit: int, step: Step, forward: Callable[[], Any]) -> None:  # noqa: ARG001
        nonlocal may_stop
        gather = _Gather(step, len(modules), stops=bool(may_stop))
        with on((module, gather.reader(i)) for i, module in enumerate(modules)), contextlib.suppress(_AllRead):
            forward()
        if may_stop is None:  # the first forward, run whole, tells whether a module is called again
            may_stop = gather.calls == len(modules)
        written.put(step.rows, gather.stacked())

    took = run_rows(model, rows, read, logits=False, task="capturing heads", **options)
    written.finish()
    return took


def _places(
    model: Any, site: str, heads: Mapping[int, tuple[str, int]] | None
) -> tuple[list[int], list[nn.Module], tuple[int, int]]:
    if site == "residual":
        modules = decoder_layers(model)
        return list(range(len(modules))), modules, (1, text_config(model).hidden_size)
    sites = find_heads(model, heads)
    return [s.layer for s in sites], [s.module for s in sites], (sites[0].n_heads, sites[0].d_head)


class _AllRead(Exception):
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
                self.placed[x.device] = tuple(sent(t, x.device) for t in self.where)
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
                raise _AllRead

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
