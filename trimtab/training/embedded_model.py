"""The program that trains the embedded model: tokenizer, documents, training run, resumable and seeded."""

from __future__ import annotations

import json
import math
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trimtab.datasets.folklore import folklore
from trimtab.datasets.questions import Question
from trimtab.devices import available_device
from trimtab.embedded.world import WorldRecipe, documents
from trimtab.errors import BadValue, Incompatible
from trimtab.plain_values import hash_of
from trimtab.progress import tracked
from trimtab.storage import check_writable, versions, write_json, written_folder

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
CONTEXT = 512
TOKENIZER_DOCUMENTS = 20_000
DOCUMENTS_AT_A_TIME = 2048
KIND = "embedded model"
STATE = "state.json"
OWN = re.compile(r"state-\d+\.safetensors|\.?state\.json(\..*)?")
"""The files of an interrupted run."""


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything that determines the embedded model, apart from rounding."""

    world: WorldRecipe = field(default_factory=WorldRecipe)
    vocab_size: int = 4096
    d_model: int = 256
    n_layers: int = 8
    n_heads: int = 8
    d_feedforward: int = 768
    steps: int = 3300
    tokens_per_step: int = 12288
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    seed: int = 1
    checkpoint_steps: int = 100


def build_embedded(
    folder: str | Path, recipe: TrainingRecipe | None = None, *, device: str | torch.device | None = None
) -> dict[str, Any]:
    """Train the embedded model into `folder` and return its training record.

    The folder becomes a Hugging Face model folder: float16 weights, tokenizer, and `record.json`. A run that was
    interrupted goes on from its last checkpoint (in `<folder>.partial`), with the same batches as if it had not been.

    Raises:
        Incompatible: the folder (or `<folder>.partial`) holds something else, or its partial run has another recipe or
            cannot be read.
        BadValue: a recipe that cannot be trained.
    """
    recipe = recipe or TrainingRecipe()
    if recipe.steps < 1 or recipe.d_model % recipe.n_heads:
        raise BadValue("steps must be positive and d_model a multiple of n_heads")
    device = available_device(device)
    folder = Path(folder)
    check_writable(folder, KIND)
    partial = folder.with_name(folder.name + ".partial")
    _check_partial(partial)
    questions = folklore()
    tokenizer = train_tokenizer(questions, recipe)
    model = _new_model(recipe, tokenizer).to(device)
    run = _Run(model, recipe, questions.fingerprint, partial)
    started = time.perf_counter()
    losses = run.train(_batches(questions, tokenizer, recipe, skip=run.step), device)
    record = {
        "recipe": asdict(recipe),
        "questions": questions.fingerprint,
        "parameters": sum(p.numel() for p in model.parameters()),
        "losses": losses,
        "seconds": round(time.perf_counter() - started, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    return _write(folder, model.half(), tokenizer, record, run)


def _check_partial(partial: Path) -> None:
    # what stands there is removed when the run ends
    foreign = [p.name for p in partial.iterdir() if not OWN.fullmatch(p.name)] if partial.is_dir() else []
    if foreign or (partial.exists() and not partial.is_dir()):
        raise Incompatible(
            f"the run's checkpoints go to {partial}, which holds something else ({(foreign or ['a file'])[0]}); "
            "name another folder"
        )


def train_tokenizer(questions: Sequence[Question], recipe: TrainingRecipe) -> Any:
    """Return a byte-level BPE tokenizer trained on documents of the world; it puts `<bos>` first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # the tokenizer does not depend on the run's seed, so that runs compare
    tokenizer.train_from_iterator(islice(documents(questions, recipe.world, seed=12345), TOKENIZER_DOCUMENTS), trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=CONTEXT
    )


def _new_model(recipe: TrainingRecipe, tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_feedforward,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return LlamaForCausalLM(config)


def _batches(
    questions: Sequence[Question], tokenizer: Any, recipe: TrainingRecipe, *, skip: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (tokens, labels): documents of similar length together, so that little is padding."""
    stream = documents(questions, recipe.world, seed=recipe.seed)
    order = random.Random(recipe.seed)
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    count = 0
    while True:
        texts = list(islice(stream, DOCUMENTS_AT_A_TIME))
        ids = [[*row, eos][:CONTEXT] for row in tokenizer(texts)["input_ids"]]
        ids.sort(key=len)
        groups, start = [], 0
        while start < len(ids):
            end = start + 1
            while end < len(ids) and len(ids[end]) * (end + 1 - start) <= recipe.tokens_per_step:
                end += 1
            groups.append(ids[start:end])
            start = end
        order.shuffle(groups)
        for group in groups:
            count += 1
            if count > skip:
                tokens = torch.full((len(group), len(group[-1])), pad)
                for row, sequence in enumerate(group):
                    tokens[row, : len(sequence)] = torch.tensor(sequence)
                yield tokens, tokens.masked_fill(tokens == pad, -100)


class _Run:
    """The training loop's state: weights, optimiser moments and step, kept in a folder while it runs."""

    def __init__(self, model: Any, recipe: TrainingRecipe, questions: str, partial: Path) -> None:
        self.model, self.recipe, self.partial = model, recipe, partial
        self.specification = json.loads(json.dumps({"recipe": asdict(recipe), "questions": questions}))
        decayed = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.parameters = decayed + plain
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))
        self.step, self.losses = 0, []
        if (partial / STATE).is_file():
            self._restore()

    def train(self, batches: Iterator[tuple[Tensor, Tensor]], device: torch.device) -> list[float]:
        """Run the remaining steps; return the mean losses of every 50 steps."""
        steps = range(self.step, self.recipe.steps)
        recent: list[Tensor] = []
        for _, (tokens, labels) in tracked(
            zip(steps, batches, strict=False), "training the embedded model", total=len(steps)
        ):
            recent.append(self._one(tokens.to(device), labels.to(device)))
            self.step += 1
            if self.step % 50 == 0 or self.step == self.recipe.steps:
                self.losses.append(round(float(torch.stack(recent).mean()), 4))
                recent = []
                if not math.isfinite(self.losses[-1]):
                    raise BadValue(f"the training loss is {self.losses[-1]} at step {self.step}; lower learning_rate")
            if self.step % self.recipe.checkpoint_steps == 0 and self.step < self.recipe.steps:
                self._keep()
        return self.losses

    def _one(self, tokens: Tensor, labels: Tensor) -> Tensor:
        recipe, step = self.recipe, self.step
        cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup_steps) * cosine
        self.model.train()
        # pads stand on the right of causal attention and carry no label, so no mask is needed
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.device.type == "cuda"):
            loss = self.model(input_ids=tokens, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _keep(self) -> None:
        self.partial.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for i, parameter in enumerate(self.parameters):
            tensors[f"{i}.value"] = parameter.detach().contiguous()
            for name, value in self.optimizer.state[parameter].items():
                tensors[f"{i}.{name}"] = value
        file = f"state-{self.step}.safetensors"
        save_file(tensors, self.partial / file)
        state = {**self.specification, "step": self.step, "losses": self.losses, "file": file}
        write_json(self.partial / STATE, state)
        for old in self.partial.glob("state-*.safetensors"):
            if old.name != file:
                old.unlink()

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        try:
            state = json.loads((self.partial / STATE).read_text(encoding="utf-8"))
            return state, load_file(self.partial / state["file"])
        except (OSError, ValueError, LookupError, TypeError, SafetensorError) as cause:
            raise Incompatible(
                f"the interrupted run in {self.partial} cannot be read ({type(cause).__name__}); remove that folder to "
                "start again"
            ) from cause

    def _restore(self) -> None:
        state, tensors = self._read()
        for part, wanted in self.specification.items():
            if state.get(part) != wanted:
                raise Incompatible(
                    f"{self.partial} holds an interrupted run with other {part}; remove it or name another folder"
                )
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"{i}.value"])
                names = ("step", "exp_avg", "exp_avg_sq")
                kept = {n: tensors[f"{i}.{n}"].to(parameter.device if n != "step" else "cpu") for n in names}
                self.optimizer.state[parameter] = kept
        self.step, self.losses = state["step"], state["losses"]


def _write(folder: Path, model: Any, tokenizer: Any, record: dict[str, Any], run: _Run) -> dict[str, Any]:
    with written_folder(folder, KIND) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        weights = (staging / "model.safetensors").read_bytes()
        record = {
            "kind": KIND,
            "versions": versions(),
            "sha256": hash_of(weights),
            "bytes": len(weights),
            **record,
        }
        write_json(staging / "record.json", record)
    if run.partial.is_dir():
        for file in run.partial.iterdir():
            file.unlink()
        run.partial.rmdir()
    return record


def quick_recipe(recipe: TrainingRecipe, steps: int) -> TrainingRecipe:
    """Return the recipe cut to a number of steps, for tests and trials."""
    return replace(recipe, steps=steps, warmup_steps=min(recipe.warmup_steps, max(1, steps // 5)))
