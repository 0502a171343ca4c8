"""The pairs that ship: varied, as long on one side as on the other, and told apart by what is counted."""

from __future__ import annotations

import re

import numpy as np
import pytest

from trimtab.cli.setup import read_data
from trimtab.datasets.behaviours import BEHAVIOURS, behaviour
from trimtab.datasets.item_set import ItemSet
from trimtab.errors import BadDataset

each = pytest.mark.parametrize("name", BEHAVIOURS)


def sides(pairs: ItemSet) -> tuple[list[str], list[str]]:
    return [p.positive[0] for p in pairs], [p.negative[0] for p in pairs]


def auc(one: list[float], other: list[float]) -> float:
    """How often a number of the first is above one of the second, ties counting half."""
    a, b = np.array(one)[:, None], np.array(other)[None]
    return float(((a > b) + 0.5 * (a == b)).mean())


@each
def test_there_are_many_pairs_and_no_two_are_alike(name: str) -> None:
    made = behaviour(name)
    assert len(made.pairs) >= 120
    texts = [text for side in sides(made.pairs) for text in side]
    assert len({re.sub(r"\W+", " ", text.lower()) for text in texts}) == len(texts)
    words = [frozenset(re.findall(r"\w+", text.lower())) for text in texts]
    near = [(a, b) for i, a in enumerate(words) for b in words[:i] if len(a & b) > 0.8 * len(a | b)]
    # the two sides of a pair may be: they differ in the behaviour alone
    assert len(near) <= 2


@each
def test_the_prompts_are_in_no_pair(name: str) -> None:
    made = behaviour(name)
    assert len(set(made.prompts)) == len(made.prompts) >= 20
    assert not set(made.prompts) & {pair.prompt for pair in made.pairs}


@each
def test_length_does_not_tell_the_sides_apart(name: str) -> None:
    positive, negative = sides(behaviour(name).pairs)
    assert 0.42 < auc([len(t.split()) for t in positive], [len(t.split()) for t in negative]) < 0.58
    # formal words are longer than casual ones, however many there are
    assert 0.25 < auc([len(t) for t in positive], [len(t) for t in negative]) < 0.75


@each
def test_what_is_counted_tells_the_sides_apart(name: str) -> None:
    made = behaviour(name)
    positive, negative = ([made.count(t) for t in side] for side in sides(made.pairs))
    assert auc(positive, negative) > 0.9
    others = [behaviour(other) for other in BEHAVIOURS if other != name]
    for other in others:  # the control: other behaviours' texts differ less in it
        one, two = ([made.count(t) for t in side] for side in sides(other.pairs))
        assert auc(one, two) < auc(positive, negative) - 0.1


def test_counts_by_hand() -> None:
    cheerful, casual, unsure = map(behaviour, BEHAVIOURS)
    assert cheerful.count("What a lovely day, the sun is bright!") == pytest.approx(10 * 2 / 8)
    assert cheerful.count("lovely lovely lovely lovely") == cheerful.count("lovely") == 10
    assert cheerful.count("an awful, dreary place") == pytest.approx(-10 * 2 / 4)
    assert casual.count("It isn’t far") == pytest.approx(10 / 3)
    assert casual.count("This requires approximately two days") == pytest.approx(-10 * 2 / 5)
    assert unsure.count("I don't know that.") == unsure.count("Nobody can say.") == 1
    assert unsure.count("It is seven.") == 0
    assert {b.count("") for b in (cheerful, casual, unsure)} == {0}


def test_the_shell_knows_them_by_name() -> None:
    pairs = read_data("unsure", limit=7)
    assert (pairs.name, len(pairs), pairs.measured_by) == ("unsure", 7, "pairs")
    with pytest.raises(BadDataset, match="did you mean unsure"):
        read_data("unsur")


def test_a_behaviour_that_does_not_ship_is_named() -> None:
    with pytest.raises(BadDataset, match="no behaviour 'cheerfull' ships; did you mean cheerful"):
        behaviour("cheerfull")
