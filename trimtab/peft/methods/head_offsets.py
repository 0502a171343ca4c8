"""Learned head offsets: vectors added to chosen attention heads, trained instead of read from activations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.activations.labelled import Head
from trimtab.errors import BadValue
from trimtab.models.anatomy import base_of, decoder_layers
from trimtab.models.heads import HeadSite, find_heads
from trimtab.models.hooks import on_inputs
from trimtab.peft.methods.base import TuningMethod
from trimtab.peft.parts.attaching import AttachedParts, frozen_base, hold, master_dtype, require_no_compiled_graph
from trimtab.peft.parts.sublayers import config_of, head_width
from trimtab.peft.recipe import Recipe
from trimtab.peft.tunable import Capabilities
from trimtab.peft.tuned_edit import TunedEdit
from trimtab.protocols import Knobs


@dataclass(frozen=True)
class HeadOffsets(TuningMethod):
    """Adds a learned vector to each chosen head, where ITI adds its shift (LoFiT, Yin et al. 2024, section 3).

    At all positions, at the input of the attention output projection: what `add_to_heads(model, deltas, "all")` does
    with the deltas that `offsets_by_head` reads from a tuned edit's tensors. Without `heads`, `fit` first learns a
    scaling of every head (`HeadScalings`) and takes the `top_k` heads whose scalings moved furthest. An offset has the
    `d_head` numbers of its head; offsets start at 0, so that tuning starts from the base model to the bit.

    Raises:
        BadValue: a head that is given twice, or `top_k` below 1.
    """

    capabilities: ClassVar[Capabilities] = Capabilities("function composition", mergeable=False)
    """Works on any weights, packed or not; merging would need biases that many architectures lack."""
    learning_rate: ClassVar[float] = 1e-2
    """As in LoFiT's TruthfulQA recipe, offsets learn with larger steps than matrices."""

    top_k: int = 8
    """How many heads `fit` chooses, if `heads` are not given."""
    heads: tuple[Head, ...] = ()
    """The heads to tune; chosen by `fit` if empty."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(Head(*head) for head in self.heads))
        if len(set(self.heads)) < len(self.heads):
            raise BadValue("a head stands twice among those to tune; give each head once")
        if self.top_k < 1:
            raise BadValue(f"top_k must be 1 or more heads, got {self.top_k}")

    @property
    def name(self) -> str:
        """How many heads."""
        return f"Head offsets k={len(self.heads) or self.top_k}"

    def attach(self, model: Any, *, seed: int) -> AttachedParts:  # noqa: ARG002 - offsets start at zero whatever the seed
        """Return the offsets on the model.

        Raises:
            BadValue: no heads were chosen yet, or the model does not have one of them.
        """
        if not self.heads:
            raise BadValue("head offsets need heads to attach to: give heads=, or call fit, which chooses the top_k")
        return _attach(model, self.heads, lambda x, offset: x + offset, "offsets", f"the {self.name}")

    def parameter_count(self, model_or_config: Any) -> int:
        """Return heads times their width."""
        return (len(self.heads) or self.top_k) * head_width(config_of(model_or_config))

    def offsets_by_head(self, tensors: Mapping[str, Tensor]) -> dict[Head, Float[Tensor, " d_head"]]:
        """Return each head's vector, as `add_to_heads` takes them."""
        left = {name: iter(rows) for name, rows in tensors.items()}
        return {head: next(left[f"layers.{head.layer}"]) for head in self.heads}

    def fit(
        self,
        model: Any,
        tokenizer: Any,
        train: Any,
        *,
        knobs: Knobs | None = None,
        seed: int = 0,
        out: str | Path | None = None,
        resume: bool = True,
    ) -> TunedEdit:
        """Return the edit tuned on the training questions, after choosing heads if none were given."""
        method = self.with_knobs(knobs)
        if method.heads:
            return super(HeadOffsets, method).fit(model, tokenizer, train, seed=seed, out=out, resume=resume)
        from trimtab.peft.train.runs import TuningRunFolder, require_lasting

        require_lasting(method.recipe.report_to, out)
        # trackers follow one run: some would draw the steps of both as one curve
        scalings = HeadScalings(recipe=replace(method.recipe, report_to=()))
        both = {"method": method.describe(), "recipe": method.recipe.as_dict(), "seed": seed}
        with TuningRunFolder.opened(out, both, resume=resume) as folder:
            first, second = (folder.path / name if out else None for name in ("scalings", "offsets"))
            scaled = scalings.fit(model, tokenizer, train, seed=seed, out=first, resume=resume)
            chosen = method.on(scalings.strongest(scaled.tensors, method.top_k))
            edit = chosen.fit(model, tokenizer, train, seed=seed, out=second, resume=resume)
        seconds = {**edit.record["seconds"], "choose heads": scaled.cost.seconds}
        cost = replace(edit.cost, seconds=edit.cost.seconds + scaled.cost.seconds)
        return replace(edit.with_record(seconds=seconds), cost=cost)

    @classmethod
    def from_plain(cls, own: Mapping[str, Any], recipe: Recipe) -> Any:
        """Return the method from the fields that `describe` gave."""
        return cls(own["top_k"], tuple(Head(*head) for head in own["heads"]), recipe=recipe)

    def on(self, heads: Sequence[Head]) -> HeadOffsets:
        """Return the method on these heads."""
        return HeadOffsets(len(heads), tuple(heads), recipe=self.recipe)


@dataclass(frozen=True)
class HeadScalings(TuningMethod):
    """Multiplies every head's activation by 1 + a learned vector of `d_head` numbers, 0 at the start.

    The first step of LoFiT (Yin et al. 2024, section 3.1), which chooses heads.
    """

    name: ClassVar[str] = "Head scalings"
    capabilities: ClassVar[Capabilities] = Capabilities("function composition", mergeable=False)
    learning_rate: ClassVar[float] = 1e-2

    def attach(self, model: Any, *, seed: int) -> AttachedParts:  # noqa: ARG002 - scalings start at one whatever the seed
        """Return a scaling of every head on the model."""
        require_no_compiled_graph(model)
        heads = [Head(site.layer, head) for site in find_heads(model) for head in range(site.n_heads)]
        return _attach(model, heads, lambda x, scale: x * (1 + scale), "scalings", "the head scalings")

    def parameter_count(self, model_or_config: Any) -> int:
        """Return the width of all heads of all layers."""
        config = config_of(model_or_config)
        return config.num_hidden_layers * config.num_attention_heads * head_width(config)

    def strongest(self, tensors: Mapping[str, Tensor], k: int) -> tuple[Head, ...]:
        """Return the k heads whose scalings are longest, best first (Yin et al. 2024, section 3.1)."""
        lengths = {
            Head(layer, head): float(row.norm())
            for layer, rows in ((int(name.split(".")[1]), t) for name, t in tensors.items())
            for head, row in enumerate(rows)
        }
        if k > len(lengths):
            raise BadValue(f"top_k={k} heads asked for; the model has {len(lengths)}")
        return tuple(sorted(lengths, key=lambda head: (-lengths[head], head))[:k])


def _attach(
    model: Any, heads: Iterable[Head], change: Callable[[Tensor, Tensor], Tensor], kind: str, what: str
) -> AttachedParts:
    require_no_compiled_graph(model)
    layers, sites = decoder_layers(model), {site.layer: site for site in find_heads(model)}
    chosen = _by_layer(heads, sites)
    dtype, places = master_dtype(base_of(model).dtype), {}
    with frozen_base(model) as undo:
        hooks = []
        for layer, indices in chosen.items():
            site = sites[layer]
            device = next(site.module.parameters()).device
            vectors = nn.Parameter(torch.zeros(len(indices), site.d_head, dtype=dtype, device=device))
            hold(layers[layer], f"head_{kind}", vectors, undo)
            places[f"layers.{layer}"] = vectors
            hooks.append((site.module, _OnHeads(vectors, indices, site, change)))
        undo.enter_context(on_inputs(hooks))
        return AttachedParts(model, places, undo, what)


def _by_layer(heads: Iterable[Head], sites: Mapping[int, HeadSite]) -> dict[int, list[int]]:
    chosen: dict[int, list[int]] = defaultdict(list)
    for layer, head in heads:
        if layer not in sites or not 0 <= head < sites[layer].n_heads:
            n_heads = next(iter(sites.values())).n_heads
            raise BadValue(f"no head {head} in layer {layer}: the model has layers 0-{max(sites)} of {n_heads} heads")
        chosen[layer].append(head)
    return chosen


class _OnHeads:
    """Changes some heads of a projection's input by their vectors; the other heads pass."""

    def __init__(
        self, vectors: nn.Parameter, indices: list[int], site: HeadSite, change: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        self.vectors, self.change = vectors, change
        self.indices, self.shape = torch.tensor(indices), (site.n_heads, site.d_head)

    def __call__(self, x: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch seq width"]:
        # zeros elsewhere leave the other heads: x + 0 and x * (1 + 0) are x
        whole = self.vectors.new_zeros(self.shape).index_copy(0, self.indices.to(x.device), self.vectors.to(x.device))
        return self.change(x, whole.flatten().to(x.dtype))
