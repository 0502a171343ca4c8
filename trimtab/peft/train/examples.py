"""From questions to token sequences with the part to learn marked by position, and from those to batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers.trainer_pt_utils import get_length_grouped_indices

from trimtab.datasets.facts import FactSet
from trimtab.datasets.pairs import PairSet
from trimtab.datasets.prose import prose
from trimtab.datasets.questions import QuestionSet
from trimtab.datasets.statements import SftExample
from trimtab.errors import BadDataset, BadValue
from trimtab.models.tokens import AnswerTokens, context_length, tokenize_answers
from trimtab.peft.recipe import Recipe
from trimtab.plain_values import hash_of

IGNORED = -100
"""The label of a position that nothing is learned at."""
FORWARDS_LOOKED_AT = 64


@dataclass(frozen=True)
class Encoded:
    """One example as tokens."""

    ids: list[int]
    start: int
    """The first token to learn; all from it on are learned, the end token included."""
    sign: int = 1
    """1: to be made likelier; -1: less likely."""

    @property
    def n_labelled(self) -> int:
        """Tokens that are learned."""
        return len(self.ids) - self.start


class Examples(Dataset):
    """Encoded examples as the Trainer wants them; `input_ids` is what it reads lengths from."""

    def __init__(self, encoded: Sequence[Encoded]) -> None:
        self.encoded = tuple(encoded)

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one example: its tokens, where learning starts, and its sign."""
        example = self.encoded[index]
        return {"input_ids": example.ids, "start": example.start, "sign": example.sign}

    @property
    def fingerprint(self) -> str:
        """A hash of all tokens and spans, for records and for resuming."""
        rows = [[e.ids, e.start, e.sign] for e in self.encoded]
        return hash_of(rows)[:16]


def encode_examples(
    model: Any, tokenizer: Any, train: QuestionSet | PairSet | FactSet | Sequence[SftExample], recipe: Recipe
) -> Examples:
    """Return the training examples as tokens.

    Questions and pairs are asked in the model's chat template where it has one (`ItemSet.asked_as` says otherwise). The
    completion and the end token after it (in a template: what ends the turn) are learned, by position: a pad token that
    is the end token too hides nothing. With `objective="true_and_false"` the false answers come with sign -1, and as
    many plain texts as there are questions are mixed in, learned whole.

    Raises:
        BadDataset: no examples; one without a token to learn, or longer than fits, by its place and text.
    """
    if isinstance(train, QuestionSet | PairSet | FactSet):
        asked = train.asked_as("auto", tokenizer)
        signed = [(e, 1) for e in asked.sft_examples()]
        if recipe.objective == "true_and_false":
            signed += [(s.example, -1) for s in asked.statements() if not s.label]
    else:
        if recipe.objective != "true":
            raise BadValue(f"objective {recipe.objective!r} needs questions with false answers; give a QuestionSet")
        signed = [(e, 1) for e in train]
    if not signed:
        raise BadDataset("no examples to tune on; give at least one question or (prompt, completion) pair")
    limit = recipe.max_length or context_length(model)
    tokens = _tokenised(tokenizer, [example for example, _ in signed])
    rows = [
        _encoded(tokenizer, *one, own, f"example {i + 1}", limit)
        for i, (one, own) in enumerate(zip(signed, tokens, strict=True))
    ]
    if recipe.objective == "true_and_false":
        rows += [Encoded(tokenizer(prose(i))["input_ids"][:limit], 1) for i in range(len(train))]
    return Examples(rows)


def _tokenised(tokenizer: Any, examples: Sequence[SftExample]) -> Sequence[AnswerTokens | BadValue]:
    """Return each example's tokens, or why it has none to learn; all at once, which a fast tokenizer does on all cores.

    Where one of them has none, one by one.
    """
    try:
        return tokenize_answers(
            tokenizer,
            [e.prompt + e.completion for e in examples],
            [len(e.prompt) for e in examples],
            templates=[e.template for e in examples],
        )
    except BadValue as why:
        return [why] if len(examples) == 1 else [_tokenised(tokenizer, [example])[0] for example in examples]


def _encoded(
    tokenizer: Any, example: SftExample, sign: int, tokens: AnswerTokens | BadValue, where: str, limit: int | None
) -> Encoded:
    shown = f"{where} ({example.prompt[-40:]!r} -> {example.completion[:40]!r})"
    if not example.completion.strip():
        raise BadDataset(f"{shown} has no token to learn: its completion is empty; give it one or leave the row out")
    if isinstance(tokens, BadValue):
        raise BadDataset(f"{shown} has no token to learn: {tokens}") from tokens
    ids, end = tokens.ids[: tokens.end], tokenizer.eos_token_id
    turn_ends = example.template and ids[-1] in tokenizer.added_tokens_decoder
    if end is not None and ids[-1] != end and not turn_ends:
        ids = [*ids, end]
    if limit is not None and len(ids) > limit:
        raise BadDataset(f"{shown} has {len(ids)} tokens, more than the {limit} that fit; shorten it or leave it out")
    return Encoded(ids, tokens.start, sign)


@dataclass(frozen=True)
class Collator:
    """Makes a batch of examples: padded on the right, or several to a row where that is exact.

    Never on the left: there the padding's own queries attend to nothing, and fused attention kernels on a GPU give such
    rows gradients that are not numbers.

    Gives `input_ids`, `position_ids`, `attention_mask` (unless packed), `labels` (the token that each position is to
    predict; -100 for none), `sign` of each label if some are to become less likely, `columns` (the positions at which
    some row has a label), `dense` (whether every row has one at each of them), and the numbers of tokens and examples.
    """

    pad: int
    packing: bool

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch."""
        rows = (
            first_fit([len(e["input_ids"]) for e in examples]) if self.packing else [[i] for i in range(len(examples))]
        )
        width = max(sum(len(examples[i]["input_ids"]) for i in row) for row in rows)
        batch: dict[str, Any] = {
            "input_ids": torch.full((len(rows), width), self.pad),
            "position_ids": torch.zeros(len(rows), width, dtype=torch.long),
            "labels": torch.full((len(rows), width), IGNORED),
            "sign": torch.zeros(len(rows), width),
        }
        padding = torch.zeros(len(rows), width, dtype=torch.long)
        for n, row in enumerate(rows):
            place = 0
            for i in row:
                place = self._put(batch, n, place, examples[i])
                padding[n, place - len(examples[i]["input_ids"]) : place] = 1
            batch["position_ids"][n, place:] = torch.arange(width - place)
        columns = (batch["labels"] != IGNORED).any(0).nonzero()[:, 0]
        # older and newer Trainers count what is learned under one name or the other
        counts = {"n_tokens": sum(len(e["input_ids"]) for e in examples), "n_examples": len(examples)}
        # known here, so that the loss need not ask the GPU
        dense = sum(len(e["input_ids"]) - e["start"] for e in examples) == len(rows) * len(columns)
        batch |= {"shift_labels": batch["labels"], "columns": columns, "dense": dense, **counts}
        if all(e["sign"] > 0 for e in examples):
            del batch["sign"]
        return batch if self.packing else {**batch, "attention_mask": padding}

    @staticmethod
    def _put(batch: dict[str, Tensor], row: int, place: int, example: dict[str, Any]) -> int:
        ids, start = torch.tensor(example["input_ids"]), example["start"]
        end = place + len(ids)
        batch["input_ids"][row, place:end] = ids
        batch["position_ids"][row, place:end] = torch.arange(len(ids))
        batch["labels"][row, place + start - 1 : end - 1] = ids[start:]
        batch["sign"][row, place + start - 1 : end - 1] = example["sign"]
        return end


@dataclass(frozen=True)
class Batches:
    """Where a run takes its batches from."""

    data: Examples
    collator: Collator
    seed: int = 0
    """Of their order."""


def bucketed(lengths: Sequence[int], size: int, *, seed: int, epoch: int = 0) -> list[int]:
    """Return an order of examples that seed and epoch alone decide, those of one batch being of similar length.

    The longest example is in the first batch.
    """
    generator = torch.Generator().manual_seed(seed + 1_000_003 * epoch)
    return get_length_grouped_indices(lengths, size, generator=generator)


def forward_size(data: Examples, collator: Collator, order: Sequence[int], size: int) -> tuple[int, int]:
    """Return tokens and computed logits of the largest forwards, each over the `size` examples that a forward takes.

    Padding counts as tokens, and a position at which one row has a label counts in all rows. Only the first forwards of
    the order are looked at.
    """
    tokens = logits = 0
    for start in range(0, min(len(order), FORWARDS_LOOKED_AT * size), size):
        batch = collator([data[i] for i in order[start : start + size]])
        tokens = max(tokens, batch["input_ids"].numel())
        logits = max(logits, len(batch["input_ids"]) * len(batch["columns"]))
    return math.ceil(tokens / size), math.ceil(logits / size)


def first_fit(lengths: Sequence[int]) -> list[list[int]]:
    """Return the items in rows no wider than the longest of them, by first-fit decreasing."""
    width = max(lengths)
    rows: list[tuple[int, list[int]]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for n, (used, row) in enumerate(rows):
            if used + lengths[i] <= width:
                rows[n] = (used + lengths[i], [*row, i])
                break
        else:
            rows.append((lengths[i], [i]))
    return [row for _, row in rows]
