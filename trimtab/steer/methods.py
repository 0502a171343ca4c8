"""Steering as Methods: what a comparison fits in every fold, with its knobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import normalize

from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.questions import Format
from trimtab.edits.residual import ResidualShift
from trimtab.edits.shifts import HeadShift
from trimtab.engine.capture import capture_heads
from trimtab.errors import BadDataset, BadValue
from trimtab.probes.logistic import fit_logistic
from trimtab.protocols import Control, Cost, Method, stopwatch
from trimtab.steer.head_shifts import Direction, fit_shift
from trimtab.steer.residual_shifts import fit_residual_shift

NAMES = {"mass_mean": "ITI", "probe": "ITI (probe weights)"}


@dataclass(frozen=True)
class ITI(Method):
    """Inference-Time Intervention (Li et al. 2023): probes rank the heads, the best are shifted.

    The knobs are K (`top_k`) and alpha. Its control is `RandomDirection`.
    """

    direction: Direction = "mass_mean"
    """`"mass_mean"` or `"probe"`."""
    top_ks: tuple[int, ...] = (8, 16, 32)
    alphas: tuple[float | int, ...] = (0.5, 1, 2, 4, 8, 16)
    format: Literal["plain", "iti", "bare"] | Format | None = None
    """The statements' form: `"iti"` is the original one-line form; the question set's own if not given."""

    def __post_init__(self) -> None:
        if self.direction not in NAMES:
            raise BadValue(
                f"ITI's direction must be mass_mean or probe, got {self.direction!r}; RandomDirection is the control"
            )

    @property
    def name(self) -> str:
        """The name of the direction's row."""
        return NAMES[self.direction]

    @property
    def grid(self) -> Sequence[Mapping[str, Any]]:
        """Every pair of K and alpha."""
        return tuple({"top_k": k, "alpha": a} for k, a in product(self.top_ks, self.alphas))

    def fit(
        self,
        model: Any,
        tokenizer: Any,
        train: ItemSet[Any],
        *,
        knobs: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> HeadShift:
        """Return the shift fitted on the training questions' statements.

        Raises:
            BadDataset: fewer than two questions: the probes are ranked on questions they were not fitted on.
            BadValue: more heads asked for than the model has; other knobs than `top_k` and `alpha`.
        """
        return self.fitter(model, tokenizer, train, seed=seed)(knobs or self.grid[0])

    def fitter(
        self, model: Any, tokenizer: Any, train: ItemSet[Any], *, seed: int = 0
    ) -> Callable[[Mapping[str, Any]], HeadShift]:
        """Return a function from knobs to shifts that all use one capture and one set of probes.

        Raises:
            BadDataset: fewer than two questions.
            BadValue: as `fit`, by the function returned.
        """
        if len(train) < 2:
            raise BadDataset(f"ITI needs two or more training questions, got {len(train)}: some rank the heads")
        with stopwatch() as seconds:
            acts = capture_heads(model, tokenizer, train.statements(self.format))
            held = max(0.2, 1 / len(train))
            probes = fit_logistic(acts, validation=held, seed=seed)

        def shift(knobs: Mapping[str, Any]) -> HeadShift:
            _require_knobs(self.name, knobs, "top_k", "alpha")
            fitted = fit_shift(acts, probes, top_k=knobs["top_k"], direction=self.direction, seed=seed)
            # what every setting of the knobs would have had to pay if it had been made alone
            cost = replace(fitted.cost, seconds=fitted.cost.seconds + seconds[0])
            record = {**fitted.record, "probe_accuracy": probes.accuracy.tolist(), "layers": list(probes.layers)}
            return replace(fitted, cost=cost, record=record).scaled(knobs["alpha"])

        return shift


@dataclass(frozen=True)
class RandomDirection(Control):
    """The control of a head shift: its heads, each shifted by the same norm in a random direction.

    It has nothing to fit and nothing to choose, so it is no method: in a comparison it takes the shift that `follows`
    chose in the same fold and under the same seed, and draws other directions for it.
    """

    draws: int = 10
    """Draws in every fold and under every seed; one direction says little, as some random ones do act."""
    follows: str = "ITI"
    """The row whose shift it takes."""
    name: str = "Random direction"

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise BadValue(f"{self.name} needs two or more draws for an interval over them, got {self.draws}")

    def edits(self, after: Any, n: int, *, seed: Sequence[int]) -> Iterator[HeadShift]:
        """Yield n shifts with random unit directions; the seed's numbers and the draw's alone decide each.

        Raises:
            BadValue: the edit is not a head shift.
        """
        if not isinstance(after, HeadShift):
            raise BadValue(f"{self.name} can only follow a shift of heads, and {self.follows} makes another edit")
        for number in range(n):
            yield self._drawn(after, [*seed, number])

    def _drawn(self, edit: HeadShift, seed: Sequence[int]) -> HeadShift:
        drawn = np.random.default_rng(seed).standard_normal(tuple(edit.directions.shape))
        units = normalize(torch.from_numpy(drawn), dim=1).to(edit.directions)
        record = {**edit.record, "direction": "random", "seed": list(seed)}
        return replace(edit, directions=units, name=self.name, record=record)


@dataclass(frozen=True)
class CAA(Method):
    """Contrastive Activation Addition (Rimsky et al. 2023): one vector added after one decoder layer.

    The knobs are the layer (`rank` 1 is the one whose residual stream the probes read best) and the multiplier.
    """

    ranks: tuple[int, ...] = (1, 2, 3)
    alphas: tuple[float | int, ...] = (0.25, 0.5, 1, 2, 4, 8)
    format: Literal["plain", "iti", "bare"] | Format | None = None
    """The statements' form; the question set's own if not given."""
    name: str = "CAA"

    @property
    def grid(self) -> Sequence[Mapping[str, Any]]:
        """Every pair of layer rank and multiplier."""
        return tuple({"rank": r, "alpha": a} for r, a in product(self.ranks, self.alphas))

    def fit(
        self,
        model: Any,
        tokenizer: Any,
        train: ItemSet[Any],
        *,
        knobs: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> ResidualShift:
        """Return the shift fitted on the training questions' statements.

        Raises:
            BadDataset: fewer than two questions: the probes are ranked on questions they were not fitted on.
            BadValue: a rank beyond the model's layers; other knobs than `rank` and `alpha`.
        """
        return self.fitter(model, tokenizer, train, seed=seed)(knobs or self.grid[0])

    def fitter(
        self, model: Any, tokenizer: Any, train: ItemSet[Any], *, seed: int = 0
    ) -> Callable[[Mapping[str, Any]], ResidualShift]:
        """Return a function from knobs to shifts that all use one capture and one set of probes.

        Raises:
            BadDataset: fewer than two questions.
            BadValue: as `fit`, by the function returned.
        """
        if len(train) < 2:
            raise BadDataset(f"CAA needs two or more training questions, got {len(train)}: some rank the layers")
        with stopwatch() as seconds:
            acts = capture_heads(model, tokenizer, train.statements(self.format), site="residual")
            probes = fit_logistic(acts, validation=max(0.2, 1 / len(train)), seed=seed)
            every = fit_residual_shift(acts, probes, top_k=len(acts.layers))

        def shift(knobs: Mapping[str, Any]) -> ResidualShift:
            _require_knobs(self.name, knobs, "rank", "alpha")
            rank = knobs["rank"]
            if not 1 <= rank <= len(every):
                raise BadValue(f"layer rank {rank} asked for; the model has {len(every)} layers, counted from rank 1")
            vector = every.vectors[rank - 1 : rank]
            one = replace(every, layers=every.layers[rank - 1 : rank], vectors=vector, name=self.name)
            return replace(one, cost=Cost(seconds[0], vector.numel(), 0)).scaled(knobs["alpha"])

        return shift


def _require_knobs(name: str, knobs: Mapping[str, Any], *known: str) -> None:
    if set(knobs) != set(known):
        given = ", ".join(map(str, knobs)) or "none"
        raise BadValue(f"{name} takes the knobs {' and '.join(known)}, got {given}; give both and no other")
