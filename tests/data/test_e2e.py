"""E2E NLG: the reader, the metrics against the official scorers' stored results, and decoding by beam search."""

from __future__ import annotations

import itertools
import json
import shutil
from itertools import pairwise

import pytest
import torch

from tests.measuring import random_shift
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab.datasets import SftExample
from trimtab.datasets.e2e import e2e, e2e_examples
from trimtab.edits.combined import NoEdit
from trimtab.engine.beam_search import BeamSettings, beam_texts
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate.text_overlap import bleu, nist, ptb_like, text_overlap

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="METEOR and Stanford's tokenizer need Java")


@pytest.fixture(scope="module")
def official(shared_data):
    """Return name -> (texts, references, official scores)."""
    folder = shared_data / "e2e"
    scores = json.loads((folder / "official" / "scores.json").read_text())
    blocks = (folder / "official" / "references.txt").read_text().strip().split("\n\n")
    example = (folder / "official" / "outputs.txt").read_text().splitlines(), [b.split("\n") for b in blocks]
    groups = [m.texts for m in e2e(folder / "test.txt") if len(m.texts) >= 3][:200]
    left_out = [g[0] for g in groups], [g[1:] for g in groups]
    return {"example": (*example, scores["example"]), "leave_one_out_200": (*left_out, scores["leave_one_out_200"])}


BOTH = pytest.mark.parametrize("name", ["example", "leave_one_out_200"])


def test_a_line_separator_inside_a_text_does_not_end_its_line(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffname[Zoë]||Zoë is\u2028here\x85now.\n", encoding="utf-8")
    assert [m.texts for m in e2e(tmp_path / "a.txt")] == [("Zoë is\u2028here\x85now.",)]


@BOTH
def test_bleu_and_nist_are_the_official_scores(official, name):
    texts, references, scores = official[name]
    assert bleu(texts, references) == pytest.approx(scores["BLEU"], abs=1e-9)
    assert nist(texts, references) == pytest.approx(scores["NIST"], abs=1e-9)


@pytest.mark.parametrize("name", ["example", pytest.param("leave_one_out_200", marks=pytest.mark.slow)])
@needs_java
def test_rouge_cider_and_meteor_are_the_official_scores_where_java_is_found(official, name):
    texts, references, scores = official[name]
    got = text_overlap(texts, references)
    assert got.tokenizer == "ptb (java)"
    assert got.rouge_l == pytest.approx(scores["ROUGE_L"], abs=1e-9)
    assert got.cider == pytest.approx(scores["CIDEr"], abs=1e-9)
    assert got.meteor == pytest.approx(scores["METEOR"], abs=1e-9)


@BOTH
def test_without_java_rouge_and_cider_are_near_and_meteor_is_not_computed(official, name):
    texts, references, scores = official[name]
    got = text_overlap(texts, references, java=False)
    assert (got.tokenizer, got.meteor) == ("ptb-like", None)
    assert got.rouge_l == pytest.approx(scores["ROUGE_L"], abs=0.002)
    assert got.cider == pytest.approx(scores["CIDEr"], abs=0.02)


def test_nltk_scores_nist_by_another_definition_which_is_why_it_is_not_printed(official):
    from nltk.translate.nist_score import corpus_nist
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    texts, references, scores = official["example"]
    split = Tokenizer13a()
    theirs = corpus_nist(
        [[split(r.lower()).split() for r in several] for several in references],
        [split(t.lower()).split() for t in texts],
        n=5,
    )
    assert abs(theirs - scores["NIST"]) > 1


def test_nist_of_one_text_by_hand():
    # "a b" against "a c": one unigram of two hits, log2(2 / 1) of information; the bigram misses; equal lengths
    assert nist(["a b"], [["a c"]]) == pytest.approx(1 / 2)
    # half as long as the references: the penalty of a ratio of one half
    short = nist(["a"], [["a c"]])
    from math import exp, log

    assert short == pytest.approx(exp(log(0.5) / log(1.5) ** 2 * log(0.5) ** 2))


def test_an_empty_text_scores_nothing_and_breaks_nothing():
    assert nist([""], [["a c"]]) == 0
    assert text_overlap(["", "a b"], [["a c"], ["a b"]], java=False).bleu >= 0


def test_tokens_are_lower_case_without_punctuation():
    assert ptb_like("It isn't far. Go!") == "it is n't far go"
    assert ptb_like("£20-£25 (cheap)") == "# 20 # 25 cheap"


def test_texts_without_references_are_refused():
    for texts, references in (([], []), (["a"], []), (["a"], [[]])):
        with pytest.raises(BadDataset, match="give each text some"):
            text_overlap(texts, references)
    for texts, references in ((["a b"], ["a c"]), ("ab", [["a"], ["b"]])):
        with pytest.raises(BadDataset, match="each has a list of references; got a single text"):
            text_overlap(texts, references)


def test_the_reader_groups_texts_by_meaning(tmp_path):
    path = tmp_path / "e2e.txt"
    path.write_text(
        "name : A | area : riverside||A is there . \n\nname : B||B is .\nname : A | area : riverside||There is A .\n"
    )
    first, second = e2e(path)
    assert (first.meaning, first.texts) == ("name : A | area : riverside", ("A is there .", "There is A ."))
    assert second.texts == ("B is .",)
    assert e2e_examples((second,)) == [SftExample("name : B ||", " B is .")]


@pytest.mark.parametrize(
    "text, message",
    [("", "is empty"), ("name : A\n", "line 1"), ("a||b\nname : B||\n", "line 2"), ("||text\n", "line 1")],
)
def test_malformed_files_are_refused_by_line(tmp_path, text, message):
    path = tmp_path / "e2e.txt"
    path.write_text(text)
    with pytest.raises(BadDataset, match=message):
        e2e(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadDataset, match="cannot be read as UTF-8"):
        e2e(tmp_path / "none.txt")


def test_the_shared_file_is_read_whole(shared_data):
    meanings = e2e(shared_data / "e2e" / "test.txt")
    assert sum(len(m.texts) for m in meanings) == 4693
    assert len(meanings) == 630


PROMPTS = ["name : A ||", "name : Blue Spice | area : riverside ||", "food : Chinese ||"]


def test_beam_search_batched_is_beam_search_one_by_one_and_finds_likelier_texts_than_greedy():
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    settings = BeamSettings(beams=4, max_new_tokens=6, no_repeat_ngram=0, length_penalty=0.0)
    together = beam_texts(model, tokenizer, PROMPTS, NoEdit(), settings=settings)
    assert together == [beam_texts(model, tokenizer, [p], NoEdit(), settings=settings)[0] for p in PROMPTS]

    def best(beams):
        ids = tokenizer(PROMPTS[1], return_tensors="pt")["input_ids"]
        out = model.generate(
            input_ids=ids, num_beams=beams, max_new_tokens=6, do_sample=False, pad_token_id=0, length_penalty=0.0,
            min_new_tokens=6,
        )  # fmt: skip
        with torch.no_grad():
            logprobs = model(out).logits[0].log_softmax(-1)
        return sum(float(logprobs[i, t]) for i, t in pairwise_after(out[0].tolist(), ids.shape[1]))

    assert best(4) >= best(1)


def pairwise_after(ids, start):
    return [(i, b) for i, (_, b) in enumerate(pairwise(ids)) if i + 1 >= start]


def test_beam_search_runs_under_an_edit():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    settings = BeamSettings(beams=2, max_new_tokens=6)
    plain = beam_texts(model, tokenizer, PROMPTS, NoEdit(), settings=settings)
    assert beam_texts(model, tokenizer, PROMPTS, random_shift(model), settings=settings) != plain
    assert beam_texts(model, tokenizer, PROMPTS, random_shift(model).scaled(0), settings=settings) == plain


def test_what_may_not_be_repeated_is_not():
    model, pairs = tiny_model(), {}
    generate = model.generate
    for n in (2, 0):

        def noted(n=n, **options):
            found = generate(**options)
            pairs[n] = list(itertools.pairwise(found[0].tolist()))
            return found

        model.generate = noted
        settings = BeamSettings(beams=2, max_new_tokens=40, no_repeat_ngram=n)
        beam_texts(model, tiny_tokenizer(), PROMPTS[:1], NoEdit(), settings=settings)
    assert len(set(pairs[2])) == len(pairs[2]) > 3
    # the control: this model repeats itself if it may
    assert len(set(pairs[0])) < len(pairs[0])


def test_bad_settings_and_prompts_are_refused():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with pytest.raises(BadValue, match="beams and max_new_tokens"):
        BeamSettings(beams=0)
    with pytest.raises(BadDataset, match="no prompts"):
        beam_texts(model, tokenizer, [], NoEdit())
    with pytest.raises(BadValue, match="context of 256"):
        beam_texts(model, tokenizer, ["word " * 300], NoEdit())
