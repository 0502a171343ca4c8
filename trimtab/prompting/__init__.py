"""Prompting as methods: an instruction or a persona, few-shot, the nearest questions, passages, new facts."""

from trimtab.prompting.facts_in_context import FactsInContext
from trimtab.prompting.few_shot import FewShot
from trimtab.prompting.instruction import Instruction, Persona
from trimtab.prompting.nearest_few_shot import RetrievedFewShot
from trimtab.prompting.passages import RetrievedPassages

__all__ = ["FactsInContext", "FewShot", "Instruction", "Persona", "RetrievedFewShot", "RetrievedPassages"]
