"""Measuring an edited model; every kind of edit goes through the same door."""

from trimtab.engine.conversation import Turn, answers, prompt_ids, reply
from trimtab.evaluate.drift import Drift, drift, drifts
from trimtab.evaluate.generation import GeneratedAnswers, generate_answers, generate_answers_many
from trimtab.evaluate.judges.exact import exact_judge
from trimtab.evaluate.judges.verdicts import Judge, Verdict
from trimtab.evaluate.multiple_choice import MultipleChoice, multiple_choice, multiple_choice_many
from trimtab.evaluate.pairs import PairScores, Scorer, TextScores, contrast, score_texts

__all__ = [
    "Drift",
    "GeneratedAnswers",
    "Judge",
    "MultipleChoice",
    "PairScores",
    "Scorer",
    "TextScores",
    "Turn",
    "Verdict",
    "answers",
    "contrast",
    "drift",
    "drifts",
    "exact_judge",
    "generate_answers",
    "generate_answers_many",
    "multiple_choice",
    "multiple_choice_many",
    "prompt_ids",
    "reply",
    "score_texts",
]
