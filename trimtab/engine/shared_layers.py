"""The layers below an edit, computed once: for forwards over the same tokens that differ from some layer on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import UnsupportedModel
from trimtab.models.anatomy import decoder_layers, decoder_of, input_device
from trimtab.models.calling import inference
from trimtab.models.hooks import edits_suspended, swapped_forwards


class SharedLayers:
    """Keeps what the layers below given ones gave in one forward, and lets other forwards start there.

    A model whose later layers take more from earlier ones than their output (tested on a few tokens), or which has no
    list of layers, shares nothing.
    """

    def __init__(self, model: Any, starts: Iterable[int]) -> None:
        self.model = model
        try:
            self.layers = decoder_layers(model)
        except UnsupportedModel:  # of the user's own, with heads that were named
            self.layers = []
        self.kept: dict[int, Any] = {}
        wanted = {min(start, len(self.layers)) for start in starts} - {0}
        self.starts = self._that_hold(wanted) if wanted else set[int]()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Keep the outputs that the block's forward needs to be resumed from, and none of a forward before."""
        self.kept = {}

        def kept(start: int, run: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                self.kept[start] = run(*args, **kwargs)
                return self.kept[start]

            return forward

        below = {start: self.layers[start - 1] for start in self.starts}
        with swapped_forwards({module: kept(start, module.forward) for start, module in below.items()}):
            yield

    @contextlib.contextmanager
    def resumed(self, start: int) -> Iterator[None]:
        """Run the block's forwards, over the tokens of the recorded one, from this layer on."""
        start = min(start, len(self.layers))
        if start not in self.starts:
            yield
            return
        with swapped_forwards({layer: lambda *_, **__: _copied(self.kept[start]) for layer in self.layers[:start]}):
            yield

    def _that_hold(self, starts: set[int]) -> set[int]:
        """Return the layers from which a forward over a few tokens gives to the bit what the whole forward gives."""
        ids = torch.arange(1, 7, device=input_device(self.model)).reshape(2, 3)

        def logits() -> Tensor:
            return self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits

        self.starts = starts
        with inference(self.model), edits_suspended(decoder_of(self.model)):
            with self.recording():
                whole = logits()
            held = set[int]()
            for start in starts:
                with self.resumed(start):
                    if torch.equal(logits(), whole):
                        held.add(start)
        self.kept.clear()
        return held


def _copied(output: Any) -> Any:
    """Return the layer's output with a copy of its hidden states, which a later layer might write into."""
    if isinstance(output, tuple):
        return (output[0].detach().clone(), *output[1:])
    return output.detach().clone()
