"""Measuring an edited model; every kind of edit goes through the same door."""

from trimtab.evaluate.drift import Drift, drift, drifts
from trimtab.evaluate.generation import GeneratedAnswers, generate_answers
from trimtab.evaluate.judges import Judge, Verdict, exact_judge
from trimtab.evaluate.multiple_choice import MultipleChoice, multiple_choice, multiple_choice_many

__all__ = [
    "Drift",
    "GeneratedAnswers",
    "Judge",
    "MultipleChoice",
    "Verdict",
    "drift",
    "drifts",
    "exact_judge",
    "generate_answers",
    "multiple_choice",
    "multiple_choice_many",
]
