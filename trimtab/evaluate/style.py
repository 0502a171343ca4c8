"""What can be told of answers without a question or a model: their words and their length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from trimtab.datasets.questions import Statement
from trimtab.devices import one_thread


class AnswerStyle:
    """A logistic regression on the answers' words, word pairs (TF-IDF) and length, which never sees a question.

    A method that reaches no more than it on held-out questions has shown nothing but a taste for how true answers
    are worded (Evans, Chua & Lin 2025 reach 79.6 % on TruthfulQA's pairs so).
    """

    @one_thread("sklearn")
    def __init__(self, statements: Sequence[Statement]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline, make_union
        from sklearn.preprocessing import FunctionTransformer, StandardScaler

        # a word of one letter counts too, so that no vocabulary is empty
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\S+")
        length = make_pipeline(FunctionTransformer(_lengths), StandardScaler())
        model = make_pipeline(make_union(words, length), LogisticRegression(C=4.0, max_iter=1000))
        self.model: Any = model.fit([s.answer for s in statements], [s.label for s in statements])

    @one_thread("sklearn")
    def logprobs(self, answers: Sequence[str]) -> Float[np.ndarray, " answer"]:
        """Return the log-probability that each answer is a true one."""
        return self.model.predict_log_proba(list(answers))[:, 1]


def _lengths(texts: Sequence[str]) -> Float[np.ndarray, "text 2"]:
    return np.log1p(np.array([[len(text), len(text.split())] for text in texts], dtype=np.float64))
