"""Working an edit into the weights: dequantise, merge, compare, write, reload, compare again."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.errors import BadValue
from trimtab.models.anatomy import base_of, input_device, text_config
from trimtab.models.calling import inference
from trimtab.peft.train.plan import has_tied_embeddings
from trimtab.storage import RECORD, versions, write_json, written_folder

if TYPE_CHECKING:
    from trimtab.peft.edit import TunedEdit

KIND = "merged model"
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest relative difference of logits, by the coarser of the two dtypes: rounding, not another model."""
INT8_TOLERANCE = 0.1
"""LLM.int8() rounds activations too, which plain weights do not."""


def merge(
    edit: TunedEdit,
    model: Any,
    *,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
    out: str | Path | None = None,
    tokenizer: Any = None,
) -> Any:
    """Return a new plain model that is the tuned one, with `record` of the comparison in `.trimtab_merge`.

    Weights in 4 or 8 bits are dequantised first, so that the update is not rounded to 4 bits. The tuned model's logits
    on probe prompts are compared with the merged model's, and those with what was written, once it is loaded again.
    Tied embeddings of which one is tuned are untied, in the config too.

    Args:
        dtype: of the merged weights; the model's own if not given.
        tolerance: largest relative difference of logits (norm of the difference over the norm); by dtype if not given.
        out: folder to write the model to, with the tokenizer if given.

    Raises:
        BadValue: the method cannot be merged, logits differ by more than the tolerance, or `tolerance` or `dtype`
            is none that logits can be compared by.
        Incompatible: the edit is for another model, or `out` holds something else.
    """
    if not edit.method.capabilities.mergeable:
        raise BadValue(f"{edit.name} cannot be merged: it is not a change of weights; use the edit as it is")
    base = base_of(model)
    dtype = dtype or base.dtype
    assert isinstance(dtype, torch.dtype)
    allowed = _allowed(tolerance, base, dtype)
    probes = probe_tokens(base)
    with edit.applied(model) as tuned:
        expected = _logits(tuned, probes)
    edit = edit if edit.strength == 1 else edit.baked()
    plain = dequantized(base, dtype, untied=_tunes_embeddings(edit, base))
    attached = edit.method.attach(plain, seed=edit.record.get("seed", 0))
    attached.load(edit.tensors)
    merged: Any = attached.merged().eval()
    error = relative_difference(_logits(merged, probes), expected)
    _require(error, allowed, "merging changed the model")
    merged.trimtab_merge = {"relative_logit_difference": error, "tolerance": allowed, "dtype": str(dtype)}
    if out is not None:
        _write(merged, tokenizer, Path(out), probes, allowed, edit.describe())
    return merged


def _allowed(tolerance: float | None, base: Any, dtype: torch.dtype) -> float:
    if dtype not in TOLERANCE:
        raise BadValue(f"cannot merge into {dtype}; choose {', '.join(map(str, TOLERANCE))}")
    if tolerance is not None:
        if not 0 <= tolerance < float("inf"):
            raise BadValue(f"tolerance is a share of the logits' norm, a number of 0 or more; got {tolerance}")
        return tolerance
    return max(TOLERANCE[dtype], TOLERANCE[base.dtype], INT8_TOLERANCE if _has_int8(base) else 0.0)


def dequantized(model: Any, dtype: torch.dtype, *, untied: bool = False) -> Any:
    """Return a copy of a model in plain weights of this dtype, whatever its own are held in."""
    base = base_of(model)
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if untied:
        config.tie_word_embeddings = False
    state = dict(_plain_weights(base, dtype))
    if untied:
        head = next(name for name, m in base.named_modules() if m is base.get_output_embeddings())
        state[f"{head}.weight"] = base.get_input_embeddings().weight.detach().to(dtype, copy=True)
    with _plain_dtype(dtype):
        made = type(base).from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    made.config.name_or_path = base.config.name_or_path
    made.generation_config = copy.deepcopy(base.generation_config)
    return made.to(input_device(base)).eval()


def _plain_weights(base: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    conv1d = _conv1d_names(base)
    for prefix, module in base.named_modules():
        for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if name in module._non_persistent_buffers_set:
                continue
            full = f"{prefix}.{name}" if prefix else name
            plain = _plain(module, name, value)
            # transformers loads Conv1D's weights into 4-bit Linear modules transposed
            plain = plain.t() if name == "weight" and prefix in conv1d else plain
            yield full, (plain.to(dtype) if plain.is_floating_point() else plain).contiguous().clone()


def _plain(module: Any, name: str, value: Any) -> Tensor:
    kind = type(value).__name__
    if kind == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(value.data, value.quant_state)
    if kind == "Int8Params" and name == "weight":
        scales = value.SCB if getattr(value, "SCB", None) is not None else module.state.SCB
        return value.data.float() * scales.float()[:, None] / 127
    return value.detach()


def _has_int8(base: Any) -> bool:
    return any(type(p).__name__ == "Int8Params" for p in base.parameters())


def _conv1d_names(base: Any) -> set[str]:
    """Return the modules that are quantised here and Conv1D in the plain model."""
    from transformers.pytorch_utils import Conv1D

    from trimtab.peft.methods.adapters import skeleton

    quantised = {n for n, m in base.named_modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")}
    if not quantised:
        return set()
    return {n for n, m in skeleton(base).named_modules() if n in quantised and isinstance(m, Conv1D)}


@contextlib.contextmanager
def _plain_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _tunes_embeddings(edit: TunedEdit, base: Any) -> bool:
    if edit.method.capabilities.family == "full" or not has_tied_embeddings(base):
        return False
    shared = (base.get_input_embeddings(), base.get_output_embeddings())
    names = [name for name, module in base.named_modules() if any(module is m for m in shared)]
    # PEFT ties the trained tokens of both itself
    keys = [key for key in edit.tensors if "trainable_tokens" not in key]
    return any(f".{name}." in f".{key}" for key in keys for name in names)


def probe_tokens(model: Any, *, n: int = 4, length: int = 24) -> Tensor:
    """Return random prompts, batch seq."""
    config = text_config(model)
    length = min(length, getattr(config, "max_position_embeddings", None) or length)
    return torch.randint(config.vocab_size, (n, length), generator=torch.Generator().manual_seed(0))


def _logits(model: Any, probes: Tensor) -> Float[Tensor, "batch seq vocab"]:
    with inference(model):
        return model(input_ids=probes.to(input_device(base_of(model))), use_cache=False).logits.float().cpu()


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Return the norm of the difference over the norm of `b`."""
    return float((a - b).norm() / b.norm())


def _require(error: float, allowed: float, what: str) -> None:
    if not error <= allowed:
        raise BadValue(
            f"{what}: its logits on probe prompts differ by {error:.2g} (relative), more than {allowed:.2g}; "
            "merge in float32, or give a larger tolerance if that is what you want"
        )


def _write(merged: Any, tokenizer: Any, out: Path, probes: Tensor, allowed: float, described: dict[str, Any]) -> None:
    from trimtab.models.load.checkpoints import load_model

    here = _logits(merged, probes)
    with written_folder(out, KIND) as folder:
        merged.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
            again = load_model(folder, dtype=merged.dtype, device=input_device(merged)).model
        else:
            again = type(merged).from_pretrained(folder, dtype=merged.dtype).to(input_device(merged)).eval()
        error = relative_difference(_logits(again, probes), here)
        _require(
            error, min(allowed, 1e-5 if merged.dtype == torch.float32 else allowed), "what was written is another model"
        )
        record = {"edit": described, **merged.trimtab_merge, "relative_difference_when_reloaded": error}
        write_json(folder / RECORD, {"kind": KIND, "versions": versions(), **record})
