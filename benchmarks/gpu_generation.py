"""Answers for measuring on one GPU: batches by token budget against batches of 16, on a random SmolLM2-135M.

    python benchmarks/gpu_generation.py --out benchmarks/results/gpu_generation.json

Also how many answers differ between the two, and how far apart the two likeliest tokens are where they first do.
`--tiny` tries it out on a tiny model, on the CPU too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from speed_common import command, interleaved, ratio, setting
from transformers import AutoModelForCausalLM, LlamaConfig

from trimtab.cli.setup import quiet
from trimtab.datasets import folklore
from trimtab.edits.combined import NoEdit
from trimtab.engine.completion import completions
from trimtab.engine.generate import Decoding, continuations
from trimtab.models import load_model
from trimtab.models.calling import inference
from trimtab.models.tokens import encode
from trimtab.storage import write_json

SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    # far larger than usual, so that the random model's likeliest token stands out
    "initializer_range": 0.15,
}


def model_of(tiny: bool) -> Any:
    small = {
        "vocab_size": 4096,
        "hidden_size": 36,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
    }
    config = LlamaConfig(**{**SMOLLM2, **(small if tiny else {})}, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def margin(model: Any, prompt: list[int], one: list[int], other: list[int]) -> float:
    """Return how far apart the logits of the two likeliest tokens are where two continuations first differ."""
    same = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    with inference(model):
        logits = model(torch.tensor([[*prompt, *one[:same]]], device=model.device)).logits[0, -1].double()
    top = logits.topk(2).values
    return float(top[0] - top[1])


class Digits:
    """A tokenizer that writes tokens as numbers, so that texts are compared token by token."""

    pad_token_id, eos_token_id, bos_token = 0, 2, None

    def batch_decode(self, rows: torch.Tensor, **options: Any) -> list[str]:  # noqa: ARG002
        return [" ".join(map(str, row)) for row in rows.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu_generation.json")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script out")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    quiet()
    model, tokenizer = model_of(options.tiny), load_model("embedded", device="cpu")[1]
    n, new = (24, 8) if options.tiny else (256, 40)
    prompts = [f"Q: {question.question}\nA:" for question in (folklore().items * n)[:n]]
    ids = [encode(tokenizer, prompt) for prompt in prompts]
    # of one length, as a random model ends its answers at random
    decoding = Decoding(new, {"min_new_tokens": new})

    def tokens(batch_size: int | None) -> list[list[int]]:
        (texts,) = continuations(model, Digits(), ids, [None], decoding, batch_size=batch_size)
        return [list(map(int, text.split())) for text in texts]

    def answers(batch_size: int | None) -> list[str]:
        """What measuring does: answers are decoded, and looked at for their end at every step."""
        form = {"max_new_tokens": new, "batch_size": batch_size}
        return completions(model, tokenizer, prompts, [NoEdit()], **form)[0]

    jobs = {"tokens, batches of 16": lambda: tokens(16), "tokens": lambda: tokens(None)}
    jobs |= {"answers, batches of 16": lambda: answers(16), "answers": lambda: answers(None)}
    seconds, found = interleaved(jobs, options.rounds)
    pairs = list(zip(ids, found["tokens, batches of 16"], found["tokens"], strict=True))
    margins = [margin(model, *pair) for pair in pairs if pair[1] != pair[2]]
    result = {
        "command": command(),
        **setting(),
        "model": "tiny" if options.tiny else "random SmolLM2-135M, float32",
        "answers": n,
        "new tokens": new,
        "seconds": seconds,
        **{
            f"{what}: batches of 16 / by budget": ratio(seconds[f"{what}, batches of 16"], seconds[what])
            for what in ("tokens", "answers")
        },
        "share of answers that differ": len(margins) / n,
        "margins of the two likeliest tokens where they first differ": margins,
        **({"peak memory, GiB": torch.cuda.max_memory_allocated() / 2**30} if torch.cuda.is_available() else {}),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out.resolve(), result)
    print(*(f"{key}: {value}" for key, value in result.items()), sep="\n")


if __name__ == "__main__":
    main()
