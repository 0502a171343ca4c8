"""Ways of prompting as Methods: few-shot, nearest few-shot, passages."""

from trimtab.prompting.few_shot import FewShot, RetrievedFewShot, RetrievedPassages

__all__ = ["FewShot", "RetrievedFewShot", "RetrievedPassages"]
