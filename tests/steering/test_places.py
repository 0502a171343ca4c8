"""choose_place, the screen and the outcome: what is chosen is the best of what was tried, and failures are named."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from tests.steering.test_effect import PAIRS, TEXTS, every_head, every_layer, margin
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.activations import Head, HeadActivations
from trimtab.datasets import ContrastPair, PairSet
from trimtab.edits.combined import NoEdit
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate import divergence, drift
from trimtab.probes import fit_mass_mean
from trimtab.protocols import Measured, Meter
from trimtab.steer import ShiftSpec, looks, places, rank_sites
from trimtab.steer.outcome import outcome_of, repetition
from trimtab.steer.pipeline import Fitted, fit
from trimtab.steer.places import Tries, choose_place
from trimtab.steer.screen import Screen, screen
from trimtab.steer.sites import SiteProbes


@pytest.fixture(scope="module", params=[every_layer, every_head], ids=["layers", "heads"])
def chosen(request) -> tuple[Any, Any]:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    shift = request.param(model)
    k = 1 if len(shift) == 3 else 4
    ranking = rank_sites(model, tokenizer, PAIRS, shift, texts=TEXTS)
    tries = Tries(k, 0.05, 2, texts=TEXTS)
    return model, choose_place(model, tokenizer, PAIRS, shift.on(ranking.sites), ranking, tries=tries)


def test_what_is_chosen_scores_best_of_what_stays_within_the_budget(chosen):
    model, shift = chosen
    sweep = shift.record["sweep"]
    unedited, *trials = sweep["trials"]
    eligible = [t for t in trials if t["kl"] <= 0.05 and not t["control"]]
    assert sweep["chosen"]["score"] == max(t["score"] for t in eligible)
    assert (shift.sites, shift.strength) == (sweep["chosen"]["sites"], pytest.approx(sweep["chosen"]["strength"]))
    assert sweep["chosen"]["score"] == pytest.approx(margin(model, shift), abs=1e-4)
    assert unedited["score"] == pytest.approx(margin(model, None), abs=1e-4)
    kl = drift(model, tiny_tokenizer(), shift, texts=TEXTS, max_tokens=96).kl
    assert sweep["chosen"]["kl"] == pytest.approx(float(kl), rel=1e-3)
    assert sweep["gain"]["mean"] == pytest.approx(sweep["chosen"]["score"] - unedited["score"], abs=1e-4)


def test_controls_stand_beside_it_and_cannot_be_chosen(chosen):
    _, shift = chosen
    trials = shift.record["sweep"]["trials"]
    controls = {t["control"]: t for t in trials if t["control"]}
    assert set(controls) == {"random places", "random directions"} and not shift.record["sweep"]["chosen"]["control"]
    tried = {t["sites"] for t in trials if not t["control"]}
    assert controls["random places"]["sites"] not in tried
    assert len({len(t["sites"]) for t in controls.values()}) == 1


def strength_of(edit: Any) -> float:
    return 0.0 if isinstance(edit, NoEdit) else float(edit.strength)


@dataclass(frozen=True)
class ByStrength(Meter):
    """Goes by texts, and finds stronger shifts better."""

    start: float = 0.0
    slope: float = 1.0
    name: ClassVar[str] = "by strength"
    shown: ClassVar[Sequence[str]] = ("text",)

    @property
    def better(self):
        return "up" if self.slope > 0 else "down"

    def measure(self, model, tokenizer, items, edits, *, asking="plain", seed=0):
        rows = [{"text": "said", self.name: self.start + self.slope * strength_of(edit)} for edit in edits]
        return [Measured({item.key: row for item in items}) for row in rows]


def all_alike(text: str) -> Callable[..., list[list[str]]]:
    """Return what answers every prompt under every edit with a text."""
    return lambda _model, _tokenizer, asked, edits, **_: [[text] * len(asked) for _ in edits]


@pytest.mark.parametrize("power", [1.5, 3.0])
@pytest.mark.parametrize("later", [0.5, 1.0, 2.0])
def test_settings_and_controls_meet_the_budget_whatever_power_of_the_strength_drift_is(power, later):
    def kls_of(settings: Sequence[places._Setting], n_parts: int = 2) -> list[float]:
        return [setting.edit * setting.strength**power * (later if n_parts == 2 else 1.0) for setting in settings]

    tried = [places._Setting(0.2, "", 1.0), places._Setting(7.0, places.AT_RANDOM, 1.0)]
    found, kls = places._at_budget(tried, kls_of, 0.05)
    assert kls == kls_of(found) and all(s.exponent == pytest.approx(power) for s in found)
    far = later * places.SLACK**power
    assert kls == pytest.approx([0.05 * (far if places.NEAR <= far <= 1 else places.SLACK**power)] * 2)


def test_a_setting_that_its_last_move_takes_beyond_the_budget_stays_where_it_was_within():
    def kls_of(settings: Sequence[places._Setting], n_parts: int = 2) -> list[float]:
        return [s.strength ** (1.7 if n_parts == 1 else 2.6) * (0.5 if n_parts == 2 else 1.0) for s in settings]

    (found,), (kl,) = places._at_budget([places._Setting(0.0, "", 1.0)], kls_of, 0.5)
    assert kl == kls_of([found])[0] <= 0.5
    once = places._towards(found._replace(exponent=1.7), kl, 0.5)
    assert kls_of([once])[0] > 0.5  # as the move would have done


@pytest.mark.parametrize("later", [1.0, 1.3])
def test_what_does_best_and_drifts_too_much_on_all_texts_is_brought_within_the_budget(monkeypatch, later):
    def drifts(_model, _tokenizer, edits, *, texts, **_):
        kls = [[(t, strength_of(e) ** 2 * (later if int(t) >= 2 else 1.0)) for t in texts] for e in edits]
        return [SimpleNamespace(per_text=of_edit) for of_edit in kls]

    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    shift = every_layer(model)
    ranking = rank_sites(model, tokenizer, PAIRS, shift, texts=TEXTS)
    monkeypatch.setattr(places, "drifts", drifts)
    monkeypatch.setattr(looks, "answers_many", all_alike("so it is"))
    tries = Tries(1, 0.05, 2, texts=[str(i) for i in range(8)])
    found = choose_place(model, tokenizer, PAIRS, shift.on(ranking.sites), ranking, metric=ByStrength(), tries=tries)
    chosen = found.record["sweep"]["chosen"]
    assert chosen["kl"] == pytest.approx(0.05 * places.SLACK**2)
    assert chosen["score"] == found.strength == pytest.approx((chosen["kl"] / (1 + 3 * later) * 4) ** 0.5)


def test_neutral_texts_of_less_than_two_tokens_are_left_out():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    shift = every_layer(model)
    ranking = rank_sites(model, tokenizer, PAIRS, shift, texts=TEXTS)
    found = [
        choose_place(model, tokenizer, PAIRS, shift, ranking, tries=Tries(1, 0.05, 2, texts=texts))
        for texts in (TEXTS, ["", *TEXTS, ""])
    ]
    assert found[0].record["sweep"]["chosen"] == found[1].record["sweep"]["chosen"]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_few_neutral_texts_do_as_well_and_where_no_strength_stays_within_it_is_said(monkeypatch, n):
    def drifts(_model, _tokenizer, edits, *, texts, **_):
        return [SimpleNamespace(per_text=[(t, strength_of(e) if t != "far" else 9.0) for t in texts]) for e in edits]

    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    shift = every_layer(model)
    ranking = rank_sites(model, tokenizer, PAIRS, shift, texts=TEXTS)
    monkeypatch.setattr(places, "drifts", drifts)
    monkeypatch.setattr(looks, "answers_many", all_alike("so it is"))
    how: dict[str, Any] = {"metric": ByStrength(), "tries": Tries(1, 0.05, 2, texts=["near"] * n)}
    found = choose_place(model, tokenizer, PAIRS, shift.on(ranking.sites), ranking, **how)
    assert 0.75 * 0.05 < found.record["sweep"]["chosen"]["kl"] <= 0.05
    how["tries"] = replace(how["tries"], texts=["near"] * n + ["far"])
    with pytest.raises(BadValue, match="nothing that was tried stays within"):
        choose_place(model, tokenizer, PAIRS, shift.on(ranking.sites), ranking, **how)


@dataclass(frozen=True)
class AllAlike(ByStrength):
    """Finds nothing to choose between."""

    shown: ClassVar[Sequence[str]] = ()

    def measure(self, model, tokenizer, items, edits, *, asking="plain", seed=0):
        return [Measured({item.key: {self.name: 1.0} for item in items}) for _ in edits]


def test_of_settings_that_score_alike_the_one_that_drifts_least_is_taken():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    shift = every_layer(model)
    ranking = rank_sites(model, tokenizer, PAIRS, shift, texts=TEXTS)
    tries = Tries(1, 0.05, 2, texts=TEXTS)
    sweep = choose_place(model, tokenizer, PAIRS, shift, ranking, metric=AllAlike(), tries=tries).record["sweep"]
    assert sweep["chosen"]["kl"] == min(t["kl"] for t in sweep["trials"][1:] if not t["control"])


@pytest.mark.parametrize(("start", "slope"), [(0.0, 1.0), (9.0, 1.0), (9.0, -1.0)])
@pytest.mark.parametrize("spoilt", ["I do not know. " * 8, "debris of words"])
@pytest.mark.parametrize("spoilt_from", [0.0, 0.4, 0.7, 9.0])
def test_of_settings_whose_longer_answers_are_spoilt_none_is_taken_while_another_does_half_as_much(
    monkeypatch, spoilt_from, spoilt, start, slope
):
    looked_at: list[int] = []

    def answers_many(_model, _tokenizer, asked, edits, **_):
        spoils = [not isinstance(edit, NoEdit) and strength_of(edit) / strongest >= spoilt_from for edit in edits]
        looked_at.append(len(edits) - 1)
        return [[spoilt if spoils_it else PLAINLY] * len(asked) for spoils_it in spoils]

    model, tokenizer, strongest = tiny_model("llama"), tiny_tokenizer(), float("inf")
    shift = every_layer(model)
    ranking = rank_sites(model, tokenizer, PAIRS, shift, texts=TEXTS)
    how = {"metric": ByStrength(start, slope), "tries": Tries(1, 0.05, 3, texts=TEXTS)}
    monkeypatch.setattr(looks, "answers_many", answers_many)
    monkeypatch.setattr(looks, "surprisals", lambda *of: [4.1 if "debris" in said[0] else 3.0 for said in of[-1]])
    strongest = choose_place(model, tokenizer, PAIRS, shift.on(ranking.sites), ranking, **how).strength
    found = choose_place(model, tokenizer, PAIRS, shift.on(ranking.sites), ranking, **how)
    sweep = found.record["sweep"]
    assert (found.strength < 0.7 * strongest) == (spoilt_from == 0.7)
    assert found.strength >= 0.5 * strongest  # what is whole at 0.4 does too little
    passed = ("unlikely" if "debris" in spoilt else "repeats itself") if spoilt_from < 0.5 else ""
    assert sweep["chosen"]["spoilt"] == passed and max(looked_at) == places.CHECKED
    assert any(t["spoilt"] for t in sweep["trials"]) == (spoilt_from < 9)
    own = repetition(PLAINLY)
    assert sweep["repeats"] == {"before": own, "after": repetition(spoilt) if passed else own}
    assert sweep["surprisal"] == {"before": 3.0, "after": 4.1 if passed == "unlikely" else 3.0}


@pytest.mark.parametrize("said", ["a word and a word and a word and more, once", ""])
def test_what_the_unedited_model_does_itself_spoils_nothing(monkeypatch, said):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    shift = every_layer(model)
    ranking = rank_sites(model, tokenizer, PAIRS, shift, texts=TEXTS)
    monkeypatch.setattr(looks, "answers_many", all_alike(said))
    worse = ByStrength(0.0, -1.0)  # and nothing beats it
    monkeypatch.setattr(ByStrength, "better", "up")
    how = {"metric": worse, "tries": Tries(1, 0.05, 2, texts=TEXTS)}
    sweep = choose_place(model, tokenizer, PAIRS, shift.on(ranking.sites), ranking, **how).record["sweep"]
    assert sweep["repeats"]["before"] == repetition(said) and not any(t["spoilt"] for t in sweep["trials"])
    assert sweep["chosen"]["score"] < 0 and (sweep["surprisal"]["before"] is None) == (said == "")


PLAINLY = "one plain sentence of words, and one plain sentence of words that never come again"


def activations(values: torch.Tensor) -> HeadActivations:
    """Return one layer's activations of items with a positive and a negative text each."""
    n = len(values) // 2
    labels = torch.arange(2 * n) % 2 == 0
    return HeadActivations(values[:, None, None], labels, tuple(f"{i // 2}" for i in range(2 * n)), (5,))


def test_a_common_difference_is_told_from_none_and_length_is_named():
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(40, 64, generator=draw)
    common = noise.clone()
    common[::2] += 3.0
    statements = PairSet(tuple(ContrastPair(f"{i}", ("one two three four",), ("one",)) for i in range(20))).statements()
    leaning = noise.clone()  # in what directions come from, and in nothing else
    leaning[::2] += 1.0
    real, none = (screen(activations(x), activations(x), statements, Head(5, 0)) for x in (common, noise))
    lucky = screen(activations(leaning), activations(torch.randn(40, 64, generator=draw)), statements, Head(5, 0))
    assert (real.consistent, none.consistent, lucky.consistent) == (True, False, False)
    assert lucky.consistency > lucky.by_chance and abs(real.separation_by_chance) < real.separation / 2
    assert real.consistency > 0.7 > 0.4 > real.by_chance > none.consistency
    assert real.separation > 3 and "do not differ" not in " ".join(real.remarks)
    assert any("do not differ in a common direction" in said for said in none.remarks)
    assert any("longer in every item (4.0 times" in said for said in real.remarks)
    even = PairSet(tuple(ContrastPair(f"{i}", ("one two",), ("two one",)) for i in range(20))).statements()
    assert len(screen(activations(common), activations(common), even, Head(5, 0)).remarks) == 1


def consistency(differences: np.ndarray) -> float:
    cosines = []
    for i, own in enumerate(differences):
        others = np.delete(differences, i, 0).sum(0)
        cosines.append(own @ others / np.linalg.norm(own) / np.linalg.norm(others))
    return float(np.mean(cosines))


def test_a_screen_s_figures_are_those_of_loops_over_items_and_over_exchanged_sides():
    draw = torch.Generator().manual_seed(1)
    values, unseen = (torch.randn(24, 8, generator=draw) for _ in range(2))
    values[::2] += 0.5
    unseen[::2] += 0.5
    statements = PairSet(tuple(ContrastPair(f"{i}", ("one",), ("two",)) for i in range(12))).statements()
    found = screen(activations(values), activations(unseen), statements, Head(5, 0))
    own, other = (x[::2].double().numpy() - x[1::2].double().numpy() for x in (values, unseen))
    assert found.consistency == pytest.approx(consistency(own))
    true, false = (unseen[start::2].double().numpy() @ own.mean(0) for start in (0, 1))
    spread = np.sqrt((true.var() + false.var()) / 2)
    assert found.separation == pytest.approx((true.mean() - false.mean()) / spread)
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(2000, 12))
    lucky = np.array([consistency(own * row[:, None]) for row in signs])
    apart = signs @ (other @ own.mean(0)) / 12 / spread
    assert 0.9 < (lucky <= found.by_chance).mean() < 0.99
    assert 0.9 < (apart <= found.separation_by_chance).mean() < 0.99


def test_of_pairs_all_layers_but_the_first_quarter_are_tried_unless_named():
    values = torch.randn(20, 8, 1, 16, generator=torch.Generator().manual_seed(0))
    acts = HeadActivations(values, torch.arange(20) % 2 == 0, tuple(f"{i // 2}" for i in range(20)), tuple(range(8)))
    found, spec = SiteProbes(acts, acts, fit_mass_mean(acts)), ShiftSpec(site="residual", rank_by="effect")
    assert {place.layer for place in spec.places(found)} == set(range(2, 8))
    assert {place.layer for place in replace(spec, layers=[0, 1]).places(found)} == {0, 1}


def sweep_of(before: float, after: float, by_chance: float, low: float) -> dict[str, Any]:
    row = {"top_k": 1, "strength": 1.0, "kl": 0.3, "score": after, "sites": (1,), "control": ""}
    trials = [{**row, "score": before}, row, {**row, "score": by_chance, "control": "random directions"}]
    gain = {"mean": after - before, "low": low, "high": after, "n": 9}
    return {"metric": "pair_margin", "kl_budget": 0.4, "trials": trials, "chosen": row, "gain": gain}


@pytest.mark.parametrize(
    ("before", "after", "by_chance", "low", "verdict", "words"),
    [
        (1.0, 6.0, 1.2, 3.0, "works", "100 times likelier|more likely|times likelier"),
        (1.0, 6.0, 1.2, -0.5, "works weakly", "within chance of nothing on 9 items"),
        (1.0, 6.0, 4.0, 3.0, "works weakly", "random directions of the same norm gain half as much"),
        (1.0, 2.0, 1.0, 0.5, "works weakly", "too little to show"),
        (1.0, 0.9, 1.0, -1.0, "does not work", "no setting beats the unedited model"),
        (1.0, 0.9, 1.0, -1.0, "does not work", "; within chance of nothing on 9 items. Try"),
    ],
)
def test_the_outcome_is_one_sentence_with_what_to_try(before, after, by_chance, low, verdict, words):
    found = outcome_of(sweep_of(before, after, by_chance, low))
    assert found.verdict == verdict and found.sentence.startswith(verdict)
    assert any(word in found.sentence for word in words.split("|"))
    assert ("Try" in found.sentence) == (verdict != "works")


@pytest.mark.parametrize(
    ("by_chance", "low", "verdict"), [(1.2, 3.0, "works"), (1.2, -0.5, "works weakly"), (4.0, 3.0, "works weakly")]
)
def test_where_less_is_better_the_outcome_is_that_of_the_mirrored_figures(by_chance, low, verdict):
    swept = sweep_of(1.0, 6.0, by_chance, low)
    assert outcome_of(swept).verdict == verdict
    *trials, chosen = ({**trial, "score": -trial["score"]} for trial in (*swept["trials"], swept["chosen"]))
    gain = {"mean": -5.0, "low": -6.0, "high": -low, "n": 9}
    mirrored = {**swept, "trials": trials, "chosen": chosen, "gain": gain}
    assert outcome_of(mirrored, better="down").verdict == verdict
    assert outcome_of(mirrored).verdict == "does not work"


def test_a_shift_whose_answers_loop_is_not_said_to_work():
    swept = sweep_of(1.0, 6.0, 1.2, 3.0)
    said = outcome_of(swept | {"repeats": {"before": 0.05, "after": 0.33}}).sentence
    assert said.startswith("works weakly") and "repeat themselves (33 % of word triples, 5 % unedited)" in said
    assert outcome_of(swept | {"repeats": {"before": 0.25, "after": 0.33}}).verdict == "works"


def test_a_shift_whose_answers_are_unlikely_or_empty_is_not_said_to_work():
    swept = sweep_of(1.0, 6.0, 1.2, 3.0)
    said = outcome_of(swept | {"surprisal": {"before": 0.1, "after": 2.0}}).sentence
    assert said.startswith("works weakly") and "(2.0 nats per token, 0.1 its own): they may be debris" in said
    assert "a smaller --kl-budget" in said and "larger" not in said
    assert "empty" in outcome_of(swept | {"surprisal": {"before": 0.1, "after": None}}).sentence
    for before, after in ((1.1, 2.0), (None, 2.0), (None, None)):
        assert outcome_of(swept | {"surprisal": {"before": before, "after": after}}).verdict == "works"
    swept |= {"repeats": {"before": 0.9, "after": 0.9}, "surprisal": {"before": 0.1, "after": 2.0}}
    assert "--asking primer" in outcome_of(swept).sentence  # what the unedited model lacks comes first


def test_a_fit_of_sides_that_differ_in_no_common_direction_is_said_not_to_work(tmp_path):
    swept = sweep_of(1.0, 6.0, 1.2, 3.0)
    common = Screen(18, Head(5, 0), 0.2, 0.1, 2.0, 1.0, 0.5, 1.0)
    others = (
        replace(common, consistency=0.09), replace(common, separation=0.9),
        replace(common, consistency=0.0, by_chance=0.0, separation=0.0, separation_by_chance=0.0),
    )  # fmt: skip
    for shares in (common, replace(common, consistency=0.1), replace(common, separation=1.0)):
        assert outcome_of(swept, screened=shares).verdict == "works"
    for none in others:
        found = outcome_of(swept, screened=none)
        assert found.verdict == "does not work" and "common direction (18 items, layer 5)" in found.sentence
        few = outcome_of(swept, screened=replace(none, n=11))
        assert few.verdict == "works weakly" and "common direction (11 items" in few.sentence
    fitted = replace(fit(tiny_model("llama"), tiny_tokenizer(), PAIRS), screened=others[0])
    assert fitted.shift.record["sweep"]["kl_budget"] == 0.2
    fitted.save(tmp_path / "fit")
    again = Fitted.load(tmp_path / "fit")
    assert again.screened == fitted.screened and again.outcome == fitted.outcome
    assert again.outcome is not None and "common direction" in again.outcome.sentence
    told = json.loads((tmp_path / "fit" / "record.json").read_text())
    del told["screen"]["separation_by_chance"]  # as a version before left it
    (tmp_path / "fit" / "record.json").write_text(json.dumps(told))
    assert Fitted.load(tmp_path / "fit").screened is None


def test_a_model_whose_own_answers_are_debris_is_to_be_asked_otherwise():
    for after in (1.0, 6.0):
        said = outcome_of(sweep_of(1.0, after, 1.2, 3.0) | {"repeats": {"before": 0.9, "after": 0.8}}).sentence
        assert "own answers repeat themselves (90 % of word triples)" in said and "--asking primer" in said
        assert not said.startswith("works:")


def test_loops_are_found():
    assert repetition("I am glad you are here. I am glad you are here. I am glad you are here.") > 0.5
    assert repetition("The bread was warm and the street outside was quiet.") == 0
    assert repetition("") == 0


def test_too_few_items_and_places_that_are_not_there_are_refused_in_a_sentence():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    with pytest.raises(BadDataset, match="a shift needs four or more questions or pairs to fit and choose on, got 1"):
        fit(model, tokenizer, PAIRS[:1])
    for spec, words in (
        (ShiftSpec(layers=[7], strength=1), "no layer 7 to shift; the model has layers 0 to 2"),
        (ShiftSpec(n_sites=5, strength=1), "top 5 layers asked for; there are 3 to choose among"),
        (ShiftSpec(heads=[Head(9, 1)], strength=1), "no head 1 in layer 9"),
    ):
        with pytest.raises(BadValue, match=words):
            fit(model, tokenizer, PAIRS, spec)
    with pytest.raises(BadValue, match="not both"):
        ShiftSpec(layers=[1], heads=[Head(1, 1)])


def test_a_place_that_is_not_there_is_refused_before_anything_is_computed(monkeypatch):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    monkeypatch.setattr("trimtab.steer.pipeline.read_sites", lambda *_, **__: pytest.fail("texts were read"))
    for spec, words in (
        (ShiftSpec(layers=[2, 99]), "no layer 99 to shift"),
        (ShiftSpec(heads=[Head(2, 4)]), "no head 4 in layer 2: the model has layers 0 to 2 of 4 heads"),
    ):
        with pytest.raises(BadValue, match=words):
            fit(model, tokenizer, PAIRS, spec)


def test_named_places_are_shifted_and_nothing_else():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    assert fit(model, tokenizer, PAIRS, ShiftSpec(layers=[2], strength=1)).shift.sites == (2,)
    heads = [Head(2, 1), Head(0, 3)]
    assert fit(model, tokenizer, PAIRS, ShiftSpec(heads=heads, strength=1)).shift.sites == tuple(heads)
    among = fit(model, tokenizer, PAIRS, ShiftSpec(layers=[0, 1], n_sites=1, strength=1))
    assert among.ranking is not None and set(among.ranking.sites) == {0, 1}
    assert among.shift.sites == among.ranking.sites[:1]


@pytest.mark.parametrize(("moved", "verdict"), [(0.05, "does not work"), (0.2, "works weakly"), (0.6, "works")])
def test_answers_that_hardly_show_it_are_no_success(moved, verdict):
    found = outcome_of({**sweep_of(0.1, 0.1 + moved, 0.1, moved / 2), "metric": "reading"})
    assert found.verdict == verdict and f"answers moved {100 * moved / 0.9:.0f} % of the way" in found.sentence
    # the same move is more where less was left
    assert outcome_of({**sweep_of(0.7, 0.9, 0.7, 0.1), "metric": "reading"}).verdict == "works"


def test_each_neutral_text_runs_unedited_once_however_often_drift_is_measured(monkeypatch):
    seen: list[int] = []
    plain = divergence._unedited

    def counted(model: Any, named: str, batch: Any, shared: Any, kept: dict[str, Any]) -> Any:
        seen.extend([] if named in kept else [len(batch.indices)])
        return plain(model, named, batch, shared, kept)

    monkeypatch.setattr(divergence, "_unedited", counted)
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    shift = every_layer(model)
    ranking = rank_sites(model, tokenizer, PAIRS, shift, texts=TEXTS)
    texts = [f"{text} Then night fell {i} times." for i, text in enumerate(TEXTS * 3)]
    made = choose_place(model, tokenizer, PAIRS, shift, ranking, tries=Tries(1, 0.05, 2, texts=texts))
    assert sum(seen) == len(texts)
    for trial in made.record["sweep"]["trials"][-4:]:  # weaker and stronger ones, measured last
        kl = drift(model, tokenizer, at(shift, trial), texts=texts, max_tokens=96).kl
        assert trial["kl"] == pytest.approx(float(kl), 1e-3)


def at(shift: Any, trial: dict[str, Any]) -> Any:
    return shift.on(trial["sites"]).scaled(trial["strength"])
