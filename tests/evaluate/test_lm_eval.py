"""Convention "lm-eval" against lm-evaluation-harness itself, run offline on the same model and tokenizer."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from importlib.resources import files

import pytest
import yaml
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import FAMILIES, tiny_model, tiny_questions, tiny_tokenizer
from trimtab.datasets import Question, truthfulqa
from trimtab.datasets.primer import QA_PRIMER
from trimtab.edits.prompts import Prompted
from trimtab.errors import BadValue
from trimtab.evaluate import multiple_choice
from trimtab.protocols import Cost, Edit

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks.truthfulqa.utils import process_results_mc2

TOLERANCE = 1e-4


def harness_logprobs(model, tokenizer, pairs, *, batch_size=3):
    """Return HFLM's log-likelihoods of (context, continuation) pairs, with its default options."""
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    return [logprob for logprob, _ in harness.loglikelihood(requests, disable_tqdm=True)]


def both(model, tokenizer, questions, edit=None):
    """Return our log-probabilities and the harness's on the contexts and answers in our rows."""
    rows = multiple_choice(model, tokenizer, questions, edit, convention="lm-eval", batch_size=4).rows
    pairs = [(row.prompt, " " + a.text) for row in rows for a in row.answers]
    return [a.logprob for row in rows for a in row.answers], harness_logprobs(model, tokenizer, pairs)


@dataclass(frozen=True)
class AskedAs(Edit):
    """An edit that asks in a context of any form."""

    form: str
    name: str = "asked as"
    cost: Cost = field(default_factory=Cost)
    leaves_prompt_unedited: bool = True

    def applied(self, model, positions="generated"):
        return contextlib.nullcontext(model)

    def prompt(self, question):
        return self.form.format(question)

    def describe(self):
        return {"form": self.form}


def bare_tokenizer(*, split_words=True, merges=("Q: What is the colour",)):
    """Return a byte-level BPE tokenizer that puts nothing first and merges what it is trained on."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split_words)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(list(merges) * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_equal_the_harness(family):
    ours, theirs = both(tiny_model(family, context=1000), tiny_tokenizer(), tiny_questions(2))
    assert ours == pytest.approx(theirs, abs=TOLERANCE, rel=0)


def test_the_tokenizers_own_first_token_is_used_as_the_harness_does_by_default():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    ours, theirs = both(model, tokenizer, tiny_questions(2), Prompted((("What is snow?", "Snow is white."),)))
    assert ours == pytest.approx(theirs, abs=TOLERANCE, rel=0)
    # control: without it the harness gives other numbers
    without = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, add_bos_token=False)
    assert without.tok_encode("Q: Why?")[0] != tokenizer.bos_token_id
    row = multiple_choice(model, tokenizer, tiny_questions(1), AskedAs("Q: {}\nA:"), convention="lm-eval").rows[0]
    request = Instance("loglikelihood", {}, (row.prompt, " " + row.answers[0].text), 0)
    assert abs(without.loglikelihood([request], disable_tqdm=True)[0][0] - row.answers[0].logprob) > 0.01


@pytest.mark.parametrize(
    "form",
    ["<bos>Q: {}\nA:", "Q: {}\nA: ", "Q: {}\nA:\n\n", "Q: {}\nA"],
    ids=["first token written out", "space at the end", "blank line at the end", "no colon"],
)
@pytest.mark.parametrize("own_first_token", [True, False])
def test_contexts_of_any_form_are_tokenised_as_the_harness_does(form, own_first_token):
    tokenizer = tiny_tokenizer() if own_first_token else bare_tokenizer()
    ours, theirs = both(tiny_model(), tokenizer, tiny_questions(2), AskedAs(form))
    assert ours == pytest.approx(theirs, abs=TOLERANCE, rel=0)


def test_a_first_token_that_is_written_out_is_not_doubled():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    written, implied = (
        multiple_choice(model, tokenizer, tiny_questions(1), AskedAs(form), convention="lm-eval").rows[0]
        for form in ("<bos>Q: {}\nA:", "Q: {}\nA:")
    )
    assert [a.logprob for a in written.answers] == [a.logprob for a in implied.answers]


def test_tokens_that_span_context_and_answer_are_split_as_the_harness_does():
    tokenizer = bare_tokenizer(split_words=False, merges=(": The colour",))
    apart, joint = (tokenizer(text)["input_ids"] for text in ("A:", "A: The colour"))
    assert joint[: len(apart)] != apart  # otherwise nothing spans the border
    ours, theirs = both(tiny_model(), tokenizer, tiny_questions(2), AskedAs("Q: {}\nA:"))
    assert ours == pytest.approx(theirs, abs=TOLERANCE, rel=0)


def test_an_answer_without_tokens_of_its_own_is_refused():
    tokenizer = bare_tokenizer(split_words=False, merges=(": a",))
    question = Question("Why?", ("a",), ("b",))
    with pytest.raises(BadValue, match=r"the answer in .*A: a' is empty after tokenisation"):
        multiple_choice(tiny_model(), tokenizer, [question], AskedAs("Q: {}\nA:"), convention="lm-eval")


def test_a_context_without_tokens_is_refused():
    with pytest.raises(BadValue, match=r"the prompt in .* is empty after tokenisation"):
        multiple_choice(tiny_model(), bare_tokenizer(), tiny_questions(1), AskedAs("  "), convention="lm-eval")


def harness_task(metric, docs):
    """Return the harness's own TruthfulQA task (its YAML: prompts, choices, rules), on documents given here."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: process_results_mc2)
    folder = files("lm_eval.tasks.truthfulqa")
    names = ["truthfulqa_mc1.yaml", "truthfulqa_mc2.yaml"][: 1 if metric == "mc1" else 2]
    config = {}
    for name in names:
        config |= yaml.load(folder.joinpath(name).read_text(encoding="utf-8"), Loader)
    config.pop("include", None)
    dataset = {"validation": Dataset.from_list(docs)}
    return ConfigurableTask(config={**config, "custom_dataset": lambda **options: dataset})


@pytest.fixture(scope="module")
def asked(shared_data):
    """Return the first 40 TruthfulQA questions, as the hub's documents and as our result on them."""
    path = shared_data / "truthfulqa" / "mc_task.json"
    rows = json.loads(path.read_text(encoding="utf-8"))[:40]
    # a larger vocabulary, so that texts are short and the harness's probabilities do not underflow
    texts = [QA_PRIMER, *(a for row in rows for a in row["mc2_targets"])]
    tokenizer = tiny_tokenizer().train_new_from_iterator(texts, 1500, show_progress=False)
    model = tiny_model("llama-gqa", vocab_size=1500, context=1000)
    result = multiple_choice(model, tokenizer, truthfulqa(path)[:40], convention="lm-eval", batch_size=32)
    docs = [
        {"question": row["question"]}
        | {k: {"choices": list(row[k]), "labels": list(row[k].values())} for k in ("mc1_targets", "mc2_targets")}
        for row in rows
    ]
    return model, tokenizer, docs, result


@pytest.mark.parametrize("metric", ["mc1", "mc2"])
def test_truthfulqa_scores_equal_the_harness_rules_on_the_same_log_probabilities(asked, metric):
    _, _, docs, result = asked
    task = harness_task(metric, docs)
    theirs = []
    for doc, row in zip(docs, result.rows, strict=True):
        known = {a.text: a.logprob for a in row.answers}
        scores = [(known[choice], False) for choice in task.doc_to_choice(doc)]
        theirs.append(float(task.process_results(doc, scores)["acc"]))
    assert [getattr(row, metric) for row in result.rows] == pytest.approx(theirs, abs=1e-9)
    assert float(getattr(result, metric)) == pytest.approx(sum(theirs) / 40, abs=1e-9)
    assert len(set(theirs)) > 1  # otherwise the agreement says little


def test_truthfulqa_contexts_and_choices_are_the_harness_tasks(asked):
    _, _, docs, result = asked
    task = harness_task("mc2", docs)
    for doc, row in zip(docs, result.rows, strict=True):
        assert task.doc_to_text(doc) == row.prompt
        assert sorted(task.doc_to_choice(doc)) == sorted(a.text for a in row.answers)
        assert task.config.target_delimiter == " "


def test_truthfulqa_log_probabilities_equal_the_harness(asked):
    model, tokenizer, _, result = asked
    rows = result.rows[:6]
    pairs = [(row.prompt, " " + a.text) for row in rows for a in row.answers]
    theirs = harness_logprobs(model, tokenizer, pairs, batch_size=16)
    assert [a.logprob for row in rows for a in row.answers] == pytest.approx(theirs, abs=TOLERANCE, rel=0)
