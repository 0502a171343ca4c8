"""From results to plain values, and from two records of them to a list of differences."""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

RELATIVE, ABSOLUTE = 1e-5, 1e-7
TENSOR = "tensor"
MASKED = re.compile(
    r"^(seconds.*|.*_seconds|ms_per_token.*|.*ms_per_token|peak_.*|bytes.*|.*bytes.*|.*version.*|versions|machine|"
    r"started.*|finished_at|host.*|pid|python|platform|time.*|cost_seconds|wall.*|speed|elapsed.*|date|hours|when|"
    r"process|memory.*|loaded_from|_name_or_path|at|gpu|device_name|threads)$"
)
"""Keys whose values differ from run to run or from machine to machine."""
ROUNDING = {"difference", "relative", "relative_logit_difference", "relative_difference_when_reloaded"}
"""Keys that hold rounding errors: only that they are small is recorded."""


def summary(x):
    """Return what tells a tensor from another: sums, norm and 24 of its values, in float64."""
    flat = x.detach().cpu().double().flatten()
    weights = torch.cos(torch.arange(flat.numel(), dtype=torch.float64))
    every = max(1, flat.numel() // 16)
    return {
        TENSOR: list(x.shape),
        "dtype": str(x.dtype).removeprefix("torch."),
        "largest": float(flat.abs().max()) if flat.numel() else 0.0,
        "total": float(flat.abs().sum()),
        "sum": float(flat.sum()),
        "mixed": float((flat * weights).sum()),
        "norm": float(flat.norm()),
        "first": flat[:8].tolist(),
        "spaced": flat[::every][:16].tolist(),
    }


def plain(value, places=()):
    """Return a value as JSON holds it; times, paths and versions are masked."""
    if isinstance(value, torch.Tensor):
        return summary(value) if value.ndim else plain(value.item())
    if isinstance(value, np.ndarray):
        return summary(torch.from_numpy(np.ascontiguousarray(value)))
    if isinstance(value, Mapping):
        return {str(k): _entry(str(k), v, places) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict(), places)
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v, places) for v in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if hasattr(value, "low") and hasattr(value, "high") and isinstance(value, float):
        return {"mean": float(value), "low": value.low, "high": value.high, "n": value.n}
    if isinstance(value, bool | int | None):
        return value
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, places)
    return masked(str(value), places)


def _entry(key, value, places):
    if MASKED.match(key):
        return "<masked>"
    if key in ROUNDING and isinstance(value, float):
        return "small" if abs(value) < 1e-3 else float(value)
    return plain(value, places)


def masked(text, places=()):
    """Return a text without paths and times."""
    for place, name in places:
        text = text.replace(str(place), name)
    text = re.sub(r"/tmp/[\w./-]+", "<tmp>", text)
    text = re.sub(r"\b\d+\.\d+e-\d+\b", "<tiny>", text)
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return re.sub(r"\b\d+(\.\d+)? ?(s|ms|seconds|minutes|hours|MB|GB|min)\b", r"<n> \2", text)


def differences(old, new, path=""):
    """Yield (path, old, new) for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        if TENSOR in old and TENSOR in new:
            yield from _of_tensors(old, new, path)
            return
        for key in dict.fromkeys((*old, *new)):
            yield from differences(old.get(key, "<none>"), new.get(key, "<none>"), f"{path}/{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, f"{path}/{i}")
    elif _is_number(old) and _is_number(new):
        if abs(old - new) > RELATIVE * max(abs(old), abs(new)) + ABSOLUTE:
            yield path, old, new
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield path, old, new


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of_tensors(old, new, path):
    if (old[TENSOR], old["dtype"]) != (new[TENSOR], new["dtype"]):
        yield path, f"{old['dtype']} {old[TENSOR]}", f"{new['dtype']} {new[TENSOR]}"
        return
    scale = RELATIVE * max(old["largest"], new["largest"]) + 1e-12
    total = RELATIVE * max(old["total"], new["total"]) + 1e-12
    found = [k for k in ("sum", "mixed", "total", "norm") if abs(old[k] - new[k]) > total]
    found += [k for k in ("largest",) if abs(old[k] - new[k]) > scale]
    for key in ("first", "spaced"):
        if any(abs(a - b) > scale for a, b in zip(old[key], new[key], strict=True)):
            found.append(key)
    if found:
        shown = found[-1]
        yield f"{path} ({', '.join(found)})", old[shown], new[shown]


def shown(value):
    """Return a value for one line of the comparison."""
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:150]}... ({len(text)})"


def first_difference(old, new):
    """Return both texts around the place where they part, if they are long texts."""
    if not (isinstance(old, str) and isinstance(new, str)) or max(len(old), len(new)) < 160:
        return old, new
    at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    start = max(0, at - 40)
    return f"...{old[start : at + 80]}", f"...{new[start : at + 80]}"


def written_json(path: Path):
    """Return the intended differences of a file: {key prefix: reason}."""
    import json

    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
