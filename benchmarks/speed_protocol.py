"""ITI's whole protocol, with the seconds of every stage, and the same work one prompt at a time on a sample."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from speed_common import answer_pairs, harness_like, plain_forward, timed

from trimtab.activations import HeadActivations
from trimtab.datasets import QuestionSet, neutral_texts
from trimtab.datasets.truthfulqa import N_QUESTIONS, Fold, iti_folds
from trimtab.edits.combined import NoEdit
from trimtab.engine.capture import capture_heads
from trimtab.evaluate import drifts, generate_answers, multiple_choice_many
from trimtab.probes import fit_logistic
from trimtab.steer import fit_shift


def protocol(w: Any) -> dict[str, Any]:
    """Two folds of fitting and measuring baseline and ITI; judges are not counted."""
    seconds: dict[str, float] = {}
    questions, texts = w.questions, neutral_texts(16 if w.tiny else 240)
    new = 8 if w.tiny else 50

    def stage(name: str, work: Any) -> Any:
        taken, result = timed(work)
        seconds[name] = seconds.get(name, 0.0) + taken
        return result

    start = time.perf_counter()
    acts = stage("capture", lambda: capture_heads(w.model, w.tokenizer, questions.statements()))
    for fold in folds_of(questions):
        train, validation = (of_questions(acts, questions, part) for part in (fold.train, fold.validation))
        probes = stage("probes", lambda t=train, v=validation: fit_logistic(t, validation=v))
        shift = stage("shift", lambda t=train, p=probes: fit_shift(t, p, top_k=min(48, p.accuracy.numel())))
        edits, test = [NoEdit(), shift.scaled(15)], questions.select(fold.test)
        stage(
            "multiple choice",
            lambda e=edits, t=test: multiple_choice_many(w.model, w.tokenizer, t, e, convention="lm-eval"),
        )
        for edit in edits:
            stage(
                f"answers of {new} tokens",
                lambda e=edit, t=test: generate_answers(w.model, w.tokenizer, t, e, max_new_tokens=new, batch_size=128),
            )
        stage("CE and KL", lambda e=edits: drifts(w.model, w.tokenizer, e, texts=texts))
    total = time.perf_counter() - start
    slow = one_at_a_time(w, acts, texts, new)
    return {
        "questions": len(questions),
        "statements": len(acts),
        "seconds by stage": seconds,
        "total": total,
        "one at a time, scaled from a sample": slow,
        "one at a time, total": sum(slow.values()),
        "one at a time / trimtab": sum(slow.values()) / total,
    }


def folds_of(questions: QuestionSet) -> list[Fold]:
    """Return ITI's two folds of TruthfulQA; for other questions halves, drawn on in the same way."""
    if len(questions) == N_QUESTIONS:
        return iti_folds()
    halves = np.array_split(np.arange(len(questions)), 2)
    folds = []
    for held, rest in ((halves[0], halves[1]), (halves[1], halves[0])):
        drawn = np.random.default_rng(0).permutation(rest).tolist()
        cut = int(0.8 * len(drawn))
        folds.append(Fold(drawn[:cut], drawn[cut:], held.tolist()))
    return folds


def of_questions(acts: HeadActivations, questions: QuestionSet, part: Sequence[int]) -> HeadActivations:
    """Return the activations of some questions."""
    chosen = {questions[i].question for i in part}
    return acts.select(torch.tensor([group in chosen for group in acts.groups]))


def one_at_a_time(w: Any, acts: HeadActivations, texts: list[str], new: int) -> dict[str, float]:
    """Return the seconds of the same protocol one prompt at a time, measured on a sample and scaled to all."""
    n = 4 if w.tiny else 12
    some, statements = w.questions[:n], w.questions.statements()
    ids = [w.tokenizer(s.text)["input_ids"] for s in statements[:: max(1, len(statements) // (8 * n))]]
    scale = len(w.questions) / n
    captured, _ = timed(lambda: [plain_forward(w.model, [row], 1) for row in ids])
    x, y = acts.values[:, 0].double().numpy(), acts.labels.numpy()
    part = slice(0, int(0.4 * len(y)))  # what a fold trains on
    fitted, _ = timed(lambda: [LogisticRegression(max_iter=1000).fit(x[part, h], y[part]) for h in range(4)])
    scored, _ = timed(lambda: harness_like(w.model, w.tokenizer, answer_pairs(some), 1))
    asked, _ = timed(lambda: generate_answers(w.model, w.tokenizer, some, max_new_tokens=new, batch_size=1))
    moved, _ = timed(lambda: drifts(w.model, w.tokenizer, [NoEdit()], texts=texts[:n], batch_size=1))
    heads = acts.values.shape[1] * acts.values.shape[2]
    # baseline and ITI on every question once over the folds; CE and KL take three forwards a text in each fold
    return {
        "capture": captured * len(statements) / len(ids),
        "probes": fitted / 4 * heads * 2,
        "multiple choice": 2 * scored * scale,
        f"answers of {new} tokens": 2 * asked * scale,
        "CE and KL": moved * len(texts) / n * 3 * 2,
    }
