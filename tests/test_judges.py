"""Judges: local models, an endpoint, a small trained one; nonsense is an error that names the judge."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.datasets import Question
from trimtab.errors import BadDataset, BadValue
from trimtab.evaluate import Verdict, generate_answers
from trimtab.evaluate.judges import EndpointJudge, LocalJudge, TfidfJudge
from trimtab.models import LoadedModel

SKY = Question("What is the colour of the sky?", ("The sky is blue.",), ("The sky is green.",))


class Biased(torch.nn.Module):
    """Any model whose next token is always one and the same, with what it was asked."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.inner, self.word, self.asked = tiny_model(), word, []
        self.config = self.inner.config

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def forward(self, input_ids, use_cache=False):
        self.asked.append(tiny_tokenizer().decode(input_ids[0], skip_special_tokens=True))
        out = self.inner(input_ids=input_ids, use_cache=use_cache)
        prompt = len(input_ids[0])
        word = tiny_tokenizer()(self.asked[-1] + self.word)["input_ids"][prompt]
        out.logits[..., word] = 1e4
        return out


@pytest.mark.parametrize("truth, info", [(" yes", " no"), (" no", " yes")])
def test_local_judges_are_asked_in_truthfulqa_s_form(truth, info):
    models = Biased(truth), Biased(info)
    judge = LocalJudge(*(LoadedModel(m, tiny_tokenizer()) for m in models))
    # tiny tokens: " yes" and " no" share their first one, so the words are told apart by whole words elsewhere
    first = {
        w: tiny_tokenizer()("True:" + w)["input_ids"][len(tiny_tokenizer()("True:")["input_ids"])]
        for w in (" yes", " no")
    }
    if len(set(first.values())) < 2:
        pytest.skip("the tiny tokenizer splits both words after the same space")
    assert judge(SKY, "The sky is blue.") == Verdict(float(truth == " yes"), float(info == " yes"))
    assert models[0].asked == ["Q: What is the colour of the sky?\nA: The sky is blue.\nTrue:"]
    assert models[1].asked == ["Q: What is the colour of the sky?\nA: The sky is blue.\nHelpful:"]


def test_a_local_model_that_is_no_judge_is_named():
    judge = LocalJudge(*(LoadedModel(Biased(" blue"), tiny_tokenizer()) for _ in range(2)), {"truth": "some/model"})
    with pytest.raises(BadValue, match="judge some/model answered"):
        judge(SKY, "The sky is blue.")


@pytest.fixture
def endpoint():
    """Return a function that serves given replies and gives (address, requests seen)."""
    servers = []

    def serve(*replies: str | bytes):
        seen, waiting = [], list(replies)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                seen.append((self.path, self.headers.get("Authorization"), json.loads(body)))
                reply = waiting.pop(0)
                if isinstance(reply, str):
                    reply = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(reply)

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
    url, _ = endpoint(reply)
    with pytest.raises(BadValue, match=r"judge grader at http.* answered"):
        EndpointJudge(url, "grader")(SKY, "Blue.")


def test_an_endpoint_that_is_not_there_or_no_chat_endpoint_is_named(endpoint):
    url, _ = endpoint(b"<html>")
    with pytest.raises(BadValue, match="does not answer as an OpenAI chat endpoint"):
        EndpointJudge(url, "grader")(SKY, "Blue.")
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
    rows = [(f"Q{i}", "a", "yes" if i % 2 else "no") for i in range(20)]
    written(tmp_path, rows, rows)
    with (tmp_path / "finetune_info.jsonl").open("a") as file:
        file.write('{"prompt": "hello", "completion": " yes"}\n')
    with pytest.raises(BadDataset, match=r"finetune_info\.jsonl, line 21"):
        TfidfJudge.train(tmp_path)
    with pytest.raises(BadDataset, match="cannot be read"):
        TfidfJudge.train(tmp_path / "nowhere")


@pytest.mark.slow
def test_the_trained_judge_on_truthfulqa_s_data(shared_data):
    judge = TfidfJudge.train(shared_data / "truthfulqa")
    # measured: 70 % and 84 %; always the commoner answer: 58 % and 81 %
    for kind in ("true", "informative"):
        assert judge.agreement[kind].low > judge.majority[kind]
