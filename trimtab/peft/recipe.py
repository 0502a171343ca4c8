"""Recipe: how a method is trained, whatever the method is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trimtab.errors import BadValue

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
"""By name, as the Hugging Face Trainer calls them."""
OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
"""Likewise; all but the first are bitsandbytes'."""


@dataclass(frozen=True)
class Recipe:
    """Epochs, learning rate, batch size and the levers of speed and memory; the same words for every method."""

    epochs: float | int = 3
    """Passes over the examples."""
    max_steps: int | None = None
    """Ends the run after so many optimiser steps instead."""
    learning_rate: float | int | None = None
    """At its peak; the method's own if not given."""
    batch_size: int = 16
    """Examples in one optimiser step (on each process)."""
    micro_batch: int | None = None
    """Examples in one forward; the whole batch if not given. Gradients are those of the whole batch either way."""
    schedule: str = "linear"
    """`"linear"`, `"cosine"` or `"constant"`, after the warm-up."""
    warmup: float | int = 0.06
    """Share of the steps over which the learning rate rises."""
    weight_decay: float | int = 0.0
    """AdamW's: each step takes off this share of a weight times the learning rate."""
    max_grad_norm: float | int = 1.0
    """Longer gradients are cut to this norm; 0 for none."""
    optimizer: str = "adamw"
    """`"adamw"`, or bitsandbytes' `"adamw_8bit"`, `"paged_adamw"`, `"paged_adamw_8bit"`."""
    max_length: int | None = None
    """In tokens. Longer examples are an error naming the row; the model's context if not given."""
    packing: bool | None = None
    """Several short examples in one row; where the method allows it if not given."""
    checkpointing: bool = False
    """Non-reentrant gradient checkpointing: less memory, about a third more time."""
    precision: str | None = None
    """Autocast to `"bf16"` or `"fp16"`; the model's own dtype if not given."""
    objective: str = "true"
    """`"true"`: learn the true answers. `"true_and_false"`: the ITI paper's SFT, which also moves away from the false
    answers and mixes in plain text."""
    save_every: int = 50
    """Optimiser steps between checkpoints, where a folder is given."""
    report_to: str | Sequence[str] = field(default=(), repr=False, compare=False)
    """The Trainer's trackers that follow the run, such as `"tensorboard"`, `"wandb"`, `"mlflow"` or several; a tuple
    once made. No part of what a run is: recipes that differ in it alone are equal, and resume each other's runs."""

    def __post_init__(self) -> None:
        asked = self.report_to or ()
        object.__setattr__(self, "report_to", (asked,) if isinstance(asked, str) else tuple(dict.fromkeys(asked)))
        for name in ("epochs", "batch_size", "micro_batch", "max_steps", "learning_rate", "save_every", "max_length"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise BadValue(f"{name} must be a number above 0, got {value}")
        for name in ("weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise BadValue(f"{name} must be a number of 0 or more, got {getattr(self, name)}")
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise BadValue(f"micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}")
        for name, known in (
            ("schedule", tuple(SCHEDULES)),
            ("optimizer", tuple(OPTIMIZERS)),
            ("precision", (None, "bf16", "fp16")),
            ("objective", ("true", "true_and_false")),
        ):
            if getattr(self, name) not in known:
                raise BadValue(f"unknown {name} {getattr(self, name)!r}; choose {', '.join(map(str, known))}")
        if not 0 <= self.warmup < 1:
            raise BadValue(f"warmup is a share of the steps between 0 and 1, got {self.warmup}")

    def as_dict(self) -> dict[str, Any]:
        """Return what decides the result, as plain values: all fields but the trackers."""
        return {name: value for name, value in asdict(self).items() if name != "report_to"}
