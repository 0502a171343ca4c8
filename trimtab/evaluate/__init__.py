"""Measuring an edited model; every kind of edit goes through the same door."""

from trimtab.engine.conversation import Turn, answers, prompt_ids, reply
from trimtab.evaluate.contrast import PairScores, Scorer, TextScores, contrast, score_texts
from trimtab.evaluate.counted import CountedAnswers, behaviour_meter, refusal_meters
from trimtab.evaluate.defaults import answer_meters, default_meters, pair_meters, prompt_meters
from trimtab.evaluate.drift import Drift, drift, drifts
from trimtab.evaluate.elsewhere import capability_meters, off_target_meters
from trimtab.evaluate.factual import fact_meters, known_facts, says
from trimtab.evaluate.generation import GeneratedAnswers, generate_answers, generate_answers_many, strict_meters
from trimtab.evaluate.judges.exact import exact_judge
from trimtab.evaluate.multiple_choice import MultipleChoice, multiple_choice, multiple_choice_many
from trimtab.evaluate.two_way import TwoWayChoices
from trimtab.evaluate.wording import wording_meters
from trimtab.protocols import Judge, Verdict

__all__ = [
    "CountedAnswers",
    "Drift",
    "GeneratedAnswers",
    "Judge",
    "MultipleChoice",
    "PairScores",
    "Scorer",
    "TextScores",
    "Turn",
    "TwoWayChoices",
    "Verdict",
    "answer_meters",
    "answers",
    "behaviour_meter",
    "capability_meters",
    "contrast",
    "default_meters",
    "drift",
    "drifts",
    "exact_judge",
    "fact_meters",
    "generate_answers",
    "generate_answers_many",
    "known_facts",
    "multiple_choice",
    "multiple_choice_many",
    "off_target_meters",
    "pair_meters",
    "prompt_ids",
    "prompt_meters",
    "refusal_meters",
    "reply",
    "says",
    "score_texts",
    "strict_meters",
    "wording_meters",
]
