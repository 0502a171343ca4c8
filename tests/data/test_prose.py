"""The neutral prose: a function of its seed, never questions, and held-out texts that training never draws."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.datasets import folklore, neutral_texts
from trimtab.datasets.prose import HELD_OUT_SEED, MAX_WORDS, MIN_WORDS, prose
from trimtab.embedded import world


@pytest.fixture(scope="module")
def held_out() -> list[str]:
    return neutral_texts()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2 * HELD_OUT_SEED))
def test_every_document_is_one_finished_block_of_80_to_170_words_without_questions(seed):
    text = prose(seed)
    assert (MIN_WORDS, MAX_WORDS) == (80, 170)
    assert MIN_WORDS <= len(text.split(" ")) <= MAX_WORDS
    assert set(re.findall(r"[^A-Za-z]", text)) <= set(" .,'-")
    assert text[0].isupper() and text.endswith(".")
    assert "  " not in text and not re.search(r" [.,]", text)
    assert all(sentence[0].isupper() for sentence in text.split(". "))
    assert prose(seed) == text


def test_a_document_depends_on_its_seed_and_on_nothing_else():
    random.seed(1)
    here = [prose(seed) for seed in range(50)]
    random.seed(2)
    assert [prose(seed) for seed in range(10)] == here[:10]
    program = "from trimtab.datasets.prose import prose; print(*(prose(s) for s in range(50)), sep='\\n')"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    there = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.splitlines() == here
    assert len(set(here)) == 50


def test_the_held_out_texts_are_at_least_200_and_all_different(held_out):
    assert len(held_out) >= 200
    assert len(set(held_out)) == len(held_out)
    assert not any("?" in text for text in held_out)


def test_fewer_or_later_texts_are_a_part_of_the_same_sequence(held_out):
    assert neutral_texts(20) == held_out[:20]
    assert neutral_texts(5, first_seed=HELD_OUT_SEED + 7) == held_out[7:12]
    assert held_out[3] == prose(HELD_OUT_SEED + 3)


def test_training_draws_prose_of_seeds_below_the_held_out_ones_only(monkeypatch):
    drawn: list[int] = []
    monkeypatch.setattr(world, "prose", lambda seed: drawn.append(seed) or "")
    list(islice(world.documents(folklore("development"), world.WorldRecipe(prose=1.0), 0), 2000))
    assert len(drawn) == 2000
    assert max(drawn) < HELD_OUT_SEED
    assert max(drawn) > 0.9 * 100_000_000


def test_no_held_out_text_is_a_training_text(held_out):
    documents = set(islice(world.documents(folklore("development"), world.WorldRecipe(prose=0.6), 0), 150))
    assert sum(len(d.split()) >= MIN_WORDS and "Q:" not in d for d in documents) > 40
    assert documents.isdisjoint(held_out)


def test_held_out_texts_share_no_long_run_of_words_with_folklore(held_out):
    def runs(text: str, n: int = 6) -> set[tuple[str, ...]]:
        words = re.findall(r"[a-z']+", text.lower())
        return set(zip(*(words[i:] for i in range(n)), strict=False))

    folk = {run for q in folklore() for text in (q.question, *q.correct, *q.incorrect) for run in runs(text)}
    shared = [run for text in held_out for run in runs(text) & folk]
    assert shared == []
    assert runs(folklore()[0].question) <= folk
