"""The same questions and meters for every edit, and the same folds, seeds and trials for every method."""

from trimtab.compare.comparison import Comparison, merged
from trimtab.compare.controls import RandomTries, ShuffledLabels
from trimtab.compare.design import Design, Job
from trimtab.compare.on_quantized import OnQuantized
from trimtab.compare.rows import ResultRow
from trimtab.compare.running import run, run_job
from trimtab.compare.stack import Stack
from trimtab.compare.widened import Widened
from trimtab.evaluate.table import Row, Table, pooled, table
from trimtab.prompting import FewShot, RetrievedFewShot, RetrievedPassages
from trimtab.protocols import Control, Ready

__all__ = [
    "Comparison",
    "Control",
    "Design",
    "FewShot",
    "Job",
    "OnQuantized",
    "RandomTries",
    "Ready",
    "ResultRow",
    "RetrievedFewShot",
    "RetrievedPassages",
    "Row",
    "ShuffledLabels",
    "Stack",
    "Table",
    "Widened",
    "merged",
    "pooled",
    "run",
    "run_job",
    "table",
]
