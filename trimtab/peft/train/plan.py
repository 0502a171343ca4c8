"""The plan of a tuning run, shown before its first step."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from trimtab.models.anatomy import base_of, has_tied_embeddings, input_width
from trimtab.models.calling import logits_limit
from trimtab.models.processes import rank_and_count
from trimtab.peft.parts.attached import Attached
from trimtab.peft.train.examples import Batches, bucketed, forward_size
from trimtab.peft.train.memory import MemoryEstimate, require_memory
from trimtab.peft.train.sharding import Sharding
from trimtab.peft.tunable import Tunable


@dataclass(frozen=True)
class TuningPlan:
    """What will be trained on what, and what it will take."""

    method: str
    parts: dict[str, int]
    """Trainable tensors by name, layer numbers written as `*`, with how many there are."""
    coverage: dict[str, tuple[int, int]]
    """For each kind of linear module in the model: how many the method touches, and how many there are."""
    n_trainable: int
    n_total: int
    """Numbers in the model without the method's parts."""
    bytes_on_disk: int
    dtypes: tuple[str, str]
    """Of the model and of the trained parts."""
    tied_embeddings: bool
    packing: bool
    steps: int
    memory: MemoryEstimate
    n_examples: int
    n_tokens: int
    n_labelled: int
    example: str
    """The first example as text, its learned part between ⟦ and ⟧."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the record."""
        return asdict(self) | {"estimated_peak_bytes": self.memory.total}

    def to_text(self) -> str:
        """Return the plan for a terminal."""
        touched = {kind: pair for kind, pair in self.coverage.items() if pair[0]}
        shown = ", ".join(f"{kind} {n}/{total}" for kind, (n, total) in touched.items()) or ", ".join(
            f"{name} x{n}" for name, n in list(self.parts.items())[:6]
        )
        rounded = ", stepped on in float32 and rounded; a float32 model learns more of a short run"
        copies = rounded if "float16" in self.dtypes[1] else ""
        where = " in each process, beside the model it was given" if self.memory.sharded else ""
        lines = [
            ("method", self.method),
            ("modules", shown),
            ("trainable", f"{self.n_trainable:,} of {self.n_total:,} ({100 * self.n_trainable / self.n_total:.3f} %)"),
            ("on disk", _size(self.bytes_on_disk)),
            ("dtype", f"model {self.dtypes[0]}, trained parts {self.dtypes[1]}{copies}"),
            ("memory", f"about {_size(self.memory.total)}{where}: {_by_holder(self.memory)}"),
            ("data", f"{self.n_examples} examples, {self.n_tokens:,} tokens, {self.n_labelled:,} of them learned; "
             f"{self.steps} steps{', packed' if self.packing else ''}"),
            ("example", self.example.replace("\n", "\\n")),
        ]  # fmt: skip
        if self.tied_embeddings:
            lines.insert(5, ("ties", "input and output embeddings are one tensor"))
        return "\n".join(f"{name:>10}  {text}" for name, text in lines)


def make_plan(
    method: Tunable,
    attached: Attached,
    tokenizer: Any,
    batches: Batches,
    *,
    steps: int,
    sharding: Sharding | None = None,
) -> TuningPlan:
    """Return the plan. Raises `BadValue` if the estimated memory is not there."""
    base, recipe, data = base_of(attached.model), method.recipe, batches.data
    first = data.encoded[0]
    trainable = attached.trainable()
    trained = attached.trained()
    stored = attached.tensors()
    added = {id(p) for p in trainable.values()}
    lengths = [len(e.ids) for e in data.encoded]
    order = bucketed(lengths, recipe.batch_size * rank_and_count()[1], seed=batches.seed)
    rows = recipe.micro_batch or recipe.batch_size
    length, columns = forward_size(data, batches.collator, order, rows)
    if not logits_limit(base, 1):
        columns = length
    memory = require_memory(base, trained, recipe, length=length, columns=columns, sharding=sharding)
    family_full = method.capabilities.family == "full"
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in trainable.values()})
    return TuningPlan(
        method=method.name,
        parts=dict(Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in trainable)),
        coverage=_coverage(base, trainable),
        n_trainable=trained.n,
        n_total=sum(_numel(p) for p in base.parameters() if family_full or id(p) not in added),
        bytes_on_disk=sum(t.numel() * t.element_size() for t in stored.values()),
        dtypes=(str(base.dtype).removeprefix("torch."), ", ".join(dtypes)),
        tied_embeddings=has_tied_embeddings(base),
        packing=batches.collator.packing,
        steps=steps,
        memory=memory,
        n_examples=len(data),
        n_tokens=sum(lengths),
        n_labelled=sum(e.n_labelled for e in data.encoded),
        example=f"{tokenizer.decode(first.ids[: first.start])}⟦{tokenizer.decode(first.ids[first.start :])}⟧",
    )


def _numel(parameter: Any) -> int:
    # two 4-bit numbers share a byte
    return parameter.numel() * 2 if type(parameter).__name__ == "Params4bit" else parameter.numel()


def _coverage(base: Any, trainable: dict[str, Any]) -> dict[str, tuple[int, int]]:
    owners = {id(p) for p in trainable.values()}
    touched, there = Counter[str](), Counter[str]()
    head = base.get_output_embeddings()
    for name, module in base.named_modules():
        nested = ".base_layer" in name or ".lora_" in name
        if module is head or nested or input_width(module) is None:
            continue
        kind = name.rsplit(".", 1)[-1]
        there[kind] += 1
        touched[kind] += any(id(p) in owners for p in module.parameters())
    return {kind: (touched[kind], n) for kind, n in there.items()}


def _by_holder(memory: MemoryEstimate) -> str:
    flags = ("on_cpu", "sharded")
    held = {k: v for k, v in asdict(memory).items() if k not in flags and (v or k not in ("untuned", "step"))}
    apart = "" if memory.on_cpu or not memory.untuned else " (in the CPU's memory, not counted)"
    return ", ".join(f"{k} {_size(v)}{apart if k == 'untuned' else ''}" for k, v in held.items())


def _size(n: int) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.2f} MB" if n >= 1e5 else f"{n / 1e3:.1f} kB"
