"""What the speed benchmarks share: random models, tokenizer, questions, the harness's batching, ratios."""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from trimtab.activations import Head
from trimtab.cli.setup import quiet
from trimtab.datasets import QuestionSet, Statement, folklore, truthfulqa
from trimtab.datasets.primer import QA_PRIMER
from trimtab.edits.vectors import HeadShift
from trimtab.evaluate.multiple_choice import labelled_answers
from trimtab.models import load_model
from trimtab.models.calling import inference
from trimtab.models.tokens import length_batches
from trimtab.storage import versions

SIZES = {
    # layers, heads, d_head, MLP width, vocabulary
    "tiny": (3, 4, 16, 128, 1000),
    "small": (8, 8, 64, 1376, 8000),
    "llama-7b": (32, 32, 128, 11008, 32000),
}


def on_a_model(doc: str | None) -> tuple[Any, Any, Path]:
    """Return the model and tokenizer that --model names, on the CPU, and the file that --out names."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    quiet()
    return *load_model(asked.model, device="cpu"), asked.out


def questions_of(folder: str | None) -> QuestionSet:
    """Return TruthfulQA from a folder that holds its files, or folklore without one."""
    return truthfulqa(Path(folder) / "mc_task.json") if folder else folklore()


def random_llama(size: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Return a random Llama of one of SIZES."""
    layers, heads, d_head, mlp, vocab = SIZES[size]
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=heads * d_head,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def random_shift(size: str, *, strength: float = 5.0) -> HeadShift:
    """Return a random shift on two heads of every layer."""
    layers, heads, d_head = SIZES[size][:3]
    chosen = tuple(Head(i, h) for i in range(layers) for h in (0, heads - 1))
    units = torch.randn(len(chosen), d_head, generator=torch.Generator().manual_seed(0))
    return HeadShift(chosen, torch.nn.functional.normalize(units, dim=1), torch.ones(len(chosen)), strength)


def trained_tokenizer(questions: QuestionSet, vocab: int) -> Any:
    """Return a byte-level BPE tokenizer trained on the questions, which puts `<s>` first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([QA_PRIMER, *(s.text for s in questions.statements())], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token=None
    )


def unshared(n: int, vocab: int, *, seed: int = 0) -> list[list[int]]:
    """Return token sequences of 16-64 tokens that begin differently from the first token on."""
    rng = np.random.default_rng(seed)
    firsts = rng.permutation(np.arange(3, vocab))[:n]
    return [[int(f), *rng.integers(3, vocab, rng.integers(15, 64)).tolist()] for f in firsts]


class Unshared:
    """A tokenizer of made-up prompts, which takes them together: each text is the number of its row."""

    is_fast, pad_token_id, eos_token_id, bos_token = True, 0, 2, None

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def __call__(self, texts: list[str] | str, **options: Any) -> dict[str, Any]:  # noqa: ARG002
        if isinstance(texts, str):  # whether anything stands before every text: nothing does
            return {"input_ids": [0]}
        rows = [self.rows[int(text)] for text in texts]
        offsets = [[(0, 0)] * (len(row) - 1) + [(0, len(text))] for row, text in zip(rows, texts, strict=True)]
        return {"input_ids": rows, "offset_mapping": offsets}

    def statements(self) -> list[Statement]:
        """Return one statement for every row."""
        return [Statement("", str(i), i % 2 == 0, str(i), "") for i in range(len(self.rows))]


def answer_pairs(questions: QuestionSet) -> list[tuple[str, str]]:
    """Return (context, continuation) of every answer, as lm-evaluation-harness asks TruthfulQA."""
    return [(f"{QA_PRIMER}\n\nQ: {q.question}\nA:", f" {a}") for q in questions for a, _ in labelled_answers(q)]


def plain_forward(model: Any, ids: Sequence[Sequence[int]], batch_size: int) -> None:
    """Run the sequences in batches of similar length, one logit a row: the limit of whoever shares nothing."""
    with inference(model):
        for batch in length_batches(ids, batch_size=batch_size, pad=0, device=model.device):
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, logits_to_keep=1)
    synchronize(model)


@torch.inference_mode()
def harness_like(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[float]:
    """Return log-likelihoods computed the way HFLM.loglikelihood does, for machines without lm-eval.

    As in lm-evaluation-harness 0.4: longest first, right-padded without a mask, all logits, log-softmax over all.
    """
    encoded = []
    for context, continuation in pairs:
        n = len(tokenizer(context)["input_ids"])
        whole = tokenizer(context + continuation)["input_ids"]
        encoded.append((whole, n))
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i][0]))
    found = [0.0] * len(pairs)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows = [torch.tensor(encoded[i][0][:-1]) for i in chosen]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
        logprobs = log_softmax(model(ids).logits, dim=-1)
        for row, i in enumerate(chosen):
            whole, n = encoded[i]
            target = torch.tensor(whole[n:], device=ids.device)
            found[i] = float(logprobs[row, n - 1 : len(whole) - 1].gather(-1, target[:, None]).sum())
    return found


def synchronize(model: Any) -> None:
    """Wait for the model's device."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return (seconds, result)."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def ratio(ours: Sequence[float], theirs: Sequence[float], *, draws: int = 2000) -> dict[str, float]:
    """Return the median of the rounds' ratios ours/theirs with its 95 % bootstrap interval."""
    ratios = np.array(ours) / np.array(theirs)
    drawn = np.random.default_rng(0).choice(ratios, (draws, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high), "rounds": len(ratios)}


def command() -> str:
    """Return the command line, without where TruthfulQA's folder and the result stand on this machine."""
    said = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return re.sub(r"(--out[ =])/\S*/", r"\1", re.sub(r"(--truthfulqa[ =])\S+", r"\1FOLDER", said))


def setting() -> dict[str, Any]:
    """Return versions and hardware."""
    hardware = {"machine": platform.machine(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    return {"versions": {"python": platform.python_version(), **versions()}, "hardware": hardware}


def agreement(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the share of equal tokens up to and including the first that differs (1: all equal)."""
    same = (a[0] == b[0]).float()
    return float(same.cumprod(0).mean())


def bandwidth(device: torch.device) -> float:
    """Return the measured bytes a second of reading memory: the sum of a large tensor."""
    x = torch.ones(1 << (30 if device.type == "cuda" else 24), dtype=torch.bfloat16, device=device)
    return x.numel() * 2 / min(timed(lambda: x.max())[0] for _ in range(5))


def interleaved(jobs: dict[str, Any], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return every job's seconds over the rounds, in turns after one warm-up, and its last result."""
    results = {name: job() for name, job in jobs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds):
        for name in list(jobs)[:: 1 if number % 2 else -1]:
            taken, results[name] = timed(jobs[name])
            seconds[name].append(taken)
    return seconds, results


class Written:
    """What speed.py wrote: model, tokenizer, and the task's sizes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.placed = folder, contextlib.ExitStack()
        self.spec = json.loads((folder / "spec.json").read_text())
        self.model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        self.questions = questions_of(self.spec["truthfulqa"])
        self.statements = self.questions[: self.spec["capture"]].statements()
        self.asked = self.questions[: self.spec["choice"]]

    def ids(self) -> list[list[int]]:
        """Return the statements' tokens, longest first."""
        return sorted((self.tokenizer(s.text)["input_ids"] for s in self.statements), key=len, reverse=True)

    def batches(self, size: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Return (tokens, mask, last places) of batches of similar length."""
        rows = [torch.tensor(row) for row in self.ids()]
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        pad = torch.nn.utils.rnn.pad_sequence
        return [
            (
                pad(part, batch_first=True),
                pad([torch.ones_like(r) for r in part], batch_first=True),
                torch.tensor([len(r) - 1 for r in part]),
            )
            for part in parts
        ]
