"""The same questions and meters for every edit."""

from trimtab.compare.table import Row, Table, pooled, table

__all__ = ["Row", "Table", "pooled", "table"]
