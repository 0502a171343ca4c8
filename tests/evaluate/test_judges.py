"""Judges: local models, an endpoint, a small trained one; nonsense is an error that names the judge."""

from __future__ import annotations

import json
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.datasets import Question
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate import Verdict, generate_answers
from trimtab.evaluate.judges import EndpointJudge, LocalJudge, TfidfJudge
from trimtab.models import LoadedModel

SKY = Question("What is the colour of the sky?", ("The sky is blue.",), ("The sky is green.",))


@cache
def yes_no_tokenizer():
    """Return a tokenizer to which " yes", " no" and " blue" are one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["True: yes no blue"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


class Biased(torch.nn.Module):
    """Any model whose next token is always one and the same, with what it was asked."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.inner, self.asked = tiny_model(vocab_size=300), []
        (self.word,) = yes_no_tokenizer()(word)["input_ids"]
        self.config = self.inner.config

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def forward(self, input_ids, use_cache=False):
        self.asked.append(yes_no_tokenizer().decode(input_ids[0], skip_special_tokens=True))
        out = self.inner(input_ids=input_ids, use_cache=use_cache)
        out.logits[..., self.word] = 1e4
        return out


@pytest.mark.parametrize("truth, info", [(" yes", " no"), (" no", " yes")])
def test_local_judges_are_asked_in_truthfulqa_s_form(truth, info):
    asked = Biased(truth), Biased(info)
    judge = LocalJudge(*(LoadedModel(m, yes_no_tokenizer()) for m in asked))
    assert judge(SKY, "The sky is blue.") == Verdict(float(truth == " yes"), float(info == " yes"))
    assert asked[0].asked == ["Q: What is the colour of the sky?\nA: The sky is blue.\nTrue:"]
    assert asked[1].asked == ["Q: What is the colour of the sky?\nA: The sky is blue.\nHelpful:"]


def test_a_local_model_that_is_no_judge_is_named():
    judge = LocalJudge(*(LoadedModel(Biased(" blue"), yes_no_tokenizer()) for _ in range(2)), {"truth": "some/model"})
    with pytest.raises(BadValue, match="judge some/model answered 'blue'"):
        judge(SKY, "The sky is blue.")
    # the tiny tokenizer begins both words with the same space
    judge = LocalJudge(*(LoadedModel(tiny_model(), tiny_tokenizer()) for _ in range(2)), {"truth": "some/model"})
    with pytest.raises(BadValue, match="judge some/model cannot be used: its tokenizer begins yes and no"):
        judge(SKY, "The sky is blue.")


@pytest.fixture
def endpoint():
    """Return a function that serves given replies and gives (address, requests seen)."""
    servers = []

    def serve(*replies: str | bytes | int):
        """Serve contents of messages, whole bodies, or status codes; the last one again and again."""
        seen, waiting = [], list(replies)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                seen.append((self.path, self.headers.get("Authorization"), json.loads(body)))
                reply = waiting.pop(0) if len(waiting) > 1 else waiting[0]
                if isinstance(reply, str):
                    reply = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
                self.send_response(reply if isinstance(reply, int) else 200)
                self.end_headers()
                self.wfile.write(reply if isinstance(reply, bytes) else b"")

            def log_message(self, *args):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1", seen

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_an_endpoint_is_asked_once_an_answer_with_the_known_answers(endpoint):
    url, seen = endpoint('{"true": true, "informative": false}', 'So: {"true": "no", "informative": 1}')
    judge = EndpointJudge(url, "grader", "secret")
    assert judge(SKY, "Blue.") == Verdict(1.0, 0.0)
    assert judge(SKY, "Green.") == Verdict(0.0, 1.0)
    path, key, body = seen[0]
    assert (path, key, body["model"], body["temperature"]) == ("/v1/chat/completions", "Bearer secret", "grader", 0)
    assert "True: The sky is blue." in body["messages"][1]["content"]
    assert "Answer to grade: Blue." in body["messages"][1]["content"]
    assert "secret" not in repr(judge) + json.dumps(judge.record)


@pytest.mark.parametrize("reply", ["Certainly!", '{"true": "perhaps", "informative": true}', '{"true": true}', "{"])
def test_an_endpoint_that_answers_nonsense_is_named(endpoint, reply):
    url, seen = endpoint(reply)
    with pytest.raises(BadValue, match=r"judge grader at http.* answered"):
        EndpointJudge(url, "grader", pause=0)(SKY, "Blue.")
    assert len(seen) == 3


GOOD = '{"true": true, "informative": true}'


@pytest.mark.parametrize("bad", ["Certainly!", b"<html>", 503, 429])
def test_a_passing_fault_of_an_endpoint_costs_another_try_only(endpoint, bad):
    url, seen = endpoint(bad, bad, GOOD)
    assert EndpointJudge(url, "grader", pause=0)(SKY, "Blue.") == Verdict(1.0, 1.0)
    assert len(seen) == 3


@pytest.mark.parametrize("refusal", [401, 404])
def test_a_request_that_is_refused_is_not_repeated(endpoint, refusal):
    url, seen = endpoint(refusal, GOOD)
    with pytest.raises(BadValue, match=f"cannot be asked .*{refusal}"):
        EndpointJudge(url, "grader", pause=0)(SKY, "Blue.")
    assert len(seen) == 1


def counting_model():
    """Return a tiny model that counts its calls of `generate`."""
    model = tiny_model()
    model.calls, generate = 0, model.generate

    def counted(*args, **kwargs):
        model.calls += 1
        return generate(*args, **kwargs)

    model.generate = counted
    return model


def test_a_judge_that_fails_loses_neither_answers_nor_verdicts(endpoint, tmp_path):
    model, questions = counting_model(), tiny_questions(4)
    url, seen = endpoint(GOOD, GOOD, "mu")
    ask = {"judge": EndpointJudge(url, "grader", pause=0), "max_new_tokens": 3, "keep": tmp_path}
    with pytest.raises(BadValue, match=r"4 answers and 2 verdicts are kept in .*: another try"):
        generate_answers(model, tiny_tokenizer(), questions, **ask)
    assert (model.calls, len(seen)) == (1, 2 + 3)
    url, seen = endpoint('{"true": false, "informative": true}')
    again = EndpointJudge(url, "grader", pause=0)
    # another address is another judge
    said = generate_answers(model, tiny_tokenizer(), questions, **{**ask, "judge": again})
    assert (model.calls, len(seen), float(said.true)) == (1, 4, 0.0)
    # all is kept: nothing is generated or asked again, and the figures are those of a run that kept nothing
    same = generate_answers(model, tiny_tokenizer(), questions, **{**ask, "judge": again})
    assert (model.calls, len(seen)) == (1, 4)
    fresh = generate_answers(model, tiny_tokenizer(), questions, judge=again, max_new_tokens=3)
    assert same == said == fresh


def test_a_run_that_stopped_between_verdicts_goes_on_from_the_last_whole_one(tmp_path):
    class Oracle:
        def __init__(self, verdict):
            self.record, self.asked, self.verdict = {"name": "the oracle"}, 0, verdict

        def __call__(self, question, answer):
            self.asked += 1
            return self.verdict

    model, questions = tiny_model(), tiny_questions(4)
    asked = (model, tiny_tokenizer(), questions)
    options = {"max_new_tokens": 3, "keep": tmp_path}
    generate_answers(*asked, judge=Oracle(Verdict(1, 1)), **options)
    (file,) = tmp_path.glob("*/verdicts.jsonl")
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], lines[2][:20]]))
    second = Oracle(Verdict(0, 1))
    assert float(generate_answers(*asked, judge=second, **options).true) == 0.5
    assert second.asked == 2
    third = Oracle(Verdict(0, 1))
    assert float(generate_answers(*asked, judge=third, **options).true) == 0.5
    assert third.asked == 0
    # a function has no record to be known by: it may have changed, and is asked again
    assert float(generate_answers(*asked, judge=lambda question, answer: Verdict(1, 1), **options).true) == 1.0


def test_answers_of_another_edit_model_or_length_are_not_taken_for_these(tmp_path):
    from trimtab.activations import Head
    from trimtab.edits.vectors import HeadShift

    model = counting_model()
    shift = HeadShift((Head(0, 1),), torch.eye(12)[:1], torch.ones(1))
    other = HeadShift((Head(0, 1),), torch.eye(12)[1:2], torch.ones(1))
    calls = 0
    for edit, tokens in ((None, 3), (shift, 3), (other, 3), (shift.scaled(2), 3), (None, 4)):
        for _ in range(2):
            generate_answers(model, tiny_tokenizer(), tiny_questions(2), edit, max_new_tokens=tokens, keep=tmp_path)
        calls += 1
        assert model.calls == calls
    assert len(list(tmp_path.iterdir())) == calls
    changed = counting_model()
    with torch.no_grad():
        changed.get_input_embeddings().weight.mul_(1.5)
    generate_answers(changed, tiny_tokenizer(), tiny_questions(2), max_new_tokens=3, keep=tmp_path)
    assert changed.calls == 1


def test_an_endpoint_that_is_not_there_or_no_chat_endpoint_is_named(endpoint):
    url, _ = endpoint(b"<html>")
    with pytest.raises(BadValue, match="does not answer as an OpenAI chat endpoint"):
        EndpointJudge(url, "grader", pause=0)(SKY, "Blue.")
    with pytest.raises(BadValue, match="cannot be asked"):
        EndpointJudge("http://127.0.0.1:9", "grader")(SKY, "Blue.")
    with pytest.raises(BadValue, match="must start with http"):
        EndpointJudge("ftp://x", "grader")


def test_a_judge_that_answers_nonsense_is_named_by_generate_answers():
    class Oracle:
        def __init__(self):
            self.record = {"name": "the oracle"}

        def __call__(self, question, answer):
            return "mu"

    with pytest.raises(BadValue, match="judge the oracle returned 'mu'"):
        generate_answers(tiny_model(), tiny_tokenizer(), tiny_questions(1), judge=Oracle(), max_new_tokens=2)


def written(folder, rows_true, rows_info):
    for name, rows, tail in (("truth", rows_true, "True:"), ("info", rows_info, "Helpful:")):
        lines = [{"prompt": f"Q: {q}\nA: {a}\n{tail}", "completion": f" {y}"} for q, a, y in rows]
        (folder / f"finetune_{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_trained_judge_measures_its_agreement_on_questions_it_did_not_see(tmp_path):
    rows = [(f"Question {i}?", "It is certainly so." if i % 2 else "Nobody can say.", "yes" if i % 2 else "no")
            for i in range(60)]  # fmt: skip
    judge = TfidfJudge.train(written(tmp_path, rows, rows))
    assert float(judge.agreement["true"]) == 1.0
    assert judge.agreement["true"].n == 12
    assert judge(Question("New?", ("a",), ("b",)), "It is certainly so.") == Verdict(1.0, 1.0)
    # the control: labels that say nothing about the words cannot be learned
    noise = [(f"Question {i}?", "It is so.", "yes" if (i * 7919) % 13 < 6 else "no") for i in range(60)]
    assert float(TfidfJudge.train(written(tmp_path, noise, rows)).agreement["true"]) < 0.85


def test_judge_data_of_another_form_is_refused_by_line(tmp_path):
    rows = [(f"Question {i}", "It is so.", "yes" if i % 2 else "no") for i in range(20)]
    written(tmp_path, rows, rows)
    with (tmp_path / "finetune_info.jsonl").open("a") as file:
        file.write('{"prompt": "hello", "completion": " yes"}\n')
    with pytest.raises(BadDataset, match=r"finetune_info\.jsonl, line 21"):
        TfidfJudge.train(tmp_path)
    with pytest.raises(BadDataset, match=r"no finetune_truth\.jsonl and no finetune_info\.jsonl in"):
        TfidfJudge.train(tmp_path / "nowhere")


@pytest.mark.slow
def test_the_trained_judge_on_truthfulqa_s_data(shared_data):
    judge = TfidfJudge.train(shared_data / "truthfulqa")
    # measured: 70 % and 84 %; always the commoner answer: 58 % and 81 %
    for kind in ("true", "informative"):
        assert judge.agreement[kind].low > judge.majority[kind]
