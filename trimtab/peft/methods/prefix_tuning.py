"""Prefix tuning: trained keys and values of virtual tokens in every attention layer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.errors import BadValue, UnsupportedModel
from trimtab.models.anatomy import base_of, decoder_of
from trimtab.models.calling import inference
from trimtab.peft.methods.base import TuningMethod
from trimtab.peft.methods.prompt_tuning import PROMPT, hub_config, require_tokens
from trimtab.peft.parts.attached import Attached, copy_strictly
from trimtab.peft.parts.attaching import empty_linear, frozen_base, hold, master_dtype
from trimtab.peft.parts.sublayers import config_of, key_value_sizes
from trimtab.peft.parts.virtual_tokens import KeysValues, VirtualTokens, keys_and_values, vocabulary_embeddings
from trimtab.peft.tunable import Capabilities, HubAdapter


@dataclass(frozen=True)
class PrefixTuning(TuningMethod):
    """Trains the keys and values of virtual tokens in every layer (Li and Liang 2021).

    Plain, they are the parameters themselves (`n_tokens width`, the width being that of the keys and values of all
    layers), and start as those that random tokens of the vocabulary have in the
    model. `reparameterised` trains them through a two-layer network (that paper's section 4.3) of `d_hidden` units;
    a finished edit stores the keys and values alone, a checkpoint the network, so that training resumes.

    Raises:
        BadValue: fewer than one token or unit.
    """

    capabilities: ClassVar[Capabilities] = Capabilities("input composition", mergeable=False, scaling=False)
    """Runs on any weights; the prefix stands before each example of a packed row."""

    n_tokens: int = 10
    """Virtual tokens."""
    reparameterised: bool = False
    d_hidden: int = 512
    """Width of the network, if reparameterised."""

    def __post_init__(self) -> None:
        require_tokens(self.n_tokens)
        if self.d_hidden < 1:
            raise BadValue(f"d_hidden must be 1 or more units, got {self.d_hidden}")

    @property
    def name(self) -> str:
        """How many tokens, and whether through a network."""
        return f"Prefix tuning n={self.n_tokens}{' (MLP)' if self.reparameterised else ''}"

    @property
    def learning_rate(self) -> float:
        """The network turns small steps into larger ones."""
        return 1e-3 if self.reparameterised else 1e-2

    def attach(self, model: Any, *, seed: int) -> PrefixParts:
        """Return the prefix on the model.

        Raises:
            UnsupportedModel: some layer has no attention, or layers have keys of different shapes.
        """
        with frozen_base(model) as undo:
            embeddings = vocabulary_embeddings(model, self.n_tokens, seed)
            with inference(base_of(model)):
                layers = keys_and_values(model, embeddings)
            start = flattened(layers).to(master_dtype(base_of(model).dtype)).clone()
            source = _Network(start, embeddings, self.d_hidden, seed) if self.reparameterised else _Plain(start)
            hold(decoder_of(model), "prefix", source, undo)
            parts = PrefixParts(model, source, f"the {self.name}")
            shape = layers[0].keys.shape
            tokens = VirtualTokens(model, self.n_tokens, lambda: layered(parts.flat(), shape[1], shape[3]))
            undo.enter_context(tokens.present())
            parts.undo = undo.pop_all()
            return parts

    def parameter_count(self, model_or_config: Any) -> int:
        """Return tokens times the keys and values of all layers; or the network's weights and its inputs."""
        config = config_of(model_or_config)
        heads, d_head = key_value_sizes(config)
        width = 2 * config.num_hidden_layers * heads * d_head
        if not self.reparameterised:
            return self.n_tokens * width
        return (
            self.n_tokens * config.hidden_size + (config.hidden_size + 1) * self.d_hidden + (self.d_hidden + 1) * width
        )

    def to_hub(self, tensors: Mapping[str, Tensor], base_name: str) -> HubAdapter:
        """Return the prefix as PEFT stores it: collapsed, whether or not a network made it."""
        config = {**hub_config("PREFIX_TUNING", self.n_tokens, base_name), "prefix_projection": False}
        return HubAdapter(config, {PROMPT: tensors[PROMPT]})


class PrefixParts(Attached):
    """A prefix on a model: its parameters, or the network that makes it, or a finished prefix that was loaded."""

    def __init__(self, model: Any, source: _Plain | _Network, what: str) -> None:
        self.model, self.source, self.what = model, source, what
        self.undo = ExitStack()
        self.finished: Float[Tensor, "n width"] | None = None

    def flat(self) -> Float[Tensor, "n width"]:
        """Return keys and values in PEFT's layout: one row a token."""
        return self.source() if self.finished is None else self.finished

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the prefix itself, or its network's parameters."""
        return dict(self.source.named_parameters())

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """Return the keys and values, in PEFT's layout."""
        return {PROMPT: self.flat().detach()}

    def resume_tensors(self) -> dict[str, Tensor]:
        """Return what training goes on from: the network, where there is one."""
        return {name: p.detach() for name, p in self.source.named_parameters()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put in place a finished prefix or what training goes on from; raises `Incompatible` for anything else."""
        own = self.resume_tensors()
        if PROMPT in own or PROMPT not in tensors:
            copy_strictly(own, tensors, self.what)
            self.finished = None
            return
        finished = torch.empty_like(self.flat())
        copy_strictly({PROMPT: finished}, tensors, self.what)
        self.finished = finished.detach()

    def detach(self) -> None:
        """Leave the model exactly as before."""
        self.undo.close()


class _Plain(nn.Module):
    """The keys and values themselves."""

    def __init__(self, start: Float[Tensor, "n width"]) -> None:
        super().__init__()
        self.prompt_embeddings = nn.Parameter(start.clone())

    def forward(self) -> Float[Tensor, "n width"]:
        """Return them."""
        return self.prompt_embeddings


class _Network(nn.Module):
    """Token embeddings -> tanh layer -> keys and values."""

    def __init__(
        self, start: Float[Tensor, "n width"], tokens: Float[Tensor, "n d_model"], d_hidden: int, seed: int
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.tokens = nn.Parameter(torch.randn(tokens.shape, generator=generator).to(start))
        self.hidden = _linear(tokens.shape[1], d_hidden, generator, start)
        self.out = _linear(d_hidden, start.shape[1], generator, start)

    def forward(self) -> Float[Tensor, "n width"]:
        """Return keys and values."""
        return self.out(torch.tanh(self.hidden(self.tokens)))


def _linear(d_in: int, d_out: int, generator: torch.Generator, start: Tensor) -> nn.Linear:
    linear = empty_linear(d_in, d_out)
    for parameter in (linear.weight, linear.bias):
        nn.init.uniform_(parameter, -(d_in**-0.5), d_in**-0.5, generator=generator)  # as torch starts its own
    return linear.to(device=start.device, dtype=start.dtype)


def flattened(layers: list[KeysValues]) -> Float[Tensor, "n width"]:
    """Return keys and values as PEFT stores them: a row a token, in it layer by layer the key, then the value."""
    shapes = {tuple(tensor.shape) for layer in layers for tensor in layer}
    if len(shapes) > 1:
        raise UnsupportedModel(f"prefix tuning needs keys and values of one shape in all layers, found {shapes}")
    stacked = torch.stack([tensor[0] for layer in layers for tensor in layer])  # 2 * layer, head, n, d_head
    return stacked.permute(2, 0, 1, 3).flatten(1)


def layered(flat: Float[Tensor, "n width"], n_heads: int, d_head: int) -> list[KeysValues]:
    """Return the inverse of `flattened`."""
    stacked = flat.view(len(flat), -1, n_heads, d_head).permute(1, 2, 0, 3)[:, None]
    return [KeysValues(stacked[i], stacked[i + 1]) for i in range(0, len(stacked), 2)]
