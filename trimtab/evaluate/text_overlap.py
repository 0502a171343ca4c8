"""Text overlap as in the E2E NLG challenge: BLEU, NIST, METEOR, ROUGE-L, CIDEr of texts against several references."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, log, log2
from typing import Any

from trimtab.errors import BadDataset, BadValue

MAX_NGRAM = 5
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

    def as_dict(self) -> dict[str, float | str | None]:
        """Return plain values for JSON."""
        return dict(vars(self))

    def cells(self) -> list[str]:
        """Return BLEU, NIST, METEOR, ROUGE-L and CIDEr as the published tables print them."""
        meteor = "not computed (no Java)" if self.meteor is None else f"{100 * self.meteor:.1f}"
        return [f"{100 * self.bleu:.1f}", f"{self.nist:.2f}", meteor, f"{100 * self.rouge_l:.1f}", f"{self.cider:.2f}"]


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
    java = shutil.which("java") is not None if java is None else java
    try:
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as cause:
        raise BadValue("text overlap needs sacrebleu and pycocoevalcap: pip install 'trimtab[nlg]'") from cause
    ours, theirs = (_stanford if java else _treebank)(texts, references)
    return TextOverlap(
        bleu=bleu(texts, references),
        nist=nist(texts, references),
        rouge_l=float(Rouge().compute_score(theirs, ours)[0]),
        cider=float(Cider().compute_score(theirs, ours)[0]),
        meteor=_meteor(ours, theirs) if java else None,
        tokenizer="ptb (java)" if java else "ptb-like",
    )


def bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return corpus BLEU-4 (Papineni et al. 2002) from 0 to 1: mteval-13a tokens in lower case."""
    from sacrebleu.metrics.bleu import BLEU

    # sacrebleu wants one stream per reference number; texts have different numbers of them
    longest = max(map(len, references))
    streams: list[list[str | None]] = [[r[i] if i < len(r) else None for r in references] for i in range(longest)]
    scorer = BLEU(lowercase=True, tokenize="13a", force=True)
    return scorer.corpus_score(list(texts), streams).score / 100  # pyright: ignore[reportArgumentType]


def nist(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return corpus NIST-5 (Doddington 2002) as mteval-13a computes it: mteval-13a tokens in lower case.

    An n-gram weighs log2 of how often its first n-1 words stand in all references over how often it does itself;
    it counts at most as often as in the reference that has it most often. The brevity penalty is 0.5 where the texts
    are two thirds of the references' mean length.
    """
    tokenize = _thirteen_a()
    hits: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(MAX_NGRAM)]
    given, counts = [0] * MAX_NGRAM, Counter[tuple[str, ...]]()
    length, mean_length = 0, 0.0
    for text, several in zip(texts, references, strict=True):
        words, others = tokenize(text), [tokenize(r) for r in several]
        length += len(words)
        mean_length += sum(map(len, others)) / len(others)
        counts[()] += sum(map(len, others))
        for n in range(1, MAX_NGRAM + 1):
            grams, pools = Counter(_ngrams(words, n)), [Counter(_ngrams(o, n)) for o in others]
            most: Counter[tuple[str, ...]] = Counter()
            for pool in pools:
                counts.update(pool)
                most |= pool
            hits[n - 1] += grams & most
            given[n - 1] += grams.total()
    info = (sum(k * log2(counts[g[:-1]] / counts[g]) for g, k in grams.items()) for grams in hits)
    precision = sum(i / n for i, n in zip(info, given, strict=True) if n)
    if length == 0:
        return 0.0
    beta = log(0.5) / log(1.5) ** 2
    return precision * exp(beta * min(log(length / mean_length), 0.0) ** 2)


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
