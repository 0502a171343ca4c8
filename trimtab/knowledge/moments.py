"""KeyStatistics: the second moment of an MLP's keys over text, which says what an edit must leave as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import TypedDict

from trimtab.errors import BadDataset, BadValue, Incompatible
from trimtab.knowledge.keys import own_texts
from trimtab.models.anatomy import decoder_of, input_device
from trimtab.models.calling import inference, logits_limit
from trimtab.models.hooks import edits_suspended, on_inputs
from trimtab.models.identity import Fingerprint, fingerprint, require_same_model
from trimtab.models.mlp import MlpSite
from trimtab.models.tokens import encode, length_batches, pad_id
from trimtab.models.weights import changes_suspended
from trimtab.plain_values import hash_of
from trimtab.progress import tracked
from trimtab.storage import cache_folder, kind_of, load_result, save_result

KIND = "key statistics"
LENGTH = 128
"""Tokens of a text of the model's own."""
ENOUGH = 10
"""Tokens for each dimension of a key; more change little (Gupta et al. 2025)."""
Cache: TypeAlias = str | Path | None
"""A folder that keeps statistics, or None to keep none."""


class _Saved(TypedDict):
    n_tokens: int
    model: Fingerprint
    texts: str


@dataclass(frozen=True)
class KeyStatistics:
    """`C = E[k k^T]`, uncentred, of each layer's keys, over the positions of texts but for each text's first."""

    moments: Mapping[int, Float[Tensor, "d_in d_in"]]
    """Layer -> C, in float64 on the CPU."""
    n_tokens: int
    """How many keys it is the mean of."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """The model's fingerprint."""
    texts: str = ""
    """A hash of the texts."""

    def conditioned(self, layer: int, ridge: float | int) -> Float[Tensor, "d_in d_in"]:
        """Return C of a layer with `ridge` times its mean eigenvalue added to the diagonal.

        Raises:
            BadValue: fewer keys than dimensions, so that C says nothing of most of them; numbers that are not finite;
                a layer that it lacks.
        """
        if layer not in self.moments:
            raise BadValue(f"these statistics are of layers {', '.join(map(str, self.moments))}, not of layer {layer}")
        moment = self.moments[layer]
        d_in = len(moment)
        if self.n_tokens < d_in:
            raise BadValue(
                f"statistics of {self.n_tokens} tokens are too few for keys of {d_in} dimensions; take "
                f"{ENOUGH * d_in} or more"
            )
        if not bool(moment.isfinite().all()):
            raise BadValue(f"the statistics of layer {layer} are not finite; load the model in float32 or bfloat16")
        return moment + ridge * moment.trace() / d_in * torch.eye(d_in, dtype=moment.dtype)

    def __add__(self, other: KeyStatistics) -> KeyStatistics:
        """Return the statistics over both sets of texts, of the layers that both have."""
        n = self.n_tokens + other.n_tokens
        shared = self.moments.keys() & other.moments.keys()
        moments = {k: (self.n_tokens * self.moments[k] + other.n_tokens * other.moments[k]) / n for k in sorted(shared)}
        return KeyStatistics(moments, n, self.model, hash_of([self.texts, other.texts]))

    def save(self, path: str | Path) -> None:
        """Write the statistics to a folder, in float32; raises `Incompatible` if it holds something else."""
        record = {"n_tokens": self.n_tokens, "model": dict(self.model), "texts": self.texts}
        save_result(path, KIND, record, {str(layer): moment.float() for layer, moment in self.moments.items()})

    @classmethod
    def load(cls, path: str | Path) -> KeyStatistics:
        """Return what `save` wrote; raises `Incompatible` for anything else."""
        record, tensors = load_result(path, KIND, fields=_Saved)
        moments = {int(layer): moment.double() for layer, moment in tensors.items()}
        return cls(moments, record["n_tokens"], record["model"], record["texts"])


def key_statistics(model: Any, tokenizer: Any, texts: Sequence[str], sites: Sequence[MlpSite]) -> KeyStatistics:
    """Return the statistics of the keys that these texts give at these sites, all layers from one forward.

    Raises:
        BadDataset: no text of two tokens or more.
    """
    ids = [i for i in (encode(tokenizer, text)[: 4 * LENGTH] for text in texts) if len(i) > 1]
    if not ids:
        raise BadDataset("no text of two tokens or more to take statistics of")
    batches = list(length_batches(ids, batch_size=16, pad=pad_id(tokenizer), device=input_device(model)))
    sums = {s.layer: torch.zeros(s.d_in, s.d_in, dtype=torch.float64, device=s.module.weight.device) for s in sites}
    real = torch.zeros(0)

    def add(layer: int, x: Tensor) -> None:
        keys = x[real.to(x.device)].double()
        sums[layer] += keys.T @ keys

    hooks = [(s.module, lambda x, layer=s.layer: add(layer, x)) for s in sites]
    with inference(model), on_inputs(hooks):
        for batch in tracked(batches, "statistics of keys"):
            real = batch.attention_mask.bool()
            real[:, 0] = False  # attention sinks there: a key like no other
            model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                use_cache=False,
                **logits_limit(model, 1),
            )
    n = sum(len(i) - 1 for i in ids)
    moments = {layer: (total / n).cpu() for layer, total in sums.items()}
    return KeyStatistics(moments, n, fingerprint(model), hash_of(list(texts)))


def own_statistics(
    model: Any, tokenizer: Any, sites: Sequence[MlpSite], *, n_tokens: int | None, seed: int, cache: Cache
) -> KeyStatistics:
    """Return the statistics over texts that the model itself writes, from the cache where they are there already.

    They are the unedited model's, whatever edit is in place: what must stay is what it knew. A layer is kept in a
    folder by the model's fingerprint, the number of tokens, and the seed, which decide the texts.

    Args:
        n_tokens: of the texts; ten for each dimension of a key if not given.

    Raises:
        Incompatible: the cache cannot be written.
    """
    n = n_tokens or ENOUGH * max(s.d_in for s in sites)
    folders = {s.layer: Path(cache or "") / hash_of([fingerprint(model), s.weight, n, seed])[:24] for s in sites}
    missing = [s for s in sites if cache is None or kind_of(folders[s.layer]) != KIND]
    found: dict[int, KeyStatistics] = {}
    if missing:
        with changes_suspended(model), edits_suspended(decoder_of(model)):
            whole = key_statistics(model, tokenizer, _texts_of_length(model, tokenizer, n, seed), missing)
        for site in missing:
            own = KeyStatistics({site.layer: whole.moments[site.layer]}, whole.n_tokens, whole.model, whole.texts)
            found[site.layer] = own
            if cache is not None:
                folders[site.layer].parent.mkdir(parents=True, exist_ok=True)
                own.save(folders[site.layer])
    for site in sites:
        if site.layer not in found:
            found[site.layer] = KeyStatistics.load(folders[site.layer])
            require_same_model(found[site.layer].model, model, f"the statistics in {folders[site.layer]}")
    moments = {layer: own.moments[layer] for layer, own in sorted(found.items())}
    first = next(iter(found.values()))
    return KeyStatistics(moments, min(own.n_tokens for own in found.values()), first.model, first.texts)


def _texts_of_length(model: Any, tokenizer: Any, n_tokens: int, seed: int) -> list[str]:
    """Return texts of the model's own of so many tokens together, or a few more."""
    texts, drawn = [], 0
    while drawn < n_tokens:  # some texts end early
        more = own_texts(model, tokenizer, -(-(n_tokens - drawn) // LENGTH), LENGTH, seed + len(texts))
        new = sum(max(0, len(encode(tokenizer, text)) - 1) for text in more)
        texts, drawn = texts + more, drawn + new
        if new < len(more):
            raise BadValue("the model's own texts end at once; give statistics of other texts (key_statistics)")
    return texts


def usual_cache() -> Path:
    """Return the folder in which statistics are kept if nobody names one: trimtab's in the user's cache."""
    return cache_folder("statistics")


def require_of_model(statistics: KeyStatistics, model: Any, sites: Sequence[MlpSite]) -> None:
    """Raise `Incompatible` if statistics are of another model, or lack one of the layers."""
    if statistics.model:
        require_same_model(statistics.model, model, "the statistics of keys")
    missing = [s.layer for s in sites if s.layer not in statistics.moments]
    if missing:
        raise Incompatible(f"the statistics lack layer {missing[0]}; take them of the layers that are edited")
