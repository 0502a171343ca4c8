"""Texts by beam search, for the tasks whose published rows were made with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.errors import BadDataset, BadValue
from trimtab.models.anatomy import input_device
from trimtab.models.calling import inference
from trimtab.models.tokens import context_length, length_batches, pad_id, require_left_padding
from trimtab.progress import tracked
from trimtab.protocols import Edit


@dataclass(frozen=True)
class BeamSettings:
    """Beam search as the LoRA repository decodes E2E (Hu et al. 2021; examples/NLG of its code)."""

    beams: int = 10
    length_penalty: float | int = 0.8
    no_repeat_ngram: int = 4
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if self.beams < 1 or self.max_new_tokens < 1:
            raise BadValue(f"beams and max_new_tokens must be 1 or more, got {self.beams} and {self.max_new_tokens}")


def beam_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    edit: Edit,
    *,
    settings: BeamSettings | None = None,
    batch_size: int = 8,
) -> list[str]:
    """Return the edited model's best continuation of every prompt, up to its first line break.

    Raises:
        BadDataset: there are no prompts.
        BadValue: a prompt and its continuation do not fit the model's context.
        Incompatible: as `completions`.
    """
    if not prompts:
        raise BadDataset("no prompts to continue")
    require_left_padding(model)
    settings = settings or BeamSettings()
    ids, pad = [tokenizer(prompt)["input_ids"] for prompt in prompts], pad_id(tokenizer)
    context, longest = context_length(model), max(map(len, ids))
    if context is not None and longest + settings.max_new_tokens > context:
        raise BadValue(
            f"a prompt of {longest} tokens and {settings.max_new_tokens} new ones do not fit the model's context of "
            f"{context}; ask for fewer tokens"
        )
    batches = list(length_batches(ids, batch_size=batch_size, pad=pad, device=input_device(model), side="left"))
    texts = [""] * len(prompts)
    with edit.applied(model) as edited, inference(edited):
        for batch in tracked(batches, "beam search"):
            out = edited.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=settings.max_new_tokens,
                num_beams=settings.beams,
                length_penalty=float(settings.length_penalty),
                no_repeat_ngram_size=settings.no_repeat_ngram,
                early_stopping=False,
                use_cache=True,
                do_sample=False,
                repetition_penalty=1.0,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=pad,
            )
            new = tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
            for place, text in zip(batch.indices, new, strict=True):
                texts[place] = text.strip().split("\n")[0].strip()
    return texts
