"""Drift: how far an edit moves the model on neutral text, as cross-entropy and KL divergence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from trimtab.datasets.asking import PLAIN
from trimtab.datasets.prose import neutral_texts, validation_texts
from trimtab.edits.combined import NoEdit
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate.divergence import divergence_rows
from trimtab.evaluate.figure import Figure
from trimtab.intervals import Estimate, bootstrap_mean
from trimtab.models.processes import over_processes
from trimtab.models.tokens import context_length, encode_all
from trimtab.plain_values import hash_of
from trimtab.protocols import Edit, Findings, Measured, Meter


@dataclass(frozen=True)
class Drift:
    """Means over tokens, in nats, with 95 % bootstrap intervals over texts."""

    ce: Estimate
    """Cross-entropy of the edited model on the texts."""
    kl: Estimate
    """KL(unedited || edited) of the next-token distributions."""
    kl95: Estimate
    """The 95th percentile of KL over a text's tokens, averaged over texts."""
    per_text: tuple[tuple[float, float], ...]
    """(CE, KL) of each text."""
    per_text_kl95: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "ce": self.ce.as_dict(),
            "kl": self.kl.as_dict(),
            "kl95": self.kl95.as_dict(),
            "per_text": [list(p) for p in self.per_text],
        }


@dataclass(frozen=True)
class NeutralTexts(Meter):
    """Measures drift: a row for every neutral text with its CE and KL, behind what an edit sets before it."""

    texts: Sequence[str] | None = None
    """To measure on; trimtab's own neutral prose if not given."""
    choosing_texts: Sequence[str] | None = None
    """To choose settings on; another part of trimtab's own if not given."""
    max_tokens: int = 128
    batch_size: int = 32
    findings: Findings | None = field(default=None, compare=False, repr=False)
    """Where what the unedited model says of the texts is kept."""
    name: ClassVar[str] = "drift"
    columns: ClassVar[Sequence[str]] = ("ce", "kl", "kl95")

    @property
    def choosing(self) -> Meter:
        """The same on the texts for choosing."""
        return replace(self, texts=tuple(self.choosing_texts or validation_texts()))

    def with_findings(self, findings: Findings) -> Meter:
        """Return the meter that keeps there what the unedited model says of the texts."""
        return replace(self, findings=findings)

    def measure(
        self,
        model: Any,
        tokenizer: Any,
        items: Any,
        edits: Sequence[Edit],
        *,
        asking: str = "plain",
        seed: int = 0,
    ) -> list[Measured]:
        """Return every text's CE and KL under every edit."""
        how = {"max_tokens": self.max_tokens, "batch_size": self.batch_size}
        return [
            Measured(
                {
                    str(i): {"ce": ce, "kl": kl, "kl95": high}
                    for i, ((ce, kl), high) in enumerate(zip(found.per_text, found.per_text_kl95, strict=True))
                }
            )
            for found in drifts(model, tokenizer, edits, texts=self.texts, findings=self.findings, **how)
        ]

    def describe(self) -> dict[str, Any]:
        """Return hashes of the texts."""
        texts = {"texts": self.texts, "choosing_texts": self.choosing_texts}
        hashes = {
            kind: "trimtab's own" if given is None else hash_of(list(given))[:16] for kind, given in texts.items()
        }
        return {"meter": type(self).__name__, **hashes, "max_tokens": self.max_tokens}


def drift_meters(source: NeutralTexts | None = None) -> tuple[Figure, ...]:
    """Return CE and KL(unedited || edited) on neutral texts, its mean and its tail. Whatever acts drifts: no tests."""
    source = source or NeutralTexts()
    return (
        Figure(source, "ce", "CE", ("ce",), unit="nats", better="neither", collateral=True),
        Figure(source, "kl", "KL", ("kl",), unit="nats", better="down", tested=False, collateral=True),
        Figure(source, "kl95", "KL 95 %", ("kl95",), unit="nats", better="down", tested=False, collateral=True),
    )


def divided(texts: Sequence[str] | None) -> NeutralTexts:
    """Return the measuring of drift on given texts: the first fifth for choosing settings, the rest for measuring.

    Raises:
        BadDataset: fewer than two texts.
    """
    if texts is None:
        return NeutralTexts()
    if len(texts) < 2:
        raise BadDataset(
            f"{len(texts)} neutral texts given; give two or more: one to choose on, the rest to measure on"
        )
    cut = max(1, len(texts) // 5)
    return NeutralTexts(tuple(texts[cut:]), tuple(texts[:cut]))


def drift(
    model: Any,
    tokenizer: Any,
    edit: Edit | None = None,
    *,
    texts: Sequence[str] | None = None,
    max_tokens: int = 128,
    batch_size: int = 32,
) -> Drift:
    """Return CE and KL(unedited || edited) on neutral texts, with the edit acting at all positions.

    As in ITI's evaluation (Li et al. 2023, section 5.1), except that the texts are fixed and the log-softmax is in
    float32. An edit that prompts is charged as soft prompts are: the text stands behind what the edit sets before it
    (`Edit.before`), and the same tokens count; where both do not fit the model's context, those that do.

    Args:
        texts: neutral text (not questions and answers), 200 or more; trimtab's own neutral prose if not given.
        max_tokens: how much of each text is used; less if the model's context is shorter.

    Raises:
        BadDataset: no text has two tokens or more; a single text instead of several.
        BadValue: CE or KL is not a number; `max_tokens` is below 2.
    """
    (result,) = drifts(model, tokenizer, [edit or NoEdit()], texts=texts, max_tokens=max_tokens, batch_size=batch_size)
    return result


def drifts(
    model: Any,
    tokenizer: Any,
    edits: Sequence[Edit],
    *,
    texts: Sequence[str] | None = None,
    max_tokens: int = 128,
    batch_size: int = 32,
    findings: Findings | None = None,
) -> tuple[Drift, ...]:
    """Return `drift` of every edit; the unedited model runs once for all of them.

    The unedited model's tables of next-token distributions are held of as many batches as a sixteenth of the free
    memory takes, or of one; each edit is put in place once for those. An edit's `unchanged_layers` are not run again.
    Under a launcher every process measures a stretch of the texts.

    Args:
        findings: keeps what the unedited model says of these texts for calls to come.

    Raises:
        BadDataset: no text has two tokens or more; a single text instead of several.
        BadValue: CE or KL is not a number; `max_tokens` is below 2.
    """
    if isinstance(texts, str):
        raise BadDataset("drift is measured on several texts, got a single one; put it into a list")
    if max_tokens < 2:
        raise BadValue(f"max_tokens must be at least 2, the first token predicting the second; got {max_tokens}")
    texts = neutral_texts() if texts is None else texts
    limit = min(max_tokens, context_length(model) or max_tokens)
    long = [pair for pair in zip(texts, encode_all(tokenizer, texts), strict=True) if len(pair[1]) > 1]
    if not long:
        raise BadDataset("no neutral text of two tokens or more to measure drift on")
    ahead = [_ahead(tokenizer, edit, [text for text, _ in long]) for edit in edits]
    work = [(ids[:limit], [own[i] for own in ahead]) for i, (_, ids) in enumerate(long)]
    rows = over_processes(work, lambda part: divergence_rows(model, tokenizer, part, edits, batch_size, findings))
    # every text weighs the same: texts are cut to nearly equal length, and intervals resample texts
    return tuple(_summed(of_edit) for of_edit in zip(*rows, strict=True))


def _ahead(tokenizer: Any, edit: Edit, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens that an edit sets before texts that are no questions."""
    before = [_said_before(edit, text) for text in texts]
    ids = encode_all(tokenizer, before) if any(before) else [[]] * len(texts)
    return [own if said else [] for own, said in zip(ids, before, strict=True)]


def _said_before(edit: Edit, text: str) -> str:
    before = edit.before(text)
    if before is not None:
        return PLAIN.ahead(before)
    return (edit.prompt(text) or "").rpartition(text)[0]


def _summed(rows: Sequence[tuple[float, float, float]]) -> Drift:
    ce, kl, kl95 = zip(*rows, strict=True)
    means = bootstrap_mean(ce), bootstrap_mean(kl), bootstrap_mean(kl95)
    return Drift(*means, per_text=tuple(zip(ce, kl, strict=True)), per_text_kl95=kl95)
