"""Steering as Methods: what a comparison fits in every fold, with its knobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from trimtab.datasets import QuestionSet
from trimtab.datasets.questions import Format
from trimtab.edits import stopwatch
from trimtab.errors import BadDataset
from trimtab.models import capture_heads
from trimtab.probes import fit_logistic
from trimtab.steer.fitting import Direction, fit_shift
from trimtab.steer.shifts import HeadShift

NAMES = {"mass_mean": "ITI", "probe": "ITI (probe weights)", "random": "Random direction"}


@dataclass(frozen=True)
class ITI:
    """Inference-Time Intervention (Li et al. 2023): probes rank the heads, the best are shifted.

    The knobs are K (`top_k`) and alpha. `direction="random"` is the control: the same heads, each with a shift of
    the same norm in a random direction, other ones for every seed.
    """

    direction: Direction = "mass_mean"
    top_ks: tuple[int, ...] = (8, 16, 32)
    alphas: tuple[float | int, ...] = (0.5, 1, 2, 4, 8, 16)
    format: str | Format | None = None
    """The statements' form: `"iti"` is the original one-line form; the question set's own if not given."""

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
        train: QuestionSet,
        *,
        knobs: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> HeadShift:
        """Return the shift fitted on the training questions' statements.

        Raises:
            BadDataset: fewer than two questions: the probes are ranked on questions they were not fitted on.
            BadValue: more heads asked for than the model has.
        """
        return self.fitter(model, tokenizer, train, seed=seed)(knobs or self.grid[0])

    def fitter(
        self, model: Any, tokenizer: Any, train: QuestionSet, *, seed: int = 0
    ) -> Callable[[Mapping[str, Any]], HeadShift]:
        """Return a function from knobs to shifts that all use one capture and one set of probes."""
        if len(train) < 2:
            raise BadDataset(f"ITI needs two or more training questions, got {len(train)}: some rank the heads")
        with stopwatch() as seconds:
            acts = capture_heads(model, tokenizer, train.statements(self.format))
            held = max(0.2, 1 / len(train))
            probes = fit_logistic(acts, validation=held, seed=seed)

        def shift(knobs: Mapping[str, Any]) -> HeadShift:
            fitted = fit_shift(acts, probes, top_k=knobs["top_k"], direction=self.direction, seed=seed)
            # what every setting of the knobs would have had to pay if it had been made alone
            cost = replace(fitted.cost, seconds=fitted.cost.seconds + seconds[0])
            record = {**fitted.record, "probe_accuracy": probes.accuracy.tolist(), "layers": list(probes.layers)}
            return replace(fitted, cost=cost, record=record).scaled(knobs["alpha"])

        return shift
