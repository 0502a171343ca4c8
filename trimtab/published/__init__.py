"""Protocols and figures of papers, and the toolkit's own demonstration."""

from trimtab.published.iti_run import ItiRun, ItiSettings, iti_run

__all__ = ["ItiRun", "ItiSettings", "iti_run"]
