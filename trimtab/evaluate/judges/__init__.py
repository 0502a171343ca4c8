"""Judges: is a generated answer true, and does it say anything?"""

from trimtab.evaluate.judges.endpoint import EndpointJudge
from trimtab.evaluate.judges.exact import ABSTENTIONS, exact_judge, normalised
from trimtab.evaluate.judges.local import LocalJudge
from trimtab.evaluate.judges.tfidf import TfidfJudge
from trimtab.evaluate.judges.verdicts import Judge, Verdict, judge_line, judge_record

__all__ = [
    "ABSTENTIONS",
    "EndpointJudge",
    "Judge",
    "LocalJudge",
    "TfidfJudge",
    "Verdict",
    "exact_judge",
    "judge_line",
    "judge_record",
    "normalised",
]
