"""bake: a shift as biases of a standard Hugging Face checkpoint, checked against the live shift."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trimtab.datasets.folklore import folklore
from trimtab.datasets.prose import neutral_texts
from trimtab.edits.combined import NoEdit
from trimtab.errors import BadValue, Incompatible, UnsupportedModel
from trimtab.models.anatomy import base_of, input_device
from trimtab.models.calling import inference
from trimtab.models.carriers import with_biases
from trimtab.models.identity import fingerprint
from trimtab.models.tokens import context_length, encode
from trimtab.protocols import Edit, Positions, TokenMask
from trimtab.storage import RECORD, check_writable, versions, write_json, written_folder

KIND = "baked model"
MAX_TOKENS = 64


@dataclass(frozen=True)
class Baked:
    """What a baked checkpoint does, measured by loading it with plain transformers."""

    architecture: str
    """The stock class it loads as."""
    difference: float
    """Largest difference of its logits from the live shift's at all positions."""
    relative: float
    """Root mean square of that difference, over that of the shift's effect on the logits."""
    kl_generated: float
    """KL(unedited || shift where an answer is predicted) of the next token after a prompt, in nats."""
    kl_all: float
    """KL(unedited || shift at all positions) there: what the baked model does."""
    kl_between: float
    """KL(shift where an answer is predicted || shift at all positions) there."""
    same_token: float
    """Share of prompts whose likeliest next token is the same at both."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def bake(
    model: Any,
    tokenizer: Any,
    shift: Edit,
    out: str | Path,
    *,
    tolerance: float | None = None,
    prompts: Sequence[str] | None = None,
) -> Baked:
    """Write a checkpoint that behaves as the shift does at all positions, and return how well it does.

    A shift of heads becomes a bias after each output projection, W_O times the shift (Li et al. 2023, section 3.2);
    a residual shift one after the layer's last projection. Quantised weights are dequantised. The checkpoint is
    loaded again with plain transformers and compared with the live shift, on texts and prompts, before it is kept.

    Args:
        out: folder to write; it may hold an earlier baked model.
        tolerance: the largest `relative` that is accepted; 1e-3, or 0.1 for weights of 16 bits, if not given.
        prompts: where the effects of positions are compared; questions of the shipped set if not given.

    Raises:
        UnsupportedModel: no stock class can carry the bias; the model carries adapters.
        Incompatible: the shift is another model's; the checkpoint does not do what the live shift does; the folder
            holds something else, or the disk is full.
        BadValue: the shift changes nothing.
    """
    check_writable(out, KIND)
    if getattr(model, "peft_config", None):
        raise UnsupportedModel("this model carries adapters: merge them (trimtab merge), then bake the shift")
    plain = _dequantized(base_of(model))
    if tolerance is None:
        tolerance = 0.1 if plain.dtype in (torch.float16, torch.bfloat16) else 1e-3
    prompts = [f"Q: {q.question}\nA:" for q in folklore()[:32]] if prompts is None else list(prompts)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was made with (dtype|(no )?quantization)")
        biases = shift.constants(plain)
        if not biases:
            raise BadValue(f"the shift {shift.name!r} has strength {shift.strength}: there is nothing to bake")
        with written_folder(out, KIND) as folder:
            with_biases(plain, biases).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            baked = _compared(plain, tokenizer, shift, folder, prompts)
            _require_close(baked, tolerance, plain)
            record = {"kind": KIND, "shift": shift.describe(), "model": fingerprint(model), **baked.as_dict()}
            write_json(folder / RECORD, {**record, "tolerance": tolerance, "versions": versions()})
    return baked


def _dequantized(model: Any) -> Any:
    if getattr(model, "is_quantized", False):
        # the caller's model stays as it is
        return copy.deepcopy(model).dequantize().eval()
    return model


def _compared(plain: Any, tokenizer: Any, shift: Edit, folder: Path, prompts: Sequence[str]) -> Baked:
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=plain.dtype, local_files_only=True)
    loaded = loaded.to(input_device(plain)).eval()
    limit = min(MAX_TOKENS, context_length(plain) or MAX_TOKENS)
    largest, squares, effect = 0.0, 0.0, 0.0
    kls = []
    for text in [*neutral_texts(8), *prompts]:
        ids = torch.tensor([encode(tokenizer, text)[:limit]], device=input_device(plain))
        unedited, everywhere = (_logits(plain, ids, edit, "all") for edit in (NoEdit(), shift))
        gap = _logits(loaded, ids, NoEdit(), "all") - everywhere
        largest = max(largest, float(gap.abs().max()))
        squares, effect = squares + float(gap.square().mean()), effect + float((everywhere - unedited).square().mean())
        if text in prompts:
            kls.append(_at_the_end(plain, ids, shift, unedited, everywhere))
    kl_generated, kl_all, kl_between, same = torch.tensor(kls).double().mean(0).tolist() if kls else (0.0,) * 4
    relative = (squares / effect) ** 0.5 if effect else float("inf")
    return Baked(type(loaded).__name__, largest, relative, kl_generated, kl_all, kl_between, same)


def _at_the_end(plain: Any, ids: Tensor, shift: Edit, unedited: Tensor, everywhere: Tensor) -> tuple[float, ...]:
    last = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
    last[:, -1] = True
    here = _logits(plain, ids, shift, TokenMask(last))[0, -1].log_softmax(-1)
    before, whole = (x[0, -1].log_softmax(-1) for x in (unedited, everywhere))

    def kl(p: Tensor, q: Tensor) -> float:
        return float((p.exp() * (p - q)).sum())

    return kl(before, here), kl(before, whole), kl(here, whole), float(here.argmax() == whole.argmax())


def _logits(model: Any, ids: Tensor, edit: Edit, positions: Positions) -> Float[Tensor, "batch seq vocab"]:
    with edit.applied(model, positions) as edited, inference(edited):
        logits = edited(input_ids=ids, use_cache=False).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).cpu()


def _require_close(baked: Baked, tolerance: float, model: Any) -> None:
    if not baked.relative <= tolerance:
        raise Incompatible(
            f"the baked {baked.architecture} does not do what the shift does live: its logits differ by "
            f"{baked.relative:.2g} of the shift's effect (largest difference {baked.difference:.3g}, tolerance "
            f"{tolerance:g}, {str(model.dtype).removeprefix('torch.')} weights); nothing was written"
        )
