"""Published protocols run whole, and their printed figures beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.compare.design import Parts
from trimtab.datasets.item_set import ItemSet
from trimtab.datasets.primer import INSTRUCTION, QA_PRIMER
from trimtab.datasets.questions import QuestionSet
from trimtab.datasets.statements import Statement
from trimtab.datasets.truthfulqa import N_QUESTIONS, iti_folds
from trimtab.edits.combined import NoEdit, Stacked
from trimtab.edits.prompts import Prompted
from trimtab.edits.vectors import HeadShift
from trimtab.engine.capture import capture_heads
from trimtab.errors import BadDataset
from trimtab.evaluate.defaults import answer_meters
from trimtab.evaluate.table import measurements_of
from trimtab.models.identity import fingerprint, name_of
from trimtab.plain_values import hash_of, json_value
from trimtab.progress import tracked
from trimtab.protocols import Edit, Measured, Meter, Method
from trimtab.published.figures import DEVIATIONS, TABLE_1, TWO_FOLD
from trimtab.published.reproduction import Reproduction, Run, pooled_runs
from trimtab.steer.fitting import fit_shift
from trimtab.steer.sites import ReadAs, read_sites
from trimtab.storage import write_errors, write_json

SHARE = 0.05


@dataclass(frozen=True)
class PublishedIti:
    """The numbers that the published protocols set."""

    top_k: int = 48
    """Heads to shift."""
    alpha: float | int = 15.0
    """Strength, in sigmas of the protocol's own prompt bank."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the runs of Table 1; the two folds have seed 42."""


def iti_two_fold(
    model: Any,
    tokenizer: Any,
    questions: QuestionSet,
    *,
    meters: Sequence[Meter] | None = None,
    numbers: PublishedIti | None = None,
    keep: Path | None = None,
) -> Reproduction:
    """Return honest_llama's two-fold protocol with seed 42: mass-mean directions, K 48, alpha 15, its sigma bank.

    TruthfulQA's 817 questions are split as published (`iti_folds`); another number by the same rule.

    Args:
        keep: folder for the folds that are done, where the same call finds them.

    Raises:
        BadDataset: too few questions for two folds with a validation part each.
        BadValue: more heads asked for than the model has.
    """
    meters, numbers = meters or answer_meters(convention="iti"), numbers or PublishedIti()
    parts = _two_folds(questions)
    bank = sigma_bank(questions, seed=42)
    options = {"top_k": numbers.top_k, "alpha": numbers.alpha, "seed": 42}
    setting = _setting(model, questions, parts, meters, options)

    def run_of(fold: int) -> Run:
        shift = _iti(model, tokenizer, parts[fold], bank, numbers, seed=42)
        return _measured(model, tokenizer, parts[fold].test, {"Baseline": NoEdit(), "ITI": shift}, meters)

    made_from = [fingerprint(model), setting]
    runs = [_kept(keep, fold, made_from, run_of) for fold in tracked(range(2), "folds")]
    # both folds belong to one seed: together they measure every question once
    return Reproduction(
        "iti-2fold", pooled_runs([runs], meters), tuple(meters), TWO_FOLD.get(name_of(model), {}), DEVIATIONS, setting
    )


def iti_table_1(
    model: Any,
    tokenizer: Any,
    questions: QuestionSet,
    *,
    sft: Method,
    meters: Sequence[Meter] | None = None,
    numbers: PublishedIti | None = None,
    keep: Path | None = None,
) -> Reproduction:
    """Return Table 1 of the ITI paper: 5 % of the questions to fit on, three runs, alpha 15.

    Rows: Baseline, SFT (`sft`: true answers towards, false ones away, mixed with plain text), few-shot (five of the
    questions to fit on, after the instruction), ITI, few-shot + ITI.

    Args:
        keep: folder for the runs that are done, where the same call finds them.

    Raises:
        BadDataset: 5 % of the questions are fewer than three.
    """
    meters, numbers = meters or answer_meters(convention="iti"), numbers or PublishedIti()
    parts = {seed: _five_percent(questions, seed) for seed in numbers.seeds}
    bank = sigma_bank(questions, seed=42)
    setting = _setting(model, questions, [*parts.values()], meters, {**asdict(numbers), "sft": repr(sft)})

    def run_of(seed: int) -> Run:
        part = parts[seed]
        shift = _iti(model, tokenizer, part, bank, numbers, seed=seed)
        shots = [*part.train, *part.validation][:5]
        few_shot = Prompted(tuple((q.question, q.best_answer) for q in shots), instruction=INSTRUCTION)
        tuned: Any = sft.fit(model, tokenizer, _joined(part), seed=seed)
        edits: dict[str, Edit] = {
            "Baseline": NoEdit(),
            "SFT": tuned,
            "Few-shot": few_shot,
            "ITI": shift,
            "Few-shot + ITI": Stacked((few_shot, shift)),
        }
        return _measured(model, tokenizer, part.test, edits, meters)

    made_from = [fingerprint(model), setting]
    runs = [[_kept(keep, seed, made_from, run_of)] for seed in tracked(numbers.seeds, "runs")]
    deviations = (
        *DEVIATIONS,
        "SFT follows the paper's words (its code was not published); few-shot shows five of the fitted questions.",
    )
    return Reproduction(
        "iti-table-1", pooled_runs(runs, meters), tuple(meters), TABLE_1.get(name_of(model), {}), deviations, setting
    )


def sigma_bank(questions: QuestionSet, *, seed: int) -> list[Statement]:
    """Return honest_llama's `tqa_gen_end_q`: every answer followed by one random other question per question.

    Answers stand without their final period, as in the `generation` configuration of the dataset that it was made from.
    Sigma is measured at the last token of that next question; labels are not used.
    """
    draw = np.random.default_rng(seed).integers(len(questions), size=len(questions))
    return [
        Statement(
            f"Q: {q.question} A: {answer.removesuffix('.')}", f"Q: {questions[int(other)].question}", label, q.question
        )
        for q, other in zip(questions, draw, strict=True)
        for label, answers in ((True, q.correct), (False, q.incorrect))
        for answer in answers
    ]


def _two_folds(questions: QuestionSet) -> list[Parts]:
    n = len(questions)
    if n == N_QUESTIONS:
        return [Parts(*(questions.select(rows) for rows in fold)) for fold in iti_folds()]
    if n < 6:
        raise BadDataset(f"two folds with a validation part each need 6 questions or more, got {n}")
    rng, halves = np.random.RandomState(42), np.array_split(np.arange(n), 2)
    parts = []
    for held, rest in ((halves[0], halves[1]), (halves[1], halves[0])):
        train = rng.choice(rest, size=int(len(rest) * 0.8), replace=False)
        validation = np.setdiff1d(rest, train)
        parts.append(Parts(questions.select(train), questions.select(validation), questions.select(held)))
    return parts


def _five_percent(questions: QuestionSet, seed: int) -> Parts:
    n = round(SHARE * len(questions))
    if n < 3:
        raise BadDataset(f"5 % of {len(questions)} questions is {n}; two to fit on and one to rank on are needed")
    order = np.random.default_rng(seed).permutation(len(questions))
    n_validation = max(1, n // 5)
    places = order[: n - n_validation], order[n - n_validation : n], np.sort(order[n:])
    return Parts(*(questions.select(p) for p in places))


def _kept(keep: Path | None, number: int, made_from: Any, make: Callable[[int], Run]) -> Run:
    """Return a run as it stands in the folder, where one made from the same does; else made, and written there."""
    file = None if keep is None else keep / f"{hash_of(made_from)[:12]}-{number}.json"
    if file is not None and file.is_file():
        held = json_value(file.read_text(encoding="utf-8"))
        return {row: {k: m and Measured(**m) for k, m in found.items()} for row, found in held.items()}
    run = make(number)
    if file is not None:
        with write_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {row: {k: m and asdict(m) for k, m in found.items()} for row, found in run.items()})
    return run


def _joined(part: Parts) -> ItemSet[Any]:
    return part.train.with_items((*part.train, *part.validation))


def _iti(
    model: Any, tokenizer: Any, part: Parts, bank: Sequence[Statement], numbers: PublishedIti, *, seed: int
) -> HeadShift:
    found = read_sites(model, tokenizer, part.train, part.validation, ReadAs(form="iti"), seed=seed)
    spread_over = capture_heads(model, tokenizer, bank)
    # the direction is that of training and validation questions together
    shift = fit_shift(found.all_acts, found.probes, top_k=numbers.top_k, sigma_statements=spread_over, seed=seed)
    return shift.scaled(numbers.alpha)


def _asked(edit: Edit) -> Edit:
    """Return the edit asked in ITI's context, its instruction and primer before the question, if it does not prompt."""
    if edit.prompt("?") is not None:
        return edit
    pairs = tuple((q.removeprefix("Q: "), a) for q, a in (block.split("\nA: ") for block in QA_PRIMER.split("\n\n")))
    return Stacked((Prompted(pairs, INSTRUCTION), edit), name=edit.name)


def _measured(
    model: Any, tokenizer: Any, test: ItemSet[Any], edits: Mapping[str, Edit], meters: Sequence[Meter]
) -> Run:
    # drift is the edit's own: the context in which the protocol asks is none of it
    answering, beside = [m for m in meters if not m.collateral], [m for m in meters if m.collateral]
    found = measurements_of(model, tokenizer, test, [_asked(edit) for edit in edits.values()], answering)
    drifted = measurements_of(model, tokenizer, test, list(edits.values()), beside)
    return {name: {**one, **other} for name, one, other in zip(edits, found, drifted, strict=True)}


def _setting(
    model: Any, questions: QuestionSet, parts: Sequence[Parts], meters: Sequence[Meter], options: dict[str, Any]
) -> dict[str, Any]:
    made_on = fingerprint(model)
    return {
        "model": {k: v for k, v in made_on.items() if k != "sample"},
        "parameters": model.num_parameters(),
        "questions": {"name": questions.name, "n": len(questions), "fingerprint": questions.fingerprint},
        "parts": [[len(p) for p in part] for part in parts],
        "meters": [meter.describe() for meter in meters],
        **options,
    }
