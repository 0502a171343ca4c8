"""Text overlap as in the E2E NLG challenge: BLEU, NIST, METEOR, ROUGE-L, CIDEr of texts against several references."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

import numpy as np

from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate.figure import nist_of

MAX_NGRAM = 5
BLEU_COLUMNS = (
    *(f"hits_{n}" for n in range(1, 5)),
    *(f"ngrams_{n}" for n in range(1, 5)),
    "length",
    "reference_length",
)
NIST_COLUMNS = (
    *(f"information_{n}" for n in range(1, MAX_NGRAM + 1)),
    *(f"nist_ngrams_{n}" for n in range(1, MAX_NGRAM + 1)),
    "nist_length",
    "nist_reference_length",
)
PUNCTUATION = {
    *("''", "'", "``", "`", "-lrb-", "-rrb-", "-lcb-", "-rcb-"),
    *(".", "?", "!", ",", ":", "-", "--", "...", ";", "(", ")"),
}
"""What COCO's caption evaluation drops after tokenising."""
Tokenised = dict[int, list[str]]


@dataclass(frozen=True)
class TextOverlap:
    """Corpus scores of the E2E challenge's metrics."""

    bleu: float
    """BLEU-4 by sacrebleu, mteval-13a tokens in lower case, 0 to 1."""
    nist: float
    """NIST-5 as mteval-13a defines it (see `nist`)."""
    rouge_l: float
    """ROUGE-L by pycocoevalcap (COCO's: F with beta 1.2 of the best precision and the best recall)."""
    cider: float
    """CIDEr-D by pycocoevalcap."""
    meteor: float | None
    """METEOR 1.5 by pycocoevalcap; None where Java is not found: not computed. nltk's METEOR is another metric."""
    tokenizer: str
    """What ROUGE-L and CIDEr were tokenised with: "ptb (java)", as in the published rows, or "ptb-like"."""


def text_overlap(texts: Sequence[str], references: Sequence[Sequence[str]], *, java: bool | None = None) -> TextOverlap:
    """Return the scores of texts against their references.

    BLEU, ROUGE-L, CIDEr and METEOR are the libraries' and equal the official scorers' to rounding where Java is
    found. NIST is our own, because nltk's scores each text against its best single reference and takes the closest
    reference's length, where mteval pools the references and takes their mean length: on the stored example nltk
    gives 6.22 and mteval 7.79. Without Java a Penn-Treebank-like tokenizer stands in for Stanford's.

    Args:
        java: whether to use Java; if it is found, when not given.

    Raises:
        BadDataset: no texts, or a text without references.
        BadValue: the libraries are missing.
    """
    if not texts or len(texts) != len(references) or not all(references):
        raise BadDataset(f"{len(texts)} texts came with {len(references)} lists of references; give each text some")
    if isinstance(texts, str) or any(isinstance(several, str) for several in references):
        raise BadDataset("texts are a list, and each has a list of references; got a single text in place of a list")
    rows, about = overlap_rows(texts, references, java=java)
    means = {name: float(np.mean([row[name] for row in rows])) for name in ("rouge_l", "cider")}
    nist_means = np.array([[row[name] for name in NIST_COLUMNS] for row in rows]).mean(0)
    return TextOverlap(bleu=bleu(texts, references), nist=float(nist_of(nist_means)), **means, **about)


def overlap_rows(
    texts: Sequence[str], references: Sequence[Sequence[str]], *, java: bool | None = None
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Return for every text the counts and scores that corpus scores are made of, and METEOR with the tokenizer used.

    Raises:
        BadValue: the libraries are missing.
    """
    java = shutil.which("java") is not None if java is None else java
    try:
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as cause:
        raise BadValue("text overlap needs sacrebleu and pycocoevalcap: pip install 'trimtab[nlg]'") from cause
    ours, theirs = (_stanford if java else _treebank)(texts, references)
    both = zip(Rouge().compute_score(theirs, ours)[1], Cider().compute_score(theirs, ours)[1], strict=True)
    counts = zip(_bleu_counts(texts, references), nist_counts(texts, references), both, strict=True)
    names = (*BLEU_COLUMNS, *NIST_COLUMNS, "rouge_l", "cider")
    rows = [dict(zip(names, map(float, (*one, *two, *three)), strict=True)) for one, two, three in counts]
    meteor = _meteor(ours, theirs) if java else None
    return rows, {"meteor": meteor, "tokenizer": "ptb (java)" if java else "ptb-like"}


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return corpus BLEU-4 (Papineni et al. 2002) from 0 to 1: mteval-13a tokens in lower case."""
    from sacrebleu.metrics.bleu import BLEU

    # sacrebleu wants one stream per reference number; texts have different numbers of them
    longest = max(map(len, references))
    streams: list[list[str | None]] = [[r[i] if i < len(r) else None for r in references] for i in range(longest)]
    scorer = BLEU(lowercase=True, tokenize="13a", force=True)
    return scorer.corpus_score(list(texts), streams).score / 100  # pyright: ignore[reportArgumentType]


def _bleu_counts(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[float | int, ...]]:
    from sacrebleu.metrics.bleu import BLEU

    scorer = BLEU(lowercase=True, tokenize="13a", force=True)
    scores = (
        scorer.corpus_score([text], [[r] for r in several]) for text, several in zip(texts, references, strict=True)
    )
    return [(*score.counts, *score.totals, score.sys_len, score.ref_len) for score in scores]


def nist(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return corpus NIST-5 (Doddington 2002) as mteval-13a computes it: mteval-13a tokens in lower case.

    An n-gram weighs log2 of how often its first n-1 words stand in all references over how often it does itself;
    it counts at most as often as in the reference that has it most often. The brevity penalty is 0.5 where the texts
    are two thirds of the references' mean length.
    """
    return float(nist_of(np.array(nist_counts(texts, references)).mean(0)))


def nist_counts(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[float | int, ...]]:
    """Return for every text the columns `NIST_COLUMNS`; n-grams weigh what they do in all references."""
    tokenize = _thirteen_a()
    words = [tokenize(text) for text in texts]
    others = [[tokenize(r) for r in several] for several in references]
    counts = Counter[tuple[str, ...]]()
    for several in others:
        counts[()] += sum(map(len, several))
        counts.update(gram for one in several for n in range(1, MAX_NGRAM + 1) for gram in _ngrams(one, n))
    found = []
    for own, several in zip(words, others, strict=True):
        info, given = [], []
        for n in range(1, MAX_NGRAM + 1):
            most: Counter[tuple[str, ...]] = Counter()
            for one in several:
                most |= Counter(_ngrams(one, n))
            grams = Counter(_ngrams(own, n))
            info.append(sum(k * log2(counts[g[:-1]] / counts[g]) for g, k in (grams & most).items()))
            given.append(grams.total())
        found.append((*info, *given, len(own), sum(map(len, several)) / len(several)))
    return found


def _ngrams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _thirteen_a() -> Callable[[str], list[str]]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    split = Tokenizer13a()
    return lambda text: split(text.lower()).split()


def _treebank(texts: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Tokenised, Tokenised]:
    return {i: [ptb_like(t)] for i, t in enumerate(texts)}, {i: [*map(ptb_like, r)] for i, r in enumerate(references)}


def ptb_like(text: str) -> str:
    """Return the text as COCO's evaluation sees it, about: Penn Treebank tokens, lower case, no punctuation.

    Stanford's tokenizer, which the official scores use, also turns the pound sign into #; so does this.
    """
    from nltk.tokenize import TreebankWordTokenizer

    # nltk splits a full stop off the end of the text only; Stanford's off every sentence
    split = re.sub(r"([.!?])(\s|$)", r" \1 ", text.lower().replace("£", " # "))
    split = re.sub(r"(?<=\d)-(?=[\d\s#])", " - ", split)
    return " ".join(w for w in TreebankWordTokenizer().tokenize(split) if w not in PUNCTUATION)


def _stanford(texts: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Tokenised, Tokenised]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    # one caption may not hold a line break: the tokenizer's lines are its records
    ours = tokenizer.tokenize({i: [{"caption": _one_line(t)}] for i, t in enumerate(texts)})
    theirs = tokenizer.tokenize({i: [{"caption": _one_line(t)} for t in r] for i, r in enumerate(references)})
    return ours, theirs


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _meteor(ours: Tokenised, theirs: Tokenised) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    with contextlib.redirect_stdout(io.StringIO()):
        scorer: Any = Meteor()
        score = float(scorer.compute_score(theirs, ours)[0])
        scorer.close() if hasattr(scorer, "close") else None
    return score
