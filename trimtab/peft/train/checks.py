"""What watches a training run: gradients and losses that are numbers, and checkpoints that are whole."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback

from trimtab.errors import BadValue
from trimtab.models.processes import is_split, whole

COMPLETE = "complete.json"
"""The mark of a checkpoint in which everything was written; it holds what was seen so far."""
GRADIENT_STEPS = 3
"""By the end of this step every trainable tensor must have had a gradient; a shorter run warns at its end."""
MOVED = 0.1
"""The smallest share of numbers with a gradient that must move in a step."""
FP16_GRADIENT_STEPS = 10
"""The same where the first steps may be skipped while the loss scale is found."""


class GradientCheck(TrainerCallback):
    """Stops a run whose loss or gradients are no numbers, or in which a tensor has had no gradient by the third step.

    Numbers are looked at once a step, when the optimiser's work is queued already: asking a GPU for one waits for it.
    A step of NaN is then in the trained weights, but in no checkpoint: those are written later.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters, self.silent = dict(parameters), dict(parameters)
        self.losses: list[Tensor] = []
        self._norm: Tensor | None = None
        self._steps = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Note which tensors have had a gradient, and how large the gradients are."""
        self._steps += 1
        for name, parameter in list(self.silent.items()):
            if parameter.grad is not None and bool(whole(parameter.grad).any()):
                del self.silent[name]
        if not args.fp16:  # its scaler finds the largest scale by gradients that overflow, and leaves those steps out
            self._norm = whole(get_total_norm([p.grad for p in self.parameters.values() if p.grad is not None]))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Raise `BadValue` for a loss or a gradient of this step that is not a number."""
        losses, self.losses = [float(loss) for loss in self.losses], []
        step, rate = state.global_step + 1, f"lower the learning rate (it was {args.learning_rate:g})"
        bad = [loss for loss in losses if not math.isfinite(loss)]
        if bad:
            raise BadValue(
                f"the loss of step {step} is {bad[0]}: training stopped and {kept(args, step - 1)}; {rate} or use bf16 "
                "instead of fp16"
            )
        if self._norm is not None and not bool(self._norm.isfinite()):
            raise BadValue(
                f"the loss of step {step} is a number but its gradients are not: training stopped and "
                f"{kept(args, step)}; {rate}, or try another attention implementation or precision"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Raise after the third step, naming the tensors."""
        silent = self._silent()
        if state.global_step == (FP16_GRADIENT_STEPS if args.fp16 else GRADIENT_STEPS) and silent:
            raise BadValue(
                f"{len(silent)} trainable tensors have had no gradient after {state.global_step} steps, {silent[0]} "
                "among them: they would stay as they are; check the method's targets"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Raise after a run of fewer steps if no tensor has had a gradient, and warn if some have had none.

        What starts at zero keeps what it is multiplied by without gradient for a step (two, where the first has a
        learning rate of 0), so that a short run cannot tell those tensors from disconnected ones.
        """
        silent = self._silent()
        if not silent or not 0 < self._steps == state.global_step < GRADIENT_STEPS:
            return
        said = f"{len(silent)} of {len(self.parameters)} trainable tensors have had no gradient in {self._steps} steps"
        if len(silent) == len(self.parameters):
            raise BadValue(f"{said}: nothing was learned; check the method's targets")
        warnings.warn(f"{said}, {silent[0]} among them, and stay as they were: take more steps", stacklevel=2)

    def _silent(self) -> list[str]:
        return [name for name in self.silent if "expert" not in name]  # an expert may have been sent no token


class MovementCheck(TrainerCallback):
    """Stops a run whose steps are smaller than the spacing of the numbers that they are added to.

    Looks at some numbers of each tensor in the step by which every tensor must have had a gradient.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], stepped: Mapping[str, Tensor]) -> None:
        self.pairs = [(p, stepped.get(name, p)) for name, p in parameters.items()]
        self._before: list[tuple[Tensor, Tensor, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Note numbers that have a gradient."""
        if state.global_step + 1 == min(GRADIENT_STEPS, state.max_steps) and not args.fp16:  # whose scaler may skip it
            graded = [(stepped, _some(p.grad) != 0) for p, stepped in self.pairs if p.grad is not None]
            self._before = [(stepped, _some(stepped)[moves].clone(), moves) for stepped, moves in graded]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Raise `BadValue` if hardly any of them is another number now."""
        moved = [_some(stepped)[moves] != before for stepped, before, moves in self._before]
        self._before = []
        looked = sum(m.numel() for m in moved)
        share = sum(int(m.sum()) for m in moved) / looked if looked else 1
        if share < MOVED:
            raise BadValue(
                f"{100 * share:.0f} % of the trained numbers moved in step {state.global_step + 1}: its steps are "
                f"smaller than the spacing of the numbers; raise the learning rate (it was {args.learning_rate:g})"
            )


def _some(tensor: Any) -> Tensor:
    # of this process's part
    flat = (tensor.to_local() if is_split(tensor) else tensor).detach().flatten()
    return flat[:: max(1, flat.numel() // 256)]


def last_checkpoint(folder: Path, before: float | int = math.inf) -> Path | None:
    """Return the newest whole checkpoint of a run folder from before a step, or None."""
    steps = {int(p.parent.name.split("-")[1]): p.parent for p in folder.glob(f"checkpoint-*/{COMPLETE}")}
    earlier = [step for step in steps if step < before]
    return steps[max(earlier)] if earlier else None


def kept(arguments: Any, before: int) -> str:
    """Return what remains of a run that stops, for a sentence: the last weights that gave a loss that is a number."""
    last = last_checkpoint(Path(arguments.output_dir or "."), before)
    return f"the last good checkpoint is {last}" if last else "nothing good was saved before it"
