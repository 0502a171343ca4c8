"""An edit, a method, a control, a meter and a judge as a user writes them in a file of their own.

They have the members that trimtab.protocols declares and no others: asking for anything else is an error of the asker.
The edit adds a vector after the first decoder layer, by hooks of its own, so that it has a twin among trimtab's edits.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.errors import BadValue, Incompatible
from trimtab.protocols import Control, Edit, Judge, Measured, Meter, Method, Positions, TokenMask, Verdict


class Undeclared:
    """Raises, loudly, where a member is asked for that nobody declared; what Python itself asks is answered no."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        raise AssertionError(f"{type(self).__name__} was asked for {name!r}, which trimtab.protocols does not declare")


def first_layer(model: Any) -> Any:
    """Return the first decoder layer, by its name."""
    return next(m for name, m in model.named_modules() if name.endswith(("layers.0", "h.0")))


@dataclass(frozen=True)
class Nudge(Undeclared, Edit):
    """Adds `strength * vector` to the residual stream after the first decoder layer."""

    vector: tuple[float, ...]
    strength: float | int = 1.0
    name: str = "Nudge"
    leaves_prompt_unedited: bool = True
    kind: ClassVar[str] = "nudge"

    @contextlib.contextmanager
    def applied(self, model: Any, positions: Positions = "generated") -> Iterator[Any]:
        """Yield the model with a hook on its first layer."""
        layer = first_layer(model)
        if len(self.vector) != model.config.hidden_size:
            raise Incompatible(f"{self.name} is for models of width {len(self.vector)}")
        with contextlib.ExitStack() as stack:
            if self.strength != 0:
                hook = layer.register_forward_hook(lambda module, args, out: self._moved(out, positions))
                stack.callback(hook.remove)
            yield model

    def _moved(self, out: Any, positions: Positions) -> Any:
        x = out[0] if isinstance(out, tuple) else out
        mask = positions.value if isinstance(positions, TokenMask) else positions
        if isinstance(mask, str):
            everywhere = torch.ones(x.shape[:2])
            mask = everywhere if mask == "all" else (everywhere.cumsum(1) == x.shape[1])
        assert isinstance(mask, Tensor)
        moved = x + mask[..., None].to(x) * (self.strength * torch.tensor(self.vector, dtype=torch.float64)).to(x)
        return (moved, *out[1:]) if isinstance(out, tuple) else moved

    def scaled(self, factor: float | int) -> Nudge:
        """Return it with its strength multiplied."""
        if not math.isfinite(factor):
            raise BadValue(f"{self.name} takes a finite strength, got {factor}")
        return replace(self, strength=self.strength * factor)

    def save(self, path: str | Path) -> None:
        """Write it to a folder of plain JSON."""
        Path(path).mkdir(parents=True)
        record = {"kind": self.kind, "vector": self.vector, "strength": self.strength, "name": self.name}
        (Path(path) / "record.json").write_text(json.dumps(record), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Nudge:
        """Return what `save` wrote."""
        record = json.loads((Path(path) / "record.json").read_text(encoding="utf-8"))
        return cls(tuple(record["vector"]), record["strength"], record["name"])


@dataclass(frozen=True)
class Nudging(Undeclared, Method):
    """Makes a nudge along a random vector, whose size is its knob."""

    sizes: tuple[float, ...] = (0.5, 2.0)
    name: str = "Nudging"

    @property
    def space(self) -> dict[str, Sequence[float]]:
        """The sizes."""
        return {"size": self.sizes}

    def fit(self, model: Any, tokenizer: Any, train: Any, *, knobs: Any = None, seed: int = 0) -> Nudge:
        """Return the nudge; the seed and the number of questions decide its direction."""
        knobs = {"size": self.sizes[0]} if knobs is None else knobs
        if set(knobs) != {"size"}:
            raise BadValue(f"{self.name} has the knob size, got {', '.join(knobs)}")
        generator = torch.Generator().manual_seed(1000 * seed + len(train))
        vector = torch.randn(model.config.hidden_size, generator=generator)
        return Nudge(tuple(vector.tolist()), knobs["size"], self.name)


@dataclass(frozen=True)
class Shuffled(Undeclared, Control):
    """The chosen nudge with its entries in another order."""

    draws: int = 2
    follows: str = "Nudging"
    name: str = "Shuffled"

    def edits(self, after: Any, n: int, *, seed: Sequence[int]) -> Iterator[Nudge]:
        """Yield n nudges."""
        if not isinstance(after, Nudge):
            raise BadValue(f"{self.name} can only follow a nudge")
        for number in range(n):
            generator = torch.Generator().manual_seed(sum(10**i * s for i, s in enumerate([number, *seed])))
            order = torch.randperm(len(after.vector), generator=generator)
            yield replace(after, vector=tuple(after.vector[i] for i in order), name=self.name)


@dataclass(frozen=True)
class Surprise(Undeclared, Meter):
    """Mean negative log-probability of the question's own tokens, with the edit at all positions."""

    name: str = "surprise"
    unit: str = "nats"
    better: str = "down"

    def measure(
        self, model: Any, tokenizer: Any, items: Any, edits: Sequence[Edit], *, asking: str = "plain", seed: int = 0
    ) -> list[Measured]:
        """Return a row for every question."""
        found = []
        for edit in edits:
            rows = {}
            for item in items:
                ids = torch.tensor([tokenizer(edit.prompt(item.question) or item.question)["input_ids"]])
                with edit.applied(model, "all") as edited, torch.no_grad():
                    logprobs = edited(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
                rows[item.key] = {"surprise": -float(logprobs.gather(1, ids[0, 1:, None]).mean())}
            found.append(Measured(rows))
        return found


@dataclass(frozen=True)
class Vowels(Undeclared, Judge):
    """Finds an answer the truer the more vowels it has, and informative where it has five letters or more."""

    name: str = "vowels"
    record: dict[str, Any] = field(default_factory=lambda: {"language": "any"})

    def verdicts(self, question: Any, answers: Sequence[str]) -> list[Verdict]:
        """Return the verdicts."""
        share = [sum(letter in "aeiou" for letter in answer) / max(1, len(answer)) for answer in answers]
        return [Verdict(true, float(len(answer) > 4)) for true, answer in zip(share, answers, strict=True)]
