"""Judges: is a generated answer true, and does it say anything?"""

from trimtab.evaluate.judges.checking import judge_line
from trimtab.evaluate.judges.endpoint import EndpointJudge
from trimtab.evaluate.judges.exact import ABSTENTIONS, ExactJudge, exact_judge, normalised
from trimtab.evaluate.judges.local import LocalJudge
from trimtab.evaluate.judges.tfidf import TfidfJudge
from trimtab.protocols import Judge, Verdict

__all__ = [
    "ABSTENTIONS",
    "EndpointJudge",
    "ExactJudge",
    "Judge",
    "LocalJudge",
    "TfidfJudge",
    "Verdict",
    "exact_judge",
    "judge_line",
    "normalised",
]
