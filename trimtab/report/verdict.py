"""What follows from a comparison, in sentences: what leads, what is not told apart, what luck reaches, what broke."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from trimtab.cells import figure, number, p_text, unit_words
from trimtab.compare.comparison import Comparison
from trimtab.compare.contrasts import LEVEL, Contrast
from trimtab.compare.design import BASELINE
from trimtab.compare.rows import ResultRow
from trimtab.compare.statistics import PairedDifference
from trimtab.evaluate.table import mute_sentences
from trimtab.protocols import Meter


def about(run: Comparison) -> str:
    """Return in a sentence which model was compared on what, and how."""
    said, design = run.specification, run.specification["design"]
    source, on = said["questions"], said["test"] or said["questions"]
    other = f", fitted and chosen on {run.sizes[-1] or source['n']} of {source['name']}"
    name = Path(said["model"]["name"] or "a model without a name").name
    seeds, folds, n = len(design["seeds"]), design["folds"], design["trials"]
    tries = f"up to {n} tries for each method, chosen by" if n > 1 else "one setting of each method; the main meter is"
    return (
        f"{name} on {on['n']} {on.get('item', 'question')}s of {on['name']}"
        f"{other if on['name'] != source['name'] else ''}: "
        f"{_count(folds, 'fold')}, {_count(seeds, 'seed')}, "
        f"{tries} {run.chooser.heading}."
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n > 1)}"


def warnings_of(run: Comparison) -> list[str]:
    """Return what must be said before any figure: meters that can tell nothing here."""
    return mute_sentences(run.mute, run.meters)


def leading(run: Comparison, rows: Sequence[ResultRow]) -> ResultRow | None:
    """Return the row with the best figure of all that are neither the unedited model nor a control."""
    found = _ranked(run, rows, run.main)
    return found[0] if found else None


def _ranked(run: Comparison, rows: Sequence[ResultRow], meter: Meter) -> list[ResultRow]:
    others = {BASELINE, *run.control_of}
    # a row that kept the budget in some folds only has left out the others: it is not ranked
    whole = [row for row in rows if row.variant == "best" or row.complete]
    able = [row for row in whole if row.metrics[meter.name] is not None and row.method not in others]
    return sorted(able, key=lambda row: -meter.sign * _value(row, meter))


def conclusions(run: Comparison, meter: Meter | None = None) -> list[str]:
    """Return what the tests of a meter support (the main one's if not given), and what broke.

    The leading row, those not told apart from it, the unedited model, controls.
    """
    size, meter = run.sizes[-1], meter or run.main
    rows = [row for row in run.rows(size) if row.metrics[meter.name] is not None]
    controls = run.control_of
    ranked = _ranked(run, rows, meter)
    base = next((row for row in rows if row.method == BASELINE), None)
    if not ranked or base is None or meter.better == "neither":
        return ["No method was measured yet, so nothing follows."]
    pairs = {frozenset((c.one, c.other)): c for c in run.contrasts(meter.name, size)}
    told = [_leading(ranked, base, meter, pairs), *_against_the_unedited(ranked, base, meter, pairs)]
    told += [
        text for row in rows if row.method in controls for text in _luck(run, row, controls[row.method], meter, pairs)
    ]
    told += _style(run, ranked, size)
    told += _broken(run, ranked)
    tests = f"all {len(pairs)} pairs" if len(pairs) > 1 else "the one pair"
    told.append(
        f"Apart means p at most {LEVEL} in sign-flip tests paired by question, after Holm's correction over {tests} "
        "of rows; what broke is tested against the unedited model, Holm over the rows."
    )
    return [run.worded(text) for text in told]


def by_the_chooser(run: Comparison) -> list[str]:
    """Return what the tests of the meter that chose the settings support besides, where the main one is another."""
    if run.chooser.name in (run.main.name, *run.mute):
        return []
    shared = conclusions(run)
    return [said for said in conclusions(run, run.chooser) if said not in shared]


Pairs = dict[frozenset[str], Contrast]


def _value(row: ResultRow, meter: Meter) -> float:
    spread = row.metrics[meter.name]
    assert spread is not None
    return float(spread.estimate)


def _reads(row: ResultRow, meter: Meter) -> str:
    spread = row.metrics[meter.name]
    return figure(spread and spread.estimate, meter.unit)


def _difference(one: str, pair: Contrast, meter: Meter) -> str:
    """Return the difference of the row `one` to the other one of a pair."""
    found, turn = pair.tested.difference, 1 if pair.one == one else -1
    low, high = sorted((turn * found.low, turn * found.high))
    shown = partial(number, unit=meter.unit, signed=True)
    p = p_text(pair.tested.p_holm, at_floor=pair.tested.at_floor)
    return f"{shown(turn * found)} [{shown(low)}, {shown(high)}], p {p}"


def _leading(ranked: Sequence[ResultRow], base: ResultRow, meter: Meter, pairs: Pairs) -> str:
    first, rest = ranked[0], ranked[1:]
    if len({_value(row, meter) for row in (base, *ranked)}) == 1:
        return f"Nothing leads: {meter.heading} is {_reads(base, meter)} {unit_words(meter.unit)} in every row."
    level = [row for row in rest if _value(row, meter) == _value(first, meter)]
    alike, behind = [], []
    for row in rest[len(level) :]:
        pair = pairs.get(frozenset((first.name, row.name)))
        (behind if pair is not None and pair.apart else alike).append(row)
    lead = f"{', '.join(map(_named, (first, *level)))} {'have' if level else 'has'}"
    text = (
        f"{lead} the {'highest' if meter.sign > 0 else 'lowest'} {meter.heading}, {_reads(first, meter)} "
        f"{unit_words(meter.unit)} (unedited: {_reads(base, meter)})."
    )
    them = "them" if level else "it"
    if alike:
        text += f" Not told apart from {them}: {', '.join(f'{r.name} ({_short(r, meter)})' for r in alike)}."
    if behind:
        far = (f"{r.name} ({_difference(r.name, pairs[frozenset((first.name, r.name))], meter)})" for r in behind)
        text += f" Behind {them}: {'; '.join(far)}."
    return text


def _named(row: ResultRow) -> str:
    return row.name if row.complete else f"{row.name} (in {row.n_done} of {row.n_units} folds and seeds)"


def _short(row: ResultRow, meter: Meter) -> str:
    return number(_value(row, meter), meter.unit)


def _against_the_unedited(ranked: Sequence[ResultRow], base: ResultRow, meter: Meter, pairs: Pairs) -> list[str]:
    better, worse, alike = [], [], []
    for row in ranked:
        pair = pairs.get(frozenset((base.name, row.name)))
        ahead = meter.sign * (_value(row, meter) - _value(base, meter)) > 0
        (alike if pair is None or not pair.apart else better if ahead else worse).append(row.name)
    found = (
        ("Better than the unedited model", better or ["none"]),
        ("Worse than it", worse),
        ("Not told apart", alike),
    )
    return [". ".join(f"{word}: {', '.join(names)}" for word, names in found if names) + "."]


def _luck(run: Comparison, row: ResultRow, method: str, meter: Meter, pairs: Pairs) -> list[str]:
    pair = pairs.get(frozenset((row.name, method)))
    if row.draws:
        best = run.row(method, row.size).metrics[meter.name] if method in run.methods else None
        if best is None:
            return []
        reach = sum(meter.sign * (draw - best.estimate) >= 0 for draw in row.draws)
        return [f"Of {row.method}'s {len(row.draws)} draws, which nobody chose among, {reach} reach {method}'s figure."]
    if row.variant != "best" or pair is None:
        return []
    behind = meter.sign * (_value(run.row(method, row.size), meter) - _value(row, meter)) < 0
    stands = "NOT told apart from" if not pair.apart else "BEHIND" if behind else "ahead of"
    what = f", which may try as much and has not what {method} claims to find" if behind or not pair.apart else ""
    return [
        f"{method} is {stands} its control {row.name} ({_reads(row, meter)}){what}: {_difference(method, pair, meter)}."
    ]


def _style(run: Comparison, ranked: Sequence[ResultRow], size: int | None) -> list[str]:
    style, told = run.style(size), []
    for meter in run.summed if style else ():
        found = style.metrics[meter.name] if style else None
        if found is None or meter.better == "neither" or not meter.tested:
            continue
        below = [
            row.name
            for row in ranked
            if (one := row.metrics[meter.name]) and meter.sign * (one.estimate - found.estimate) <= 0
        ]
        text = f"Choosing by the answers' words and length alone, without question or model, gives {meter.heading} "
        text += figure(found.estimate, meter.unit)
        told.append(f"{text}; no higher than that: {', '.join(below)}." if below else f"{text}.")
    return told


def _broken(run: Comparison, ranked: Sequence[ResultRow]) -> list[str]:
    budget, found = run.specification["design"].get("kl_budget"), []
    for row in ranked:
        worse = [w for m in run.meters if m.collateral and (w := _worse(row.differences.get(m.name), m))]
        drift = row.metrics.get("kl")
        if drift is not None and budget is not None and drift.estimate > budget:
            worse.append(f"KL {number(float(drift.estimate), 'nats')}, above the budget of {budget:g}")
        if worse:
            found.append(f"{row.name} ({'; '.join(worse)})")
    tested = [
        m.heading for m in run.meters if m.collateral and m.tested and m.better != "neither" and m.name not in run.mute
    ]
    what = f"in {', '.join(tested)} or" if tested else "in"
    if not found:
        return [f"What broke, against the unedited model: nothing was shown {what} drift beyond the budget."]
    return [f"What broke, against the unedited model: {'; '.join(found)}. Nothing was shown of the other rows."]


def _worse(difference: PairedDifference | None, meter: Meter) -> str:
    if difference is None or difference.p_holm > LEVEL or meter.sign * difference.difference >= 0:
        return ""
    p = p_text(difference.p_holm, at_floor=difference.at_floor)
    return f"{meter.heading} {figure(difference.difference, meter.unit, signed=True)}, p {p}"
