"""TuningMethod: what every way of tuning derives from; `fit` gives a `TunedEdit`."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.models.seeds import random_state_kept
from trimtab.peft.tunable import Tunable
from trimtab.peft.tuned_edit import TunedEdit
from trimtab.protocols import Knobs


@dataclass(frozen=True)
class TuningMethod(Tunable, ABC):
    """A way of tuning: `attach` says what is trained, `fit` trains it."""

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
        """Return the edit tuned on the training questions (or on `SftExample` pairs); the model is left as it was.

        Args:
            train: a `QuestionSet`, whose true answers are learned, or a sequence of `SftExample`.
            knobs: fields of the method or its recipe to set for this run.
            seed: of the parts' start, the order of the examples and dropout.
            out: folder for checkpoints; without it none are kept.
            resume: go on from the last checkpoint in `out` if it was made with the same specification.

        Raises:
            BadDataset: an example with nothing to learn, naming it.
            BadValue: the method does not fit the model, weights are offloaded, there is too little memory, or a loss
                is not a number.
            Incompatible: `out` holds another run, the model was compiled before, or carries an adapter already.
            UnsupportedModel: layers that do not have what the method acts on.
        """
        from trimtab.peft.train.fit import fit_method  # which loads the Trainer

        with random_state_kept(model):
            return fit_method(self.with_knobs(knobs), model, tokenizer, train, seed=seed, out=out, resume=resume)
