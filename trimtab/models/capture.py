"""capture_heads: the activations of every attention head for a list of statements, in one batched pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from trimtab.activations import HeadActivations
from trimtab.datasets.questions import Statement
from trimtab.errors import BadDataset, BadValue, Incompatible
from trimtab.models.fingerprint import fingerprint
from trimtab.models.heads import base_of, decoder_layers, find_heads, inference, logits_limit, text_config
from trimtab.models.hooks import on_inputs, on_outputs
from trimtab.models.tokens import (
    AnswerTokens,
    input_device,
    length_batches,
    pad_id,
    require_fits,
    tokenize_answer,
)
from trimtab.progress import tracked


def capture_heads(
    model: Any,
    tokenizer: Any,
    statements: Sequence[Statement],
    *,
    position: Literal["last", "mean_answer"] = "last",
    site: Literal["heads", "residual"] = "heads",
    batch_size: int = 32,
    heads: Mapping[int, tuple[str, int]] | None = None,
) -> HeadActivations:
    """Return the activations of every head for every statement.

    The wanted tokens are gathered where the layer lives, so memory beyond one batch does not depend on the
    number of tokens. `values` has shape `example layer head d_head`; with `site="residual"` (the layers'
    outputs) it is `example layer 1 d_model`.

    Args:
        position: `"last"` reads the last token of the answer (as ITI does), `"mean_answer"` the mean over the
            answer's tokens.
        site: `"heads"` reads the input of the attention output projection (Li et al. 2023, eq. 2).
        heads: for a model of your own: `{layer: (module name, number of heads)}`, as `find_heads` takes it.

    Raises:
        UnsupportedModel: the model's heads cannot be found.
        BadDataset: there are no statements.
        BadValue: a statement longer than the context; NaN activations (the message names the layers).
        Incompatible: the model's modules are not called, as in a compiled graph.
    """
    if not statements:
        raise BadDataset("no statements to capture activations for")
    if position not in ("last", "mean_answer") or site not in ("heads", "residual"):
        raise BadValue(
            f"position must be 'last' or 'mean_answer' and site 'heads' or 'residual', got {position!r}, {site!r}"
        )
    tokens = [tokenize_answer(tokenizer, s.text, s.answer_start, needs_prompt=False) for s in statements]
    require_fits(model, [len(t.ids) for t in tokens], [s.text for s in statements])
    layers, modules, shape = _places(model, site, heads)
    values = torch.empty(
        len(statements), len(layers), *shape, dtype=torch.promote_types(base_of(model).dtype, torch.float32)
    )
    last_only = logits_limit(model, 1)
    batches = list(
        length_batches(
            [t.ids for t in tokens], batch_size=batch_size, pad=pad_id(tokenizer), device=input_device(model)
        )
    )
    on = on_inputs if site == "heads" else on_outputs
    for batch in tracked(batches, "capturing heads"):
        gather = _Gather(_wanted([tokens[i] for i in batch.indices], batch.input_ids, position), len(layers))
        with inference(model), on((module, gather.reader(i)) for i, module in enumerate(modules)):
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **last_only)
        values[batch.indices] = gather.stacked().reshape(len(batch.indices), len(layers), *shape).to(values.dtype)
    record = {
        "model": fingerprint(model),
        "position": position,
        "site": site,
        "tokens_computed": sum(len(t.ids) for t in tokens),
        **({} if heads is None else {"named_heads": [[layer, *named] for layer, named in heads.items()]}),
    }
    return HeadActivations(
        values=values,
        labels=torch.tensor([s.label for s in statements]),
        groups=tuple(s.group for s in statements),
        layers=tuple(layers),
        record=record,
    ).require_finite()


def _places(
    model: Any, site: str, heads: Mapping[int, tuple[str, int]] | None
) -> tuple[list[int], list[nn.Module], tuple[int, int]]:
    if site == "residual":
        modules = decoder_layers(model)
        return list(range(len(modules))), modules, (1, text_config(model).hidden_size)
    sites = find_heads(model, heads)
    return [s.layer for s in sites], [s.module for s in sites], (sites[0].n_heads, sites[0].d_head)


def _wanted(rows: Sequence[AnswerTokens], ids: Tensor, position: str) -> Bool[Tensor, "batch seq"]:
    wanted = torch.zeros(ids.shape, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        wanted[row, tokens.end - 1 if position == "last" else tokens.start : tokens.end] = True
    return wanted.to(ids.device)


class _Gather:
    """Reads the mean over the wanted positions per row and layer, and moves the means to the CPU together."""

    def __init__(self, wanted: Bool[Tensor, "batch seq"], n_layers: int) -> None:
        self.wanted = wanted
        self.last = wanted.int().argmax(1)
        self.one_token = bool((wanted.sum(1) == 1).all())
        self.read: list[Tensor | None] = [None] * n_layers

    def reader(self, layer: int) -> Any:
        def read(x: Float[Tensor, "batch seq width"]) -> None:
            if self.one_token:
                self.read[layer] = x[torch.arange(len(x), device=x.device), self.last.to(x.device)]
            else:
                exact = torch.promote_types(x.dtype, torch.float32)
                wanted = self.wanted.to(x.device, exact)
                self.read[layer] = torch.einsum("bs,bsw->bw", wanted, x.to(exact)) / wanted.sum(1, keepdim=True)

        return read

    def stacked(self) -> Float[Tensor, "batch layer width"]:
        missing = [i for i, r in enumerate(self.read) if r is None]
        if missing:
            raise Incompatible(
                f"nothing was read in layer(s) {missing}: their modules were not called; use the uncompiled model"
            )
        return torch.stack([r.cpu() for r in self.read if r is not None], dim=1)
