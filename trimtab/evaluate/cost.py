"""What an edit costs: bytes on disk, peak memory while it is made, and milliseconds per generated token."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from trimtab.engine import generate
from trimtab.engine.generate import Decoding
from trimtab.models.anatomy import input_device
from trimtab.models.calling import inference
from trimtab.models.tokens import encode, length_batches
from trimtab.protocols import Edit, Measured, Meter


@dataclass
class Peak:
    """Receives the largest memory in use while a block ran, in bytes; None where the system does not tell."""

    bytes: int | None = None
    kind: str = ""
    """What was measured: GPU memory allocated by torch, or the process's resident memory."""


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Yield a `Peak` that is filled in when the block ends."""
    peak = Peak(kind="gpu allocated" if device.type == "cuda" else "process resident")
    resettable = device.type != "cuda" and _reset_resident_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield peak
    if device.type == "cuda":
        peak.bytes = torch.cuda.max_memory_allocated(device)
    elif resettable:
        peak.bytes = _resident_peak()


def _reset_resident_peak() -> bool:
    # Linux: 5 resets the high-water mark, which otherwise is that of the whole process's life
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _resident_peak() -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


@dataclass(frozen=True)
class CostMeter(Meter):
    """One number of what an edit costs; there are no rows, and nothing is tested."""

    name: str
    heading: str
    unit: str
    of: Callable[[Any, Any, Any, Edit], float | int | None] = field(default=lambda *_: None, repr=False)
    """(model, tokenizer, items, edit) -> the number; None where it was not told."""
    better: ClassVar[Literal["down"]] = "down"
    tested: ClassVar[bool] = False

    def measure(
        self,
        model: Any,
        tokenizer: Any,
        items: Any,
        edits: Sequence[Edit],
        *,
        asking: str = "plain",
        seed: int = 0,
    ) -> list[Measured]:
        """Return every edit's cost."""
        return [Measured(value=self.of(model, tokenizer, items, edit)) for edit in edits]


def making(peak: Peak | None = None) -> tuple[CostMeter, ...]:
    """Return what making an edit costs; `peak` is of whoever watched the making."""
    return (
        CostMeter(
            "trainable_parameters", "fitted or stored numbers", "numbers", lambda *a: a[-1].cost.trainable_parameters
        ),
        CostMeter("seconds", "seconds to make", "s", lambda *a: a[-1].cost.seconds),
        CostMeter("peak_bytes", "peak memory", "bytes", lambda *_: peak and peak.bytes),
    )


STORED = CostMeter("bytes_on_disk", "on disk", "bytes", lambda *a: a[-1].stored_bytes)
"""The size of its folder."""
SPEED = CostMeter(
    "ms_per_token",
    "ms per token",
    "ms",
    # the first few items do, one at a time
    lambda model, tokenizer, items, edit: milliseconds_per_token(
        model, tokenizer, [item.asked for item in items[:3]], edit
    ),
)
"""Time of greedy decoding per new token."""
USING = (STORED, SPEED)
"""What it takes to keep and use an edit: of a comparison's chosen ones alone, since it takes long to find out."""


def cost_meters() -> tuple[CostMeter, ...]:
    """Return all of them in the order of tables."""
    numbers, *rest = making()
    return (numbers, STORED, *rest, SPEED)


def costs(edit: Edit, peak: Peak) -> dict[str, Any]:
    """Return what making an edit took, with its training losses if it was trained, as plain values."""
    found = {meter.name: meter.of(None, None, (), edit) for meter in making(peak)}
    return {**found, "peak_kind": peak.kind, **({"losses": list(edit.losses)} if edit.losses else {})}


def milliseconds_per_token(
    model: Any, tokenizer: Any, questions: Sequence[str], edit: Edit, *, new_tokens: int = 8
) -> float:
    """Return the time of greedy decoding per new token: the median over the questions, one at a time.

    The prompt's own time is in it, as longer prompts are what prompting costs.
    """
    seconds: list[float] = []
    with edit.applied(model) as edited, inference(edited):
        # the first two tokens warm up and are not counted
        for n, question in [(2, questions[0]), *((new_tokens, question) for question in questions)]:
            ids = encode(tokenizer, edit.prompt(question) or f"Q: {question}\nA:")
            (batch,) = length_batches([ids], batch_size=1, pad=0, device=input_device(model))
            started = time.perf_counter()
            generate.new_tokens(edited, tokenizer, batch, Decoding(n, {"min_new_tokens": n})).cpu()  # waits
            seconds.append(time.perf_counter() - started)
    return 1000 * sorted(seconds[1:])[len(questions) // 2] / new_tokens
