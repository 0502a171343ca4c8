"""checkpoint: a model with an edit worked in, as a standard Hugging Face checkpoint, compared before it is kept."""

from __future__ import annotations

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
from trimtab.engine.generate import Decoding, new_tokens
from trimtab.errors import BadValue, Incompatible, UnsupportedModel, first_line
from trimtab.models.anatomy import base_of, input_device
from trimtab.models.calling import inference
from trimtab.models.identity import fingerprint
from trimtab.models.plain import dequantized
from trimtab.models.saving import save_model
from trimtab.models.tokens import Batch, context_length, encode
from trimtab.noise import without_bars_in_pipes
from trimtab.progress import tracked
from trimtab.protocols import Edit, Positions, TokenMask
from trimtab.storage import RECORD, check_writable, versions, write_json, written_folder

KIND = "merged model"
MAX_TOKENS = 64
CONTINUED = 4
"""Prompts that are continued, and by so many times four tokens."""
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.2}
"""The largest accepted `relative`, by the dtype of the weights: rounding, not another model."""
REWRITTEN = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Largest relative difference of logits between two copies of the same weights."""
DEQUANTISED = 0.1
"""The same between quantised weights and plain ones; LLM.int8() rounds activations too."""


TOKENISED = "Où est-ce? 你好 1,234\n\n\tdef f(x):  # 🙂"
"""A text that tokenizers with other rules cut otherwise."""


@dataclass(frozen=True)
class Exported:
    """What a checkpoint does, measured by loading it with plain transformers and running it in float32."""

    architecture: str
    """The stock class it loads as."""
    dtype: str
    """Of its weights."""
    difference: float
    """Largest difference of its logits from the live edit's at all positions."""
    relative: float
    """Root mean square of that difference, over that of the edit's effect on the logits."""
    tolerance: float
    """The largest `relative` that was accepted."""
    kl_generated: float
    """KL(unedited || edit where an answer is predicted) of the next token after a prompt, in nats."""
    kl_all: float
    """KL(unedited || edit at all positions) there: what the checkpoint does."""
    kl_between: float
    """KL(edit where an answer is predicted || edit at all positions) there."""
    same_token: float
    """Share of prompts whose likeliest next token is the same at both."""
    same_continuation: float
    """Share of a few prompts that the checkpoint continues greedily as the live edit does at all positions."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def checkpoint(
    model: Any,
    tokenizer: Any,
    edit: Edit,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
    prompts: Sequence[str] | None = None,
) -> Exported:
    """Write a checkpoint that behaves as the edit does at all positions, and return how well it does.

    A shift becomes biases (Li et al. 2023, section 3.2), a tuned edit a change of weights, a stack both
    (`edit.merged`). Quantised weights are dequantised first. The checkpoint is loaded again with plain transformers and
    compared with the live edit before it is kept: logits, generation defaults, special tokens and chat template.

    Args:
        out: folder to write; it may hold an earlier merged model.
        dtype: of the weights; the model's own if not given.
        tolerance: the largest `relative` that is accepted; by dtype if not given.
        prompts: where the effects of positions are compared; questions of the shipped set if not given.

    Raises:
        UnsupportedModel: no stock class can carry the edit; the model carries adapters.
        Incompatible: the edit is another model's; the checkpoint does not do what the live edit does (16-bit weights
            round small updates away); the folder holds something else, or the disk is full.
        BadValue: the edit changes nothing, or cannot be worked into weights; a dtype or tolerance that cannot be.
    """
    check_writable(out, KIND)
    if getattr(model, "peft_config", None):
        raise UnsupportedModel("this model carries adapters: give them as an edit (trimtab.peft.TunedEdit.load)")
    base = base_of(model)
    wanted: torch.dtype = dtype or base.dtype
    allowed = _allowed(wanted, tolerance)
    prompts = [f"Q: {q.question}\nA:" for q in folklore()[:32]] if prompts is None else list(prompts)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was made with (dtype|(no )?quantization)")
        with edit.applied(model, "all"):
            pass  # refuses another model's edit before any work
        exact = dequantized(base, _wide(base.dtype))
        merged = dequantized(edit.merged(exact), wanted)
        probes = _tokens(tokenizer, exact, [*prompts, *neutral_texts(8)])
        if getattr(base, "is_quantized", False):
            _require_same(base, exact, probes[0], DEQUANTISED, "dequantising changed the model")
        rounded = exact if wanted == base.dtype else dequantized(dequantized(exact, wanted), _wide(wanted))
        live = _Live.of(exact, rounded, tokenizer, edit, probes, len(prompts))
        del exact, rounded
        if not live.effect:
            raise BadValue(f"{edit.name!r} (strength {edit.strength}) changes nothing: there is nothing to merge")
        with written_folder(out, KIND) as folder:
            try:
                save_model(merged, tokenizer, folder)
            except ValueError as cause:  # generation defaults that contradict each other
                raise Incompatible(f"transformers cannot save the model: {first_line(cause)}") from cause
            loaded = _loaded(folder, merged, wanted)
            alike = max(REWRITTEN[wanted], REWRITTEN.get(base.dtype, 0))  # rotary frequencies may be rounded as well
            _require_same(merged, loaded, probes[0], alike, "what was written is another model")
            _require_kept(merged, loaded, tokenizer, folder)
            _require_continued(merged, loaded, tokenizer, probes[: min(CONTINUED, len(prompts))], alike)
            found = live.compared(loaded, tokenizer, wanted, allowed)
            _require_close(found)
            record = {"kind": KIND, "edit": edit.describe(), "model": fingerprint(model), **found.as_dict()}
            write_json(folder / RECORD, {**record, "versions": versions()})
    return found


def _allowed(dtype: torch.dtype, tolerance: float | None) -> float:
    if dtype not in TOLERANCE:
        raise BadValue(f"cannot merge into {dtype}; choose {', '.join(map(str, TOLERANCE))}")
    if tolerance is None:
        return TOLERANCE[dtype]
    if not 0 <= tolerance < float("inf"):
        raise BadValue(f"tolerance is a share of the edit's effect, a number of 0 or more; got {tolerance}")
    return tolerance


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _tokens(tokenizer: Any, model: Any, texts: Sequence[str]) -> list[Tensor]:
    limit = min(MAX_TOKENS, context_length(model) or MAX_TOKENS)
    return [torch.tensor([encode(tokenizer, text)[:limit]], device=input_device(model)) for text in texts]


@dataclass(frozen=True)
class _Live:
    """What the live edit does to the exact model at all positions."""

    probes: Sequence[Tensor]
    logits: list[Tensor]
    """The live edit's, but for what rounding the unedited weights changes."""
    effect: float
    """Mean square of what the edit changes in the logits."""
    at_the_end: list[float]
    """The means of `_at_the_end` over prompts."""
    continued: list[list[int]]

    @classmethod
    def of(
        cls, exact: Any, rounded: Any, tokenizer: Any, edit: Edit, probes: Sequence[Tensor], n_prompts: int
    ) -> _Live:
        """Return it for probes of which the first are prompts; `rounded`: the unedited model as it could be written."""
        kept, squares, ends = [], 0.0, []
        for i, ids in enumerate(tracked(probes, "reading the live edit")):
            unedited, everywhere = (_logits(exact, ids, e) for e in (NoEdit(), edit))
            squares += float((everywhere - unedited).square().mean())
            kept.append(everywhere if rounded is exact else everywhere - unedited + _logits(rounded, ids))
            if i < n_prompts:
                ends.append(_at_the_end(exact, ids, edit, unedited, everywhere))
        means = torch.tensor(ends or [(0.0,) * 4]).double().mean(0).tolist()
        with edit.applied(exact, "all") as edited:
            continued = [_continued(edited, tokenizer, ids) for ids in probes[:CONTINUED]]
        return cls(probes, kept, squares, means, continued)

    def compared(self, loaded: Any, tokenizer: Any, dtype: torch.dtype, allowed: float) -> Exported:
        """Return what a loaded checkpoint does beside it."""
        exact = dequantized(loaded, _wide(dtype))
        both = tracked(list(zip(self.probes, self.logits, strict=True)), "comparing what was written")
        gaps = [_logits(exact, ids) - live for ids, live in both]
        same = [
            _continued(exact, tokenizer, ids) == live for ids, live in zip(self.probes, self.continued, strict=False)
        ]
        kl_generated, kl_all, kl_between, same_token = self.at_the_end
        return Exported(
            architecture=type(loaded).__name__,
            dtype=str(dtype).removeprefix("torch."),
            difference=max(float(gap.abs().max()) for gap in gaps),
            relative=(sum(float(gap.square().mean()) for gap in gaps) / self.effect) ** 0.5,
            tolerance=allowed,
            kl_generated=kl_generated,
            kl_all=kl_all,
            kl_between=kl_between,
            same_token=same_token,
            same_continuation=sum(same) / len(same),
        )


def _logits(model: Any, ids: Tensor, edit: Edit | None = None, positions: Positions = "all") -> Float[Tensor, "1 s v"]:
    with (edit or NoEdit()).applied(model, positions) as edited, inference(edited):
        logits = edited(input_ids=ids, use_cache=False).logits
    return logits.to(_wide(logits.dtype)).cpu()


def _at_the_end(exact: Any, ids: Tensor, edit: Edit, unedited: Tensor, everywhere: Tensor) -> tuple[float, ...]:
    last = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
    last[:, -1] = True
    here = _logits(exact, ids, edit, TokenMask(last))[0, -1].log_softmax(-1)
    before, after = (x[0, -1].log_softmax(-1) for x in (unedited, everywhere))

    def kl(p: Tensor, q: Tensor) -> float:
        return float((p.exp() * (p - q)).sum())

    return kl(before, here), kl(before, after), kl(here, after), float(here.argmax() == after.argmax())


def _continued(model: Any, tokenizer: Any, ids: Tensor) -> list[int]:
    """Return what greedy decoding adds to a prompt, up to an end token."""
    with inference(model):
        return new_tokens(model, tokenizer, Batch([0], ids, torch.ones_like(ids)), Decoding(4 * CONTINUED))[0].tolist()


def _loaded(folder: Path, merged: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    with without_bars_in_pipes():
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return loaded.to(input_device(merged)).eval()


def _require_kept(merged: Any, loaded: Any, tokenizer: Any, folder: Path) -> None:
    """Raise `Incompatible` unless what hangs on model and tokenizer was written with them."""
    from transformers import AutoConfig, AutoTokenizer

    again: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for what, before, after in (
        ("generation defaults", _defaults(merged), _defaults(loaded)),
        ("special tokens", tokenizer.special_tokens_map, again.special_tokens_map),
        ("chat template", tokenizer.chat_template, again.chat_template),
        ("dtype in its config", merged.dtype, AutoConfig.from_pretrained(folder, local_files_only=True).dtype),
        ("tokens of a text", *(one(TOKENISED)["input_ids"] for one in (tokenizer, again))),
    ):
        if before != after:
            raise Incompatible(f"what was written has other {what}: {before} became {after}; nothing was written")


def _defaults(model: Any) -> dict[str, Any]:
    of_writing = ("transformers_version", "_from_model_config")
    return {k: v for k, v in model.generation_config.to_dict().items() if k not in of_writing}


def _require_same(one: Any, other: Any, ids: Tensor, allowed: float, otherwise: str) -> None:
    before, after = _logits(one, ids), _logits(other, ids)
    error = float((after - before).norm() / before.norm())
    if not error <= allowed:
        raise Incompatible(f"{otherwise}: its logits differ by {error:.2g} (relative), more than {allowed:.2g}")


def _require_continued(merged: Any, loaded: Any, tokenizer: Any, probes: Sequence[Tensor], allowed: float) -> None:
    """Raise `Incompatible` unless both continue prompts alike, but for tokens that rounding may exchange."""
    for ids in probes:
        one, other = ([*_continued(model, tokenizer, ids), None] for model in (merged, loaded))
        at = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
        if at is None:
            continue
        said = torch.tensor([one[:at]], device=ids.device, dtype=ids.dtype)
        likely = _logits(merged, torch.cat([ids, said], 1))[0, -1].topk(2).values
        if None in (one[at], other[at]) or float(likely[0] - likely[1]) > allowed * float(likely.norm()):
            raise Incompatible("what was written continues a prompt otherwise; nothing was written")


def _require_close(found: Exported) -> None:
    if not found.relative <= found.tolerance:
        advice = "" if found.dtype in ("float32", "float64") else "merge into float32 (dtype), "
        raise Incompatible(
            f"the merged {found.architecture} does not do what the edit does live: its logits differ by "
            f"{found.relative:.2g} of the edit's effect (largest difference {found.difference:.3g}, tolerance "
            f"{found.tolerance:g}, {found.dtype} weights); nothing was written: {advice}or give a larger tolerance"
        )
