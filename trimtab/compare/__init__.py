"""The same questions and meters for every edit, and the same folds, seeds and trials for every method."""

from trimtab.compare.control import Control
from trimtab.compare.design import Design, Job, Meters
from trimtab.compare.iti import ItiRun, iti_run
from trimtab.compare.methods import FewShot, Ready, RetrievedFewShot, RetrievedPassages, Stack
from trimtab.compare.protocol import run, run_job
from trimtab.compare.results import Comparison, merged
from trimtab.compare.rows import ResultRow
from trimtab.compare.table import Row, Table, pooled, table
from trimtab.compare.tuning import OnQuantized, Widened

__all__ = [
    "Comparison",
    "Control",
    "Design",
    "FewShot",
    "ItiRun",
    "Job",
    "Meters",
    "OnQuantized",
    "Ready",
    "ResultRow",
    "RetrievedFewShot",
    "RetrievedPassages",
    "Row",
    "Stack",
    "Table",
    "Widened",
    "iti_run",
    "merged",
    "pooled",
    "run",
    "run_job",
    "table",
]
