"""The same questions and meters for every edit."""

from trimtab.compare.iti import ItiRun, iti_run
from trimtab.compare.table import Row, Table, pooled, table

__all__ = ["ItiRun", "Row", "Table", "iti_run", "pooled", "table"]
