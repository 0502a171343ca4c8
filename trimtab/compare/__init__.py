"""The same questions and meters for every edit, and the same folds, seeds and trials for every method."""

from trimtab.compare.comparison import Comparison, merged
from trimtab.compare.design import Design, Job, Meters
from trimtab.compare.rows import ResultRow
from trimtab.compare.running import run, run_job
from trimtab.compare.variants import OnQuantized, Widened
from trimtab.evaluate.table import Row, Table, pooled, table
from trimtab.prompting.few_shot import FewShot, RetrievedFewShot, RetrievedPassages, Stack
from trimtab.protocols import Control, Ready

__all__ = [
    "Comparison",
    "Control",
    "Design",
    "FewShot",
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
    "merged",
    "pooled",
    "run",
    "run_job",
    "table",
]
