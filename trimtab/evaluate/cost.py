"""What an edit costs: bytes on disk, peak memory while it is made, and milliseconds per generated token."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trimtab.models.anatomy import input_device
from trimtab.models.calling import inference
from trimtab.protocols import Edit


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


def stored_bytes(edit: Edit) -> int:
    """Return the size of the folder that the edit's `save` writes, or what its cost says if it cannot be saved."""
    return edit.stored_bytes


def costs(edit: Edit, peak: Peak | None = None) -> dict[str, Any]:
    """Return what making an edit took, with its training losses if it was trained, as plain values."""
    peak = peak or Peak()
    cost = {**asdict(edit.cost), "bytes_on_disk": stored_bytes(edit), "peak_bytes": peak.bytes, "peak_kind": peak.kind}
    losses = _losses(edit)
    return {**cost, **({"losses": losses} if losses else {})}


def _losses(edit: Any) -> list[float]:
    """Return the training losses of an edit, or of the first part of it that was trained."""
    parts = [edit, getattr(edit, "edit", None), *getattr(edit, "edits", ())]
    return next((list(p.record["losses"]) for p in parts if "losses" in getattr(p, "record", ())), [])


def milliseconds_per_token(
    model: Any, tokenizer: Any, questions: Sequence[str], edit: Edit, *, new_tokens: int = 16
) -> float:
    """Return the time of greedy decoding per new token: the median over the questions, one at a time.

    The prompt's own time is in it, as longer prompts are what prompting costs.
    """
    device, seconds = input_device(model), []
    with edit.applied(model) as edited, inference(edited):
        # the first question warms up and is not counted
        for question in [questions[0], *questions]:
            ids = tokenizer(edit.prompt(question) or f"Q: {question}\nA:", return_tensors="pt").to(device)
            started = time.perf_counter()
            out = edited.generate(
                input_ids=ids["input_ids"],
                attention_mask=ids["attention_mask"],
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
            )
            out.cpu()  # waits for the device
            seconds.append(time.perf_counter() - started)
    return 1000 * sorted(seconds[1:])[len(questions) // 2] / new_tokens
