"""Results on their way from a device to the CPU while the device computes the next ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 1 << 26
"""Bytes of page-locked memory that each of two chunks under way may take."""


class RowsToCpu:
    """Writes rows of results into a CPU tensor, of whatever float type it is.

    What comes from a GPU is fetched when the next rows arrive (or at `finish`), over a stream of its own: the GPU then
    computes the next forward while the CPU writes what the last one gave.
    """

    def __init__(self, values: Float[Tensor, "row layer width"]) -> None:
        self.values = values
        self.waiting: tuple[Tensor, Tensor, torch.cuda.Event] | None = None
        self.stream: torch.cuda.Stream | None = None

    def put(self, rows: Sequence[int], found: Float[Tensor, "part layer width"]) -> None:
        """Take what was computed for these rows."""
        places = torch.tensor(rows)
        if found.device.type != "cuda":
            self.values[places] = found.cpu().to(self.values.dtype)
            return
        computed = torch.cuda.Event()
        computed.record(torch.cuda.current_stream(found.device))
        self.finish()
        self.waiting = (places, found, computed)

    def finish(self) -> None:
        """Write what still waits."""
        if self.waiting is None:
            return
        places, found, computed = self.waiting
        self.stream = self.stream or torch.cuda.Stream(found.device)
        self.stream.wait_event(computed)
        size = max(1, CHUNK // (found[0].numel() * self.values.element_size()))
        under_way: list[tuple[Tensor, Tensor, torch.cuda.Event]] = []
        for some, part in zip(places.split(size), found.split(size), strict=True):
            under_way.append((some, *self._fetched(part)))
            if len(under_way) == 2:
                self._write(*under_way.pop(0))
        for chunk in under_way:
            self._write(*chunk)
        self.waiting = None  # only now: where memory runs out half-way, all of it is fetched again

    def _fetched(self, part: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        with torch.cuda.stream(self.stream):
            staged = torch.empty(part.shape, dtype=self.values.dtype, pin_memory=True)
            staged.copy_(part.to(self.values.dtype), non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return staged, arrived

    def _write(self, places: Tensor, staged: Tensor, arrived: torch.cuda.Event) -> None:
        arrived.synchronize()
        self.values[places] = staged
