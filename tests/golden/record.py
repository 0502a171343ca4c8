"""The golden record: numbers, tokens, JSON and refusals of the package as it was before it was rebuilt.

    python -m tests.golden.record --write tests/golden/golden.json.gz [--only SECTION ...]
    python -m tests.golden.record --check tests/golden/golden.json.gz [--only SECTION ...]

A check prints one line for every difference and exits with 1 if there is one that `intended.json` does not name
({"section/key prefix": "reason"}). `--write --only` renews those sections of the file and keeps the others.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", COLUMNS="200", TERM="dumb")
os.environ.pop("TRIMTAB_JUDGE_KEY", None)

import argparse
import contextlib
import gzip
import json
import random
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.golden import factories as made
from tests.golden.plain import TENSOR, differences, first_difference, plain, shown, written_json

# Where things without a public name stand, old place first; add the new place when one moves. Nothing else in this
# folder names an inner module, but for `trimtab.cli:app`.
HOMES = {
    "beam_texts": ["trimtab.evaluate.beam_search", "trimtab.engine.beam_search", "trimtab.engine.generate"],
    "BeamSettings": ["trimtab.evaluate.beam_search", "trimtab.engine.beam_search", "trimtab.engine.generate"],
    "has_template": ["trimtab.evaluate.conversation", "trimtab.engine.conversation", "trimtab.models.asking"],
    "complete": ["trimtab.evaluate.completion", "trimtab.engine.completion", "trimtab.engine.generate"],
    "add_to_residual": ["trimtab.models.hooks", "trimtab.models.adding"],
    "fingerprint": ["trimtab.models.fingerprint", "trimtab.models.identity"],
    "paired": ["trimtab.compare.statistics"],
    "holm": ["trimtab.compare.statistics"],
    "spread": ["trimtab.compare.statistics"],
    "over_draws": ["trimtab.compare.statistics"],
    "product": ["trimtab.compare.statistics"],
    "bootstrap": ["trimtab.intervals"],
    "bootstrap_mean": ["trimtab.intervals"],
    "activations_from_iti": ["trimtab.steer.iti_files", "trimtab.datasets.iti_files"],
    "app": ["trimtab.cli"],
}

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]


def home(name):
    """Return a thing without a public name, from the first of its homes that has it."""
    for place in HOMES[name]:
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(import_module(place), name)
    raise ImportError(f"{name} is in none of {HOMES[name]}: add its new place to HOMES in {__file__}")


class Record(dict):
    """One section's values by key; what raises is recorded as the last line of its traceback."""

    places = ()

    def put(self, key, value):
        assert key not in self, key
        self[key] = plain(value, self.places)

    @contextlib.contextmanager
    def tried(self, key):
        """Record what fails in the block under this key, and go on."""
        try:
            yield
        except Exception as cause:
            self[f"{key} FAILED"] = traceback.format_exception_only(cause)[-1].strip()


# -- what several sections start from; each is made once, and again when a section runs alone --


def tt():
    """Return the package."""
    return import_module("trimtab")


@cache
def embedded():
    """Return the embedded model and its tokenizer."""
    return tuple(tt().load_model("embedded", device="cpu"))


@cache
def folklore(n=20):
    """Return the first folklore questions."""
    return tt().datasets.folklore("development")[:n]


def loaded(name):
    """Return (model, tokenizer, questions) by name."""
    if name == "embedded":
        return (*embedded(), folklore())
    return made.model_of(name), made.tokenizer_of(), made.questions_of()


@cache
def captured(name, site="heads", position="last"):
    """Return activations of a model's questions."""
    model, tokenizer, questions = loaded(name)
    return tt().capture_heads(model, tokenizer, questions.statements(), site=site, position=position)


@cache
def probed(name, site="heads"):
    """Return probes on them."""
    return tt().probes.fit_logistic(captured(name, site), validation=0.4, seed=0)


@cache
def head_shift(name, direction="mass_mean", top_k=4):
    """Return a head shift."""
    return tt().steer.fit_shift(captured(name), probed(name), top_k=top_k, direction=direction, seed=3)


@cache
def residual_shift(name, top_k=1):
    """Return a residual shift."""
    return tt().steer.fit_residual_shift(captured(name, "residual"), probed(name, "residual"), top_k=top_k)


def edits_of(name):
    """Return edits by name, at strengths that show."""
    heads, residual = head_shift(name).scaled(8), residual_shift(name).scaled(1.5)
    prompted = tt().Prompted((("Is ice cold?", "Ice is cold."), ("Is fire hot?", "Fire is hot.")))
    return {
        "none": tt().NoEdit(),
        "heads": heads,
        "heads back": heads.scaled(-1),
        "residual": residual,
        "stacked": tt().Stacked((heads, residual)),
        "prompted": prompted,
        "prompted and heads": tt().Stacked((prompted, heads)),
    }


# -- sections --


def capture(rec):
    """Heads and residuals of three families and the embedded model."""
    for name in ("embedded", "gpt2", "gemma3", "mixtral", "qwen3-moe", "llama"):
        for site in ("heads", "residual"):
            for position in ("last", "mean_answer"):
                with rec.tried(f"{name}/{site}/{position}"):
                    acts = captured(name, site, position)
                    rec.put(f"{name}/{site}/{position}/values", acts.values)
                    if position == "last":
                        for i, layer in enumerate(acts.layers):
                            rec.put(f"{name}/{site}/layer {layer}", acts.values[:, i])
                        rec.put(f"{name}/{site}/labels", acts.labels.int())
                        rec.put(f"{name}/{site}/groups", acts.groups)
                        rec.put(f"{name}/{site}/record", acts.record)
    with rec.tried("batched"):
        model, tokenizer, questions = loaded("embedded")
        acts = tt().capture_heads(model, tokenizer, questions[:4].statements("iti"), batch_size=3, token_budget=60)
        rec.put("batched/values", acts.values)
    with rec.tried("split"):
        train, held = captured("embedded").split(test=0.3, seed=1)
        rec.put("split", [sorted(set(train.groups)), sorted(set(held.groups))])
        rec.put("first head", captured("embedded").head(1, 1).X)
    with rec.tried("save"), tempfile.TemporaryDirectory() as folder:
        captured("gpt2").save(f"{folder}/acts")
        again = tt().HeadActivations.load(f"{folder}/acts")
        rec.put("loaded/values", again.values)
        rec.put("loaded/files", sorted(p.name for p in Path(folder, "acts").iterdir()))
    with rec.tried("store"), tempfile.TemporaryDirectory() as folder:
        model, tokenizer, questions = loaded("gpt2")
        store = tt().capture_to_store(model, tokenizer, questions.statements(), f"{folder}/store")
        rec.put("store/layer 1", store.layer(store.layers[1]).values)
        rec.put("store/probes", tt().probes.fit_logistic(store, validation=0.4, seed=0).coef)
    with rec.tried("sites"):
        for name in ("embedded", *made.CONFIGS):
            sites = tt().find_heads(loaded(name)[0])
            rec.put(f"sites/{name}", [[s.layer, s.name, s.n_heads, s.d_head] for s in sites])


def probes(rec):
    """Coefficients, accuracies, ranking."""
    for name in ("embedded", "gpt2", "mixtral"):
        for site in ("heads", "residual"):
            with rec.tried(f"{name}/{site}"):
                _put_probes(rec, f"{name}/{site}", probed(name, site))
    for name in ("embedded", "gpt2"):
        with rec.tried(f"{name}/mass mean"):
            _put_probes(rec, f"{name}/mass mean", tt().probes.fit_mass_mean(captured(name), validation=0.4, seed=2))
        with rec.tried(f"{name}/shuffled"):
            shuffled = tt().probes.shuffled(captured(name), seed=1)
            _put_probes(rec, f"{name}/shuffled", tt().probes.fit_logistic(shuffled, C=0.1, seed=1))
    with rec.tried("scores"):
        rec.put("scores", probed("embedded").scores(captured("embedded")))
        rec.put("accuracy on", probed("embedded").accuracy_on(captured("embedded")))
        rec.put("text map", tt().probes.text_map(probed("embedded")))
    with rec.tried("save"), tempfile.TemporaryDirectory() as folder:
        probed("gpt2").save(f"{folder}/p")
        rec.put("loaded", tt().probes.HeadProbes.load(f"{folder}/p").coef)
    with rec.tried("mass mean directions"):
        found = tt().steer.MassMean.of(captured("embedded"))
        rec.put("directions", [found.values.shape, found.statements])
        rec.put("directions/values", found.values)


def _put_probes(rec, key, found):
    for part in ("coef", "intercept", "accuracy", "accuracy_low", "accuracy_high", "auroc"):
        rec.put(f"{key}/{part}", getattr(found, part))
    rec.put(f"{key}/top", [list(h) for h in found.top(min(12, found.accuracy.numel()))])
    rec.put(f"{key}/validation", found.validation_questions)
    rec.put(f"{key}/record", found.record)


def shifts(rec):
    """Shift tensors."""
    for name in ("embedded", "gpt2", "mixtral"):
        for direction in ("mass_mean", "probe", "random"):
            with rec.tried(f"{name}/{direction}"):
                _put_shift(rec, f"{name}/{direction}", head_shift(name, direction))
        with rec.tried(f"{name}/residual"):
            _put_shift(rec, f"{name}/residual", residual_shift(name, 2))
        with rec.tried(f"{name}/sum"):
            one, other = head_shift(name).scaled(2), head_shift(name, "probe", 6)
            _put_shift(rec, f"{name}/sum", one + other)
            _put_shift(rec, f"{name}/scaled", one.scaled(-0.5))
            _put_shift(rec, f"{name}/first", one.first(2))
            _put_shift(rec, f"{name}/renamed", one.renamed("mine"))
            _put_shift(rec, f"{name}/residual first", residual_shift(name, 2).first(1).scaled(3))
    with rec.tried("bank"):
        bank = tt().steer.fit_shift(
            captured("embedded"), probed("embedded"), top_k=3, sigma_statements=captured("embedded", "heads", "last")
        )
        _put_shift(rec, "bank", bank)
    with rec.tried("save"), tempfile.TemporaryDirectory() as folder:
        for key, shift in {"heads": head_shift("gpt2").scaled(2), "residual": residual_shift("gpt2")}.items():
            shift.save(f"{folder}/{key}")
            _put_shift(rec, f"loaded {key}", tt().steer.load_shift(f"{folder}/{key}"))
            rec.put(f"files {key}", sorted(p.name for p in Path(folder, key).iterdir()))
    with rec.tried("methods"):
        model, tokenizer, questions = loaded("gpt2")
        for key, method in {
            "ITI": tt().steer.ITI(top_ks=(2, 4), alphas=(1, 4)),
            "ITI probe": tt().steer.ITI(direction="probe", top_ks=(3,)),
            "CAA": tt().steer.CAA(),
        }.items():
            rec.put(f"method {key}/grid", method.grid)
            _put_shift(rec, f"method {key}", method.fit(model, tokenizer, questions, knobs=method.grid[-3], seed=1))
        drawn = next(tt().steer.RandomDirection(draws=2).edits(head_shift("gpt2"), 1, seed=[1, 2, 3]))
        _put_shift(rec, "method random", drawn)
    with rec.tried("agreement"):
        other = tt().probes.fit_mass_mean(captured("embedded"), validation=0.4, seed=0)
        directions = tt().steer.MassMean.of(captured("embedded"))
        found = tt().steer.agreement(directions, probed("embedded"), directions, other, top_k=6)
        rec.put("agreement", found.as_dict())


def _put_shift(rec, key, shift):
    if hasattr(shift, "heads"):
        rec.put(f"{key}/heads", [list(h) for h in shift.heads])
        rec.put(f"{key}/directions", shift.directions)
        rec.put(f"{key}/sigma", shift.sigma)
    else:
        rec.put(f"{key}/layers", shift.layers)
        rec.put(f"{key}/vectors", shift.vectors)
    rec.put(f"{key}/deltas", torch.stack(list(shift.deltas.values())))
    rec.put(
        f"{key}/says", [shift.name, shift.strength, shift.unchanged_layers, shift.leaves_prompt_unedited, len(shift)]
    )
    rec.put(f"{key}/describe", shift.describe())
    rec.put(f"{key}/record", shift.record)
    rec.put(f"{key}/cost", shift.cost)


def steering(rec):
    """Logits and tokens under edits."""
    for name in ("embedded", "llama", "gpt2", "gemma3", "mixtral"):
        with rec.tried(name):
            _put_steering(rec, name)
    model, tokenizer, questions = loaded("embedded")
    edits = edits_of("embedded")
    with rec.tried("answers"):
        said = tt().evaluate.generate_answers_many(
            model, tokenizer, questions[:6], list(edits.values()), max_new_tokens=24
        )
        for key, found in zip(edits, said, strict=True):
            rec.put(f"answers/{key}", found.as_dict())
        found = tt().evaluate.generate_answers(
            model, tokenizer, questions[:3], edits["heads"], max_new_tokens=16, convention="iti", batch_size=2
        )
        rec.put("answers iti", found.as_dict())
    with rec.tried("conversation"):
        asked = [q.question for q in questions[:3]]
        for key in ("none", "heads", "stacked"):
            rec.put(f"conversation/{key}", tt().evaluate.answers(model, tokenizer, asked, edits[key], batch_size=2))
        history = [tt().evaluate.Turn(asked[0], "It stays as it is.")]
        rec.put("conversation/ids", tt().evaluate.prompt_ids(tokenizer, asked[1], history))
        ids = tt().evaluate.prompt_ids(tokenizer, asked[1], history, template=False)
        streamer = _Streamed()
        said = tt().evaluate.reply(
            model, tokenizer, ids, edits["heads"], template=False, settings={"max_new_tokens": 12}, streamer=streamer
        )
        rec.put("conversation/reply", [said, streamer.tokens])
        torch.manual_seed(5)
        sampled = {"do_sample": True, "temperature": 0.8, "top_k": 10, "max_new_tokens": 12}
        rec.put(
            "conversation/sampled", tt().evaluate.answers(model, tokenizer, asked, edits["heads"], settings=sampled)
        )
        chat = made.tokenizer_of(chat=True)
        rec.put("conversation/template ids", tt().evaluate.prompt_ids(chat, "What is coal?", history))
        rec.put("conversation/template", tt().evaluate.answers(
            made.model_of("llama"), chat, ["What is coal?", "Why?"], edits_of("llama")["heads"],
            settings={"max_new_tokens": 8},
        ))  # fmt: skip
    with rec.tried("beams"):
        settings = home("BeamSettings")(beams=3, max_new_tokens=8)
        prompts = [f"Q: {q.question}\nA:" for q in questions[:3]]
        for key in ("none", "heads"):
            rec.put(f"beams/{key}", home("beam_texts")(model, tokenizer, prompts, edits[key], settings=settings))
    with rec.tried("pairs"):
        scored = tt().evaluate.score_texts(
            model, tokenizer, _pairs(), edits["heads"], scorer=lambda pair, text: len(text) % 5 / 4, max_new_tokens=8
        )
        rec.put("scored texts", scored.as_dict())
    with rec.tried("strength"):
        chosen = tt().steer.choose_strength(
            model, tokenizer, folklore(10), head_shift("embedded"), metric="mc1", kl_budget=0.5,
            sweep=tt().steer.Sweep(alphas=(1, 4, 8), top_ks=(2, 4), texts=made.TEXTS[:4]),
        )  # fmt: skip
        _put_shift(rec, "strength", chosen)
    with rec.tried("fit"):
        spec = tt().steer.ShiftSpec(strength=2.0, top_k=3)
        fitted = tt().steer.fit(made.model_of("gpt2"), made.tokenizer_of(), made.questions_of(), spec)
        _put_shift(rec, "fit", fitted.shift)
        rec.put("fit/mass mean", fitted.directions.values)


class _Streamed:
    def __init__(self):
        self.tokens = []

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.tokens.append("end")


def _pairs():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pairs.jsonl")
        path.write_text("\n".join(map(json.dumps, made.PAIRS)))
        return tt().datasets.contrast_pairs(path)


def _put_steering(rec, name):
    model, tokenizer, questions = loaded(name)
    prompts = [f"Q: {q.question}\nA:" for q in questions[:4]]
    ids = [tokenizer(p)["input_ids"] for p in prompts]
    ids[1], ids[2] = ids[1][: len(ids[1]) // 2], ids[2][:5]
    width, pad = max(map(len, ids)), tokenizer.pad_token_id or 0
    batch = torch.tensor([[pad] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    options = {"do_sample": False, "max_new_tokens": 10, "pad_token_id": pad, "eos_token_id": None}
    whole, marks = torch.tensor(ids[:1]), torch.zeros(1, len(ids[0]))
    marks[0, -3:], marks[0, 0] = 1.0, 0.5
    for key, edit in edits_of(name).items():
        if key.startswith("prompted"):
            rec.put(f"{name}/{key}/prompt", edit.prompt("Why?"))
            rec.put(f"{name}/{key}/describe", edit.describe())
            continue
        with torch.no_grad(), rec.tried(f"{name}/{key}"):
            with edit.applied(model) as edited:
                out = edited.generate(
                    batch, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **options
                )
                rec.put(f"{name}/{key}/batched", out.sequences[:, width:].tolist())
                rec.put(f"{name}/{key}/batched logits", torch.stack(out.logits))
                alone = torch.tensor(ids[1:2])
                said = edited.generate(alone, attention_mask=torch.ones_like(alone), **options)
                rec.put(f"{name}/{key}/alone", said[0, len(ids[1]) :].tolist())
            with edit.applied(model, "all") as edited:
                rec.put(f"{name}/{key}/all", made.logits(edited, whole))
            with edit.applied(model, marks) as edited:
                rec.put(f"{name}/{key}/masked", made.logits(edited, whole))
            token_mask = tt().TokenMask(marks)
            with edit.applied(model, token_mask) as edited:
                rec.put(f"{name}/{key}/token mask", made.logits(edited, whole))
    rec.put(f"{name}/afterwards", made.logits(model, whole))


def choices(rec):
    """Multiple choice in every convention, contrast pairs."""
    for name, n in (("embedded", 6), ("gpt2", 4), ("gemma3", 3)):
        model, tokenizer, questions = loaded(name)
        edits = edits_of(name)
        for convention in ("plain", "lm-eval", "iti"):
            if convention != "plain" and name != "embedded":
                continue  # the primer does not fit the tiny models' context
            with rec.tried(f"{name}/{convention}"):
                found = tt().evaluate.multiple_choice_many(
                    model, tokenizer, questions[:n], list(edits.values()), convention=convention
                )
                for key, scores in zip(edits, found, strict=True):
                    rec.put(f"{name}/{convention}/{key}", scores.as_dict())
        with rec.tried(f"{name}/one"):
            one = tt().evaluate.multiple_choice(
                model, tokenizer, questions[:3], edits["heads"], batch_size=2, token_budget=100
            )
            rec.put(f"{name}/one", one.as_dict())
        with rec.tried(f"{name}/pairs"):
            for key in ("none", "heads", "residual"):
                scores = tt().evaluate.contrast(model, tokenizer, _pairs(), edits[key], batch_size=4)
                rec.put(f"{name}/pairs/{key}", scores.as_dict())


def drift(rec):
    """CE and KL per text."""
    texts = tt().datasets.neutral_texts(6)
    rec.put("neutral texts", texts[:2])
    rec.put("validation texts", tt().datasets.validation_texts()[:2])
    for name in ("embedded", "gpt2", "mixtral"):
        with rec.tried(name):
            edits = {k: e for k, e in edits_of(name).items() if not k.startswith("prompted and")}
            model, tokenizer, _ = loaded(name)
            some = texts if name == "embedded" else made.TEXTS[:4]
            found = tt().evaluate.drifts(model, tokenizer, list(edits.values()), texts=some, batch_size=4)
            for key, moved in zip(edits, found, strict=True):
                rec.put(f"{name}/{key}", moved.as_dict())
    with rec.tried("one"):
        one = tt().evaluate.drift(*embedded(), edits_of("embedded")["heads"], texts=texts[:2], max_tokens=9)
        rec.put("one", one.as_dict())


def _tuning_methods():
    import peft as hf_peft

    peft, head = tt().peft, tt().Head
    quick = peft.Recipe(max_steps=4, batch_size=8, learning_rate=0.02)
    small = {"recipe": quick}
    return {
        "lora": peft.LoRA(r=4, **small),
        "lora qv": peft.LoRA(r=4, targets="qv", **small),
        "rslora": peft.LoRA(r=4, rslora=True, dropout=0.1, **small),
        "dora": peft.LoRA(r=4, dora=True, **small),
        "ia3": peft.IA3(**small),
        "vera": peft.Adapter(hf_peft.VeraConfig(r=8, target_modules=["o_proj", "c_proj"]), **small),
        "houlsby": peft.Bottleneck("houlsby", 4, **small),
        "pfeiffer": peft.Bottleneck("pfeiffer", 4, **small),
        "lin": peft.Bottleneck("lin", 4, **small),
        "heads": peft.HeadOffsets(heads=(head(2, 3), head(0, 1), head(2, 0)), **small),
        "all heads": peft.HeadOffsets(**small),
        "head scalings": peft.HeadScalings(**small),
        "prompt": peft.PromptTuning(5, **small),
        "prefix": peft.PrefixTuning(5, **small),
        "prefix mlp": peft.PrefixTuning(5, reparameterised=True, d_hidden=16, **small),
        "intrinsic": peft.IntrinsicDimension(60, **small),
        "said": peft.IntrinsicDimension(60, structure_aware=True, **small),
        "full": peft.FullFineTuning(**small),
        "top 2": peft.FullFineTuning(2, **small),
    }


def tuning(rec):
    """Losses, and logits of what was learned: applied, loaded, scaled, merged, generated from."""
    for family in ("llama", "gpt2"):
        for name, method in _tuning_methods().items():
            with rec.tried(f"{family}/{name}"):
                _put_tuned(rec, f"{family}/{name}", family, method)
        rec.put(f"{family}/afterwards", made.logits(made.model_of(family)))
    variants = {
        "objective": {"objective": "true_and_false"}, "cosine": {"schedule": "cosine", "weight_decay": 0.1},
        "micro": {"micro_batch": 2, "packing": False}, "checkpointing": {"checkpointing": True},
        "bf16": {"precision": "bf16"}, "epochs": {"max_steps": None, "epochs": 1, "batch_size": 4},
    }  # fmt: skip
    for name, knobs in variants.items():
        with rec.tried(f"recipe/{name}"):
            edit = _tuning_methods()["lora"].fit(
                made.model_of("llama"), made.tokenizer_of(), made.questions_of(6), knobs=knobs, seed=1
            )
            rec.put(f"recipe/{name}", [edit.record[k] for k in ("losses", "steps", "tokens_seen", "examples_seen")])


def _put_tuned(rec, key, family, method):
    model, tokenizer = made.model_of(family), made.tokenizer_of()
    rec.put(f"{key}/says", [method.name, method.describe(), method.capabilities, method.learning_rate, method.grid])
    rec.put(f"{key}/count", [method.parameter_count(model), method.parameter_count(model.config)])
    edit = method.fit(model, tokenizer, made.questions_of(6), seed=3)
    rec.put(f"{key}/losses", edit.record["losses"])
    rec.put(f"{key}/record", {k: v for k, v in edit.record.items() if k not in ("losses", "plan")})
    rec.put(f"{key}/plan", sorted(edit.record["plan"]))
    rec.put(f"{key}/tensors", dict(list(edit.tensors.items())[:40]))
    with edit.applied(model) as tuned:
        rec.put(f"{key}/logits", made.logits(tuned))
        mask = torch.ones(2, 9, dtype=torch.long)
        mask[0, :4] = 0
        with torch.no_grad():
            said = tuned.generate(
                made.tokens(), attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0, use_cache=True
            )
        rec.put(f"{key}/tokens", said[:, 9:].tolist())
    rec.put(f"{key}/mc", tt().evaluate.multiple_choice(model, tokenizer, made.questions_of(2), edit).as_dict()["rows"])
    with tempfile.TemporaryDirectory() as folder:
        edit.save(f"{folder}/edit")
        rec.put(f"{key}/files", sorted(p.name for p in Path(folder, "edit").iterdir()))
        again = tt().peft.TunedEdit.load(f"{folder}/edit")
    with again.applied(model) as tuned:
        rec.put(f"{key}/loaded logits", made.logits(tuned))
    rec.put(f"{key}/describe", again.describe())
    try:
        with edit.scaled(0.5).applied(model) as tuned:
            rec.put(f"{key}/half logits", made.logits(tuned))
    except tt().BadValue as refused:
        rec.put(f"{key}/half", str(refused))
    try:
        rec.put(f"{key}/merged logits", made.logits(edit.merged(model)))
    except tt().BadValue as refused:
        rec.put(f"{key}/merged", str(refused))


def baking(rec):
    """Baked checkpoints and lm-eval files."""
    for name in ("embedded", "llama", "gpt2"):
        model, tokenizer, _ = loaded(name)
        for key, shift in {"heads": head_shift(name).scaled(4), "residual": residual_shift(name)}.items():
            with rec.tried(f"{name}/{key}"), tempfile.TemporaryDirectory() as folder:
                prompts = [f"Q: {q.question}\nA:" for q in folklore(3)]
                baked = tt().export.checkpoint(model, tokenizer, shift, f"{folder}/baked", prompts=prompts)
                rec.put(f"{name}/{key}/says", baked.as_dict())
                plain_model = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/baked").eval()
                rec.put(f"{name}/{key}/logits", made.logits(plain_model))
                biases = {n: p for n, p in plain_model.named_parameters() if n.endswith(".bias") and bool(p.any())}
                rec.put(f"{name}/{key}/biases", dict(list(biases.items())[:40]))
                rec.put(f"{name}/{key}/files", sorted(p.name for p in Path(folder, "baked").iterdir()))
            with rec.tried(f"{name}/{key}/lm-eval"), tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "steered.pt")
                rec.put(f"{name}/{key}/hooks", tt().export.to_lm_eval(model, shift, path))
                rec.put(f"{name}/{key}/lm-eval", torch.load(path, weights_only=True))


def comparing(rec):
    """Small comparisons, tables, and the statistics on fixed numbers."""
    model, tokenizer, questions = loaded("llama")
    compare = tt().compare

    def judge(question, answer):
        return tt().evaluate.Verdict(float(len(answer) % 2), float(len(answer) % 3 > 0))

    meters = tt().evaluate.answer_meters(judge=judge, texts=made.TEXTS, max_new_tokens=4, divide_texts=True)
    with rec.tried("run"), tempfile.TemporaryDirectory() as folder:
        methods = [
            compare.FewShot(shots=(1, 2), draws=1),
            tt().steer.ITI(top_ks=(2, 4), alphas=(1, 400)),
            tt().steer.RandomDirection(draws=2),
        ]
        done = compare.run(
            model, tokenizer, questions[:10], methods, folds=2, seeds=(0,), trials=2, meters=meters, out=f"{folder}/run"
        )
        rec.put("run", done.as_dict())
        rec.put("run/trials", done.trials)
        rec.put("run/tests", done.tests)
        rec.put("run/files", sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*.json")))
        rec.put("run/again", compare.Comparison.load(f"{folder}/run").as_dict()["finished"])
    with rec.tried("methods"):
        stack = compare.Stack((compare.FewShot(), tt().steer.ITI(top_ks=(2,), alphas=(1,))))
        rec.put("methods/stack grid", stack.grid)
        for key, method in {
            "few-shot": compare.FewShot(), "retrieved": compare.RetrievedFewShot(), "stack": stack,
            "ready": compare.Ready(head_shift("llama")),
        }.items():  # fmt: skip
            edit = method.fit(model, tokenizer, questions[:10], knobs=method.grid[0], seed=1)
            rec.put(f"methods/{key}", [edit.name, edit.prompt("What is the colour of milk?"), edit.describe()])
    with rec.tried("table"):
        found = compare.table(
            model, tokenizer, questions[:3], [head_shift("llama").scaled(4)], judge=judge, texts=made.TEXTS[:3]
        )
        rec.put("table", found.as_dict())
        rec.put("table/markdown", found.to_markdown())
    _put_statistics(rec)


def _put_statistics(rec):
    drawn = np.random.default_rng(0)
    a = {f"q{i}": drawn.random(2) for i in range(30)}
    b = {f"q{i}": drawn.random(2) for i in range(5, 35)}
    with rec.tried("paired"):
        rec.put("paired/first", home("paired")(a, b))
        rec.put("paired/product", home("paired")(a, b, home("product"), seed=3))
        rec.put("paired/few", home("paired")({k: a[k] for k in list(a)[:9]}, b))
        rec.put("paired/same", home("paired")(a, a))
    with rec.tried("holm"):
        rec.put("holm", home("holm")([0.04, 0.001, 0.03, 0.5, 0.01]))
    with rec.tried("spread"):
        values = {s: {f"q{i}": drawn.random((2, 2)).tolist() for i in range(12)} for s in (0, 1, 2)}
        rec.put("spread/first", home("spread")(values).as_dict())
        rec.put("spread/product", home("spread")(values, home("product")).as_dict())
        rec.put("over draws", home("over_draws")([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9]).as_dict())
    with rec.tried("bootstrap"):
        rec.put("bootstrap", home("bootstrap")(drawn.random((20, 2)), home("product"), level=0.9, seed=4))
        rec.put("bootstrap mean", home("bootstrap_mean")(drawn.random(15)))
    with rec.tried("folds"):
        questions = folklore(20)
        rec.put("folds", [[t.fingerprint, h.fingerprint] for t, h in questions.folds(3, seed=1)])
        rec.put("split", [p.fingerprint for p in questions.split(test=0.3, seed=2)])
        rec.put("statements", [[s.text, s.label, s.answer_start] for s in questions[:2].statements("iti")])
        rec.put("examples", questions[:2].sft_examples())
        rec.put("folklore", [len(tt().datasets.folklore(p)) for p in ("all", "development", "final")])


def command_line(rec):
    """`--json`, exit codes and parameters of every verb."""
    from tests.golden import verbs

    verbs.record(rec, home("app"), made)


def refusals(rec):
    """What users are told."""
    from tests.golden import mistakes

    mistakes.record(rec, home("app"), made, tt(), loaded, head_shift, residual_shift)


def names(rec):
    """Public names and signatures."""
    import inspect

    for module in ("", "datasets", "evaluate", "models", "peft", "probes", "steer", "compare"):
        found = tt() if not module else getattr(tt(), module)
        for name in found.__all__:
            with rec.tried(f"{module or 'trimtab'}.{name}"):
                value = getattr(found, name)
                says = None
                if callable(value):
                    with contextlib.suppress(ValueError, TypeError):
                        says = [
                            [p.kind.name.lower(), p.name, "" if p.default is p.empty else repr(p.default)[:80]]
                            for p in inspect.signature(value).parameters.values()
                        ]
                rec.put(f"{module or 'trimtab'}.{name}", says)


SECTIONS = {
    "capture": capture,
    "probes": probes,
    "shifts": shifts,
    "steering": steering,
    "choices": choices,
    "drift": drift,
    "tuning": tuning,
    "baking": baking,
    "comparing": comparing,
    "cli": command_line,
    "refusals": refusals,
    "names": names,
}
TESTS = "tests"


def collected():
    """Return the names of all tests, also slow ones and those for a GPU."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts=", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return sorted(line for line in done.stdout.splitlines() if "::" in line)


def computed(section):
    """Return a section's values, as they come out of a JSON file, and the seconds it took."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    rec, start = Record(), time.perf_counter()
    rec.places = ((ROOT, "<repository>"), (sys.prefix, "<environment>"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            SECTIONS[section](rec)
    except Exception as cause:
        traceback.print_exc()
        rec["SECTION FAILED"] = traceback.format_exception_only(cause)[-1].strip()
    return json.loads(json.dumps(rec)), time.perf_counter() - start


def read(path):
    """Return the record in a file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def _write(path, sections):
    before = read(path) if path.is_file() else {}
    for section in sections:
        if section == TESTS:
            found = collected()
            (path.parent / "tests.txt").write_text("\n".join(found) + "\n", encoding="utf-8")
            print(f"{section}: {len(found)} names", flush=True)
            continue
        before[section], seconds = computed(section)
        failed = [key for key in before[section] if key.endswith("FAILED")]
        print(f"{section}: {len(before[section])} entries in {seconds:.1f} s", flush=True)
        for key in failed:
            print(f"  {section}/{key}: {before[section][key]}", flush=True)
    text = json.dumps({s: before[s] for s in SECTIONS if s in before}, separators=(",", ":"))
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def _check(path, sections):
    old, intended, used, wrong = read(path), written_json(path.parent / "intended.json"), set(), 0
    for section in sections:
        if section == TESTS:
            _list_tests(path.parent / "tests.txt")
            continue
        new, seconds = computed(section)
        found = list(differences(old.get(section, {}), new, section))
        meant = {d[0]: next((k for k in intended if d[0].startswith(k)), None) for d in found}
        used |= set(meant.values())
        unmeant = [d for d in found if meant[d[0]] is None]
        for key, before, now in unmeant:
            before, now = first_difference(before, now)
            print(f"{key}: {shown(_short(before))} -> {shown(_short(now))}")
        wrong += len(unmeant)
        said = f", {len(found) - len(unmeant)} intended" if len(found) > len(unmeant) else ""
        print(f"# {section}: {len(unmeant)} differences{said}, {seconds:.1f} s", flush=True)
    for key in intended:
        if key not in used and key.split("/")[0] in sections:
            print(f"# intended but not seen: {key}")
    return int(wrong > 0)


def _short(value):
    return f"tensor {value[TENSOR]}" if isinstance(value, dict) and TENSOR in value else value


def _list_tests(path):
    try:
        before, now = set(path.read_text(encoding="utf-8").split("\n")) - {""}, set(collected())
    except (OSError, subprocess.TimeoutExpired) as cause:
        print(f"# tests: not listed ({type(cause).__name__})")
        return
    for name in sorted(before - now):
        print(f"# missing test: {name}")
    for name in sorted(now - before):
        print(f"# new test: {name}")
    print(f"# tests: {len(now)}, {len(before - now)} missing, {len(now - before)} new (listed only)")


def main():
    """Write the record or check against it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="FILE")
    what.add_argument("--check", type=Path, metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS, TESTS], metavar="SECTION", help=", ".join(SECTIONS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    sections = given.only or [*SECTIONS, TESTS]
    return _write(given.write.resolve(), sections) if given.write else _check(given.check.resolve(), sections)


if __name__ == "__main__":
    sys.exit(main())
