"""trace: which states carry a fact, by restoring them one at a time in runs whose subject is corrupted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trimtab.datasets.facts import Fact
from trimtab.engine.shared_layers import SharedLayers
from trimtab.engine.tail_forward import TailForward
from trimtab.errors import BadDataset, BadValue
from trimtab.knowledge.editors import require_facts
from trimtab.knowledge.keys import Lookup, subject_last
from trimtab.knowledge.traced import RESTORED, Restored, Trace, TracedFact
from trimtab.knowledge.value import answer_ids
from trimtab.models.anatomy import decoder_layers, input_device
from trimtab.models.calling import inference, require_numbers
from trimtab.models.heads import find_heads
from trimtab.models.hooks import on_outputs
from trimtab.models.identity import fingerprint
from trimtab.models.mlp import find_mlp_outputs
from trimtab.models.tokens import pad_id, padded_batch
from trimtab.plain_values import hash_of
from trimtab.progress import tracked


@dataclass(frozen=True, kw_only=True)
class Tracing:
    """How facts are traced."""

    samples: int = 10
    """Of noise; each cell of a fact sees the same ones."""
    noise: float | int = 3.0
    """Standard deviation of the noise, in standard deviations of all entries of the subjects' embeddings."""
    window: int | None = None
    """Layers whose MLPs, or attentions, are restored together; a sixth of the model's if not given."""
    every: int = 1
    """Restore in every so many-th layer, from the first on."""
    restored: tuple[Restored, ...] = RESTORED
    """What is restored; mixtures of experts have no MLP to restore."""
    batch_size: int = 64
    """At most so many rows in one forward (and no fewer than samples)."""

    def __post_init__(self) -> None:
        counts = {"samples": self.samples, "every": self.every, "batch_size": self.batch_size}
        counts |= {} if self.window is None else {"window": self.window}
        for name, value in counts.items():
            if value < 1:
                raise BadValue(f"{name} must be at least 1, got {value}")
        unknown = set(self.restored) - set(RESTORED)
        if not self.noise >= 0 or unknown or not self.restored:
            raise BadValue(
                f"noise must be 0 or more and restored some of {', '.join(RESTORED)}; got {self.noise} and "
                f"{', '.join(self.restored) or 'none'}"
            )


def trace(model: Any, tokenizer: Any, facts: Any, *, how: Tracing | None = None, seed: int = 0) -> Trace:
    """Return what restoring each state does for the answer in runs whose subject is corrupted (Meng et al. 2022).

    Noise is added to the embeddings of the subject's tokens; in each cell one token's state is put back to what it is
    in the clean run, and the gain in the probability of the answer's first token is taken. It says where information
    about the subject flows, not which layer is best to edit (Hase et al. 2023). The answer is the fact's true one, and
    a fact to which the model gives another is skipped; where no true answer is known, what the model says is traced.
    Tokens before the subject are run once, and below what is restored no layer is run.

    Args:
        facts: a FactSet or a Fact; `new` plays no part.
        how: samples, noise, window; see `Tracing`.
        seed: of the noise, together with the fact's prompt.

    Raises:
        BadDataset: what is given are no facts, or the model knows none of them.
        BadValue: a subject that has no token that ends with it.
        UnsupportedModel: the MLPs or attentions of the model are not found.
    """
    how = how or Tracing()
    facts = require_facts(facts, "a trace")
    places = _modules(model, how.restored)
    n = len(decoder_layers(model))
    layers = tuple(range(0, n, how.every))
    window = how.window or max(1, round(n / 6))
    with inference(model):
        texts = {fact.key: subject_last(tokenizer, fact.asked, fact.span) for fact in facts}
        known, skipped = _known(model, tokenizer, facts, texts)
        if not known:
            first, why = next(iter(skipped.items()))
            raise BadDataset(
                f"the model gives the true answer to none of {len(facts)} fact(s), such as {first!r} ({why}); give "
                "facts that it knows (trimtab.evaluate.known_facts)"
            )
        embed = model.get_input_embeddings()
        ids = [token for key in known for token in texts[key].ids[texts[key].first : texts[key].place + 1]]
        spread = float(embed(torch.tensor(ids, device=input_device(model))).float().std())
        cells = _Cells(model, tokenizer, places, window, layers, how)
        found = []
        for key in tracked(list(known), "tracing"):
            drawn = torch.Generator().manual_seed(int(hash_of([seed, key])[:15], 16))
            found.append(cells.traced(key, texts[key], known[key], how.noise * spread, drawn))
    asked = {"samples": how.samples, "every": how.every, "restored": how.restored}
    record = {"model": fingerprint(model), "noise": how.noise * spread, "seed": seed, **asked}
    return Trace(tuple(found), skipped, layers, window, record)


def _modules(model: Any, restored: Sequence[Restored]) -> dict[Restored, list[nn.Module]]:
    """Return what gives each kind of state, by layer."""
    of = {
        "layer": lambda: decoder_layers(model),
        "mlp": lambda: [site.module for site in find_mlp_outputs(model)],
        "attention": lambda: [site.module for site in find_heads(model)],
    }
    return {kind: of[kind]() for kind in restored}


def _known(
    model: Any, tokenizer: Any, facts: Sequence[Fact], texts: Mapping[str, Lookup]
) -> tuple[dict[str, int], dict[str, str]]:
    """Return prompt -> the answer's first token, of facts whose likeliest next token it is; and why others are not."""
    known, skipped = {}, {}
    for fact in tracked(facts, "asking"):
        ids = torch.tensor([texts[fact.key].ids], device=input_device(model))
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -1]
        require_numbers(logits, f"the model's answer to {fact.asked!r:.60}")
        said = int(logits.argmax())
        wanted = answer_ids(tokenizer, texts[fact.key], fact.true)[0] if fact.true else said
        if wanted == said:
            known[fact.key] = said
        else:
            skipped[fact.key] = f"the model goes on with {tokenizer.decode([said])!r}, not {fact.true!r}"
    return known, skipped


class _Run(NamedTuple):
    """One fact's forwards: over the tokens from the subject's first on, behind those before."""

    forward: TailForward
    answer: int
    noise: Float[Tensor, "sample token d_model"]

    def probability(self, times: int = 1) -> Float[Tensor, " row"]:
        """Return the answer's probability in each row of the repeated tail."""
        logits = self.forward(times=times, last=True)[:, -1]
        return logits.float().softmax(-1)[:, self.answer].double().cpu()

    def corrupt(self, embedded: Tensor) -> Tensor:
        """Return the subject's embeddings with the noise, each sample in a row, over and over."""
        out = embedded.clone()
        noise = self.noise.to(out).repeat(len(out) // len(self.noise), 1, 1)
        out[:, : noise.shape[1]] += noise
        return out


@dataclass
class _Cells:
    """The states that are restored, and how forwards that differ from some layer on are run from there on."""

    model: Any
    tokenizer: Any
    places: Mapping[Restored, Sequence[nn.Module]]
    window: int
    layers: Sequence[int]
    how: Tracing

    def __post_init__(self) -> None:
        self.stack = decoder_layers(self.model)
        starts = {self._first_run(kind, layer) for kind in self.places for layer in self.layers}
        self.shared = SharedLayers(self.model, starts)

    def traced(self, key: str, text: Lookup, answer: int, noise: float, drawn: torch.Generator) -> TracedFact:
        """Return the fact with the effect of every cell."""
        how = {"pad": pad_id(self.tokenizer), "device": input_device(self.model)}
        tail, n_subject = text.ids[text.first :], text.place + 1 - text.first
        batches = (padded_batch([part], [0], **how) for part in (text.ids[: text.first], tail))
        d_model = self.model.get_input_embeddings().weight.shape[1]
        shape = (self.how.samples, n_subject, d_model)
        run = _Run(TailForward(self.model, *batches), answer, noise * torch.randn(shape, generator=drawn))
        clean: dict[nn.Module, Tensor] = {}
        with on_outputs([(m, partial(_keep, clean, m)) for own in self.places.values() for m in own]):
            p_clean = float(run.probability())
        with on_outputs([(self.model.get_input_embeddings(), run.corrupt)]):
            with self.shared.recording():
                corrupted = float(run.probability(self.how.samples).mean())
            effects = {
                kind: torch.stack([self._restored(run, clean, kind, at) for at in self.layers], 1) - corrupted
                for kind in self.places
            }
        plain = {kind: tuple(map(tuple, of_kind.tolist())) for kind, of_kind in effects.items()}
        tokens = tuple(self.tokenizer.decode([token]) for token in tail)
        said, roles = self.tokenizer.decode([answer]), tuple(_roles(n_subject, len(tail)))
        return TracedFact(key, said, p_clean, corrupted, tokens, roles, plain)

    def _first_run(self, kind: Restored, layer: int) -> int:
        """Return the first layer that must run where states of this kind around this layer are restored."""
        # a layer's output is put in the place of what it gave
        return layer + 1 if kind == "layer" else self._window(layer).start

    def _window(self, layer: int) -> slice:
        low = layer - self.window // 2
        return slice(max(0, low), low + self.window)

    def _restored(
        self, run: _Run, clean: Mapping[nn.Module, Tensor], kind: Restored, layer: int
    ) -> Float[Tensor, " token"]:
        """Return the answer's mean probability with each token's state restored."""
        start, samples = self._first_run(kind, layer), self.how.samples
        modules = self.places[kind][slice(layer, start) if kind == "layer" else self._window(layer)]
        found = []
        for tokens in torch.arange(clean[modules[0]].shape[0]).split(max(1, self.how.batch_size // samples)):
            with self._resumed(start, len(tokens) * samples), ExitStack() as stack:
                hooks = [(module, partial(_put_back, clean[module], tokens, samples)) for module in modules]
                stack.enter_context(on_outputs(hooks))
                found.append(run.probability(len(tokens) * samples).view(len(tokens), samples).mean(1))
        return torch.cat(found)

    @contextmanager
    def _resumed(self, start: int, rows: int) -> Iterator[None]:
        """Run forwards of so many rows from a layer on: what is recorded has one row a sample."""

        def repeated(out: Tensor) -> Tensor | None:
            return None if len(out) == rows else out.repeat(rows // len(out), 1, 1)

        below = [(self.stack[start - 1], repeated)] if start else []
        with self.shared.resumed(start), on_outputs(below):
            yield


def _keep(kept: dict[nn.Module, Tensor], module: nn.Module, out: Tensor) -> None:
    kept[module] = out[0].clone()


def _put_back(
    clean: Float[Tensor, "token d_model"], tokens: Tensor, samples: int, out: Float[Tensor, "row token d_model"]
) -> Float[Tensor, "row token d_model"]:
    """Return the output in which each of the tokens has its clean state, in rows of its own, one a sample."""
    out, places = out.clone(), tokens.to(out.device)
    cells = out.view(len(places), samples, *out.shape[1:])
    cells[torch.arange(len(places), device=out.device), :, places] = clean[places, None].to(out)
    return out


def _roles(n_subject: int, n: int) -> Iterator[str]:
    for place in range(n):
        if place == n - 1:
            yield "last token"
        elif place == n_subject - 1:
            yield "last subject token"
        elif place < n_subject:
            yield "middle subject tokens" if place else "first subject token"
        else:
            yield "first token after" if place == n_subject else "further tokens"
