"""The steering verbs as a user meets them, from fit to convert, and bad input to each."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.cut import cut_data
from tests.tiny import tiny_model, tiny_tokenizer
from trimtab import cli

ROOT = Path(__file__).parents[2]
PAIRS = str(ROOT / "examples" / "formal_casual.jsonl")
VERBS = ("fit", "heads", "generate", "chat", "evaluate", "bake", "convert from-iti", "convert to-lm-eval")


def run(*arguments: str, stdin: str | bytes | None = None):
    return CliRunner().invoke(cli.app, list(arguments), input=stdin, terminal_width=120)


def ran(*arguments: str, stdin: str | None = None) -> str:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """Return a folder with a tiny random model."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model("llama-gqa", context=2000).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def shift(tmp_path_factory) -> str:
    """Return a shift folder of the embedded model."""
    out = tmp_path_factory.mktemp("runs") / "shift"
    ran("fit", "--limit", "100", "--top-k", "8", "--strength", "1", "--out", str(out))
    return str(out)


@pytest.fixture
def few_texts(monkeypatch):
    cut_data(monkeypatch)


def test_fit_writes_a_shift_and_its_probes_and_says_how_the_strength_was_chosen(few_texts, tiny, tmp_path):
    pairs = ("fit", "--model", tiny, "--data", PAIRS, "--out", str(tmp_path / "s"), "--keep-anyway")
    record = json.loads(ran(*pairs, "--json"))
    assert record["kind"] == "residual shift"
    assert record["sweep"]["metric"] == "reading"
    assert all(len(t["answers"]) == 6 for t in record["sweep"]["trials"])
    assert record["data"] == {"name": "formal_casual", "n": 30, "fingerprint": record["data"]["fingerprint"]}
    assert {p.name for p in (tmp_path / "s").iterdir()} == {"record.json", "shift", "probes", "directions", "ranking"}
    text = ran("fit", "--model", tiny, "--data", PAIRS, "--site", "residual", "--strength", "0.5",
               "--out", str(tmp_path / "r"))  # fmt: skip
    assert "CAA: 1 layers" in text
    assert "strength 0.5, as given" in text
    rows = json.loads(ran("heads", str(tmp_path / "r"), "--json"))
    assert len(rows) == 3
    scored = json.loads(ran("evaluate", "--model", tiny, "--data", PAIRS, "--shift", str(tmp_path / "r"), "--json"))
    assert (scored["setting"]["n"], scored["setting"]["fitted_on"]) == (10, 30)
    (row,) = scored["rows"]
    read = {"reading", "repeated", "P(positive)", "preferred", "margin"}
    assert set(row) == {"name", *read, "CE", "KL", "KL 95 %", "details"}
    assert len(row["details"]["pairs"]) == len(row["details"]["reading"]) == 10
    told = ran("evaluate", "--model", tiny, "--data", PAIRS, "--shift", str(tmp_path / "r"), "--baseline", "--no-drift")
    answer = " ".join(row["details"]["reading"][0]["text"].split())
    assert [line for line in told.splitlines() if line.startswith("  ")][1] == f"  CAA: {answer}"


def test_a_fit_that_does_not_work_is_told_and_not_written_unless_it_is_to_be_kept(
    few_texts, tiny, tmp_path, monkeypatch
):
    from trimtab.steer.outcome import Outcome

    told = Outcome("does not work", "does not work: try something else")
    monkeypatch.setattr("trimtab.steer.pipeline.outcome_of", lambda *_, **__: told)
    command = ("fit", "--model", tiny, "--data", PAIRS, "--layers", "1-2", "--quick", "--out", str(tmp_path / "s"))
    result = run(*command)
    assert result.exit_code == 3 and not (tmp_path / "s").exists()
    assert result.stdout.endswith("does not work: try something else\nnot written; --keep-anyway writes it\n")
    assert "10 held back for `trimtab evaluate`" in result.stdout
    tried = [line.split("\t")[0] for line in result.stdout.splitlines() if line.startswith(("layer ", "random "))]
    assert set(tried) >= {"random directions"} and {"layer 1", "layer 2"} & set(tried) and "layer 0" not in tried
    ran(*command, "--keep-anyway")
    rows = json.loads(ran("heads", str(tmp_path / "s"), "--json"))
    assert {row["layer"] for row in rows if "effect" in row} == {1, 2}


def test_evaluate_leaves_drift_out_or_takes_so_many_texts(tiny):
    command = ("evaluate", "--model", tiny, "--data", PAIRS, "--limit", "2", "--json")
    (row,) = json.loads(ran(*command, "--no-drift"))["rows"]
    assert "KL" not in row and "drift" not in row["details"]
    (row,) = json.loads(ran(*command, "--texts", "3"))["rows"]
    assert len(row["details"]["drift"]) == 3


def test_heads_lists_the_best_and_draws_them(shift, tmp_path):
    lines = ran("heads", shift, "--top", "3", "--plot", str(tmp_path / "h.png")).splitlines()
    assert lines[0].split("\t")[:3] == ["layer", "head", "accuracy"]
    assert len(lines) == 4
    assert [float(line.split("\t")[2]) for line in lines[1:]] == sorted(
        (float(line.split("\t")[2]) for line in lines[1:]), reverse=True
    )
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")


def test_heads_against_another_load_says_how_far_directions_move(few_texts, tiny, tmp_path):
    one, other = str(tmp_path / "float32"), str(tmp_path / "bfloat16")
    for out, dtype in ((one, "float32"), (other, "bfloat16")):
        ran("fit", "--model", tiny, "--limit", "30", "--top-k", "3", "--strength", "1", "--dtype", dtype, "--out", out)
    shown = ran("heads", one, "--against", other, "--plot", str(tmp_path / "a.png"))
    assert shown.splitlines()[0].split("\t")[:3] == ["layer", "head", "cosine"]
    assert f"MC1: not measured for {one} and {other}" in shown
    assert "(by chance 0.25)" in shown
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    same = json.loads(ran("heads", one, "--against", one, "--json"))
    assert same["overlap"] == 1 and min(map(min, same["cosine"])) == pytest.approx(1)
    for out, dtype in ((one, "float32"), (other, "bfloat16")):
        ran("evaluate", "--model", tiny, "--shift", out, "--dtype", dtype, "--choices-only", "--limit", "5", "--keep")
    found = json.loads(ran("heads", one, "--against", other, "--top", "2", "--json"))
    assert found["loads"] == ["float32", "bfloat16"]
    assert (len(found["top"]), found["mc1"]["n"]) == (2, 5)
    assert 0.9 < min(map(min, found["cosine"])) < 1
    assert "points [" in ran("heads", one, "--against", other)


def test_heads_refuses_fits_that_are_not_of_one_model(few_texts, shift, tiny, tmp_path):
    fit = ("fit", "--model", tiny, "--strength", "1")
    ran(*fit, "--limit", "20", "--out", str(tmp_path / "a"))
    ran(*fit, "--limit", "30", "--out", str(tmp_path / "b"))
    ran(*fit, "--limit", "20", "--site", "residual", "--out", str(tmp_path / "c"))
    shutil.copytree(tmp_path / "a", tmp_path / "d")
    (tmp_path / "d" / "multiple_choice.json").write_text("[]")
    for name, words in (
        ("b", "shown other statements"),
        ("c", "compare two of one --site"),
        ("d", "write it again with trimtab evaluate"),
        ("e", "no fit at"),
        (shift, "compare two loads of one model"),
    ):
        shutil.copy(tmp_path / "d" / "multiple_choice.json", tmp_path / "a")
        result = run("heads", str(tmp_path / "a"), "--against", str(tmp_path / name))
        assert result.exit_code == 2, result.output
        assert words in result.stderr
        assert result.stdout == ""
    result = run("evaluate", "--keep")
    assert (result.exit_code, "--keep needs a shift folder" in result.stderr) == (2, True)


QUESTION = "What is the dark core of an ordinary pencil made of?"


def test_generate_answers_from_arguments_files_and_pipes_in_text_and_json(shift, tmp_path):
    beside = ran("generate", QUESTION, "--shift", shift, "--compare")
    assert re.fullmatch(rf"{re.escape(QUESTION)}\n  unedited:  .+\n  edited:    .+\n", beside)
    unedited, shifted = (line.split(": ", 1)[1].strip() for line in beside.splitlines()[1:])
    assert unedited != shifted
    (tmp_path / "q.txt").write_text(f"{QUESTION}\n\nWhat is coal?\n")
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": QUESTION}) + "\n")
    rows = [
        json.loads(x)
        for x in ran("generate", "--file", str(tmp_path / "q.txt"), "--shift", shift, "--json").splitlines()
    ]
    assert [r["question"] for r in rows] == [QUESTION, "What is coal?"]
    assert rows[0]["edited"] == shifted
    assert ran("generate", "--file", str(tmp_path / "q.jsonl")).strip() == unedited
    assert ran("generate", stdin=QUESTION + "\n").strip() == unedited
    assert ran("generate", QUESTION, "--shift", shift, "--strength", "0").strip() == unedited


def test_questions_are_read_as_question_files_are(tiny, tmp_path):
    def asked(name: str, text: str) -> list[str]:
        (tmp_path / name).write_text(text, encoding="utf-8")
        said = ran("generate", "--file", str(tmp_path / name), "--model", tiny, "--max-new-tokens", "1", "--json")
        return [json.loads(line)["question"] for line in said.split("\n") if line]

    assert asked("q.txt", "\ufeffWhy\u2028so?\nHow\x0bmuch\x85?\n") == ["Why\u2028so?", "How\x0bmuch\x85?"]
    assert asked("q.JSONL", '\ufeff{"question": "Why?"}\n') == ["Why?"]
    assert asked("q.csv", "question,correct,incorrect\nWhy?,a,b\n") == ["Why?"]
    piped = ran("generate", "--model", tiny, "--max-new-tokens", "1", "--json", stdin="\ufeffWhy?\n")
    assert json.loads(piped)["question"] == "Why?"
    (tmp_path / "q.json").write_text("[]")
    refused = run("generate", "--file", str(tmp_path / "q.json"))
    assert (refused.exit_code, "holds no question" in refused.stderr) == (2, True)


FOREIGN = """
import contextlib
from trimtab.protocols import Edit
from trimtab.storage import load_record

class Mine(Edit):
    name = "mine"
    kind = "Mine"

    def applied(self, model, positions="generated"):
        return contextlib.nullcontext(model)

    def scaled(self, factor):
        return self

    @classmethod
    def load(cls, path):
        load_record(path, "Mine")
        return cls()
"""


def test_an_edit_of_a_class_of_the_user_s_and_a_stack_are_taken(tiny, tmp_path, monkeypatch):
    from trimtab.storage import save_result

    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(FOREIGN, encoding="utf-8")
    save_result("made", "Mine", {}, {})
    ask = ("generate", "Why?", "--model", tiny, "--max-new-tokens", "3", "--json", "--edit-class", "mine.py:Mine")
    for edits in (("--edit", "made"), ("--edit", "made", "--shift", "made:0.5")):
        said = json.loads(ran(*ask, "--compare", *edits))
        assert said["edited"] == said["unedited"]
    result = run(*ask, "--edit", "made", "--edit", "made", "--alpha", "2")
    assert (result.exit_code, "--strength is the strength of one edit" in result.stderr) == (2, True)


def test_sampling_is_hugging_face_s_and_repeats_by_seed(tiny):
    said = [ran("generate", "Why?", "--model", tiny, "--temperature", "1.5", "--top-k", "40", "--max-new-tokens", "12",
                "--seed", seed) for seed in ("1", "1", "2")]  # fmt: skip
    assert said[0] == said[1] != said[2]


def test_evaluate_prints_a_row_with_intervals_for_what_was_not_fitted_on(few_texts, shift):
    lines = ran("evaluate", "--shift", shift, "--baseline", "--limit", "8").splitlines()
    assert lines[0].split("\t")[1:5] == ["True*Info", "True", "Info", "unmatched"]
    assert [line.split("\t")[0] for line in lines[1:]] == ["Baseline", "ITI"]
    assert re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", lines[2].split("\t")[1])
    record = json.loads(ran("evaluate", "--shift", shift, "--limit", "4", "--choices-only", "--json"))
    assert set(record["rows"][0]) == {"name", "MC1", "MC2", "MC3", "CE", "KL", "KL 95 %", "details"}
    assert record["setting"]["n"] == 4


def test_an_indicative_judge_s_agreement_stands_beside_its_figures(few_texts, tmp_path):
    for name, tail in (("truth", "True:"), ("info", "Helpful:")):
        lines = [{"prompt": f"Q: Question {i}?\nA: It is {'so' if i % 2 else 'not'}.\n{tail}",
                  "completion": " yes" if i % 2 else " no"} for i in range(40)]  # fmt: skip
        (tmp_path / f"finetune_{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    out = ran("evaluate", "--judge", f"tfidf:{tmp_path}", "--limit", "4")
    assert "INDICATIVE: on held-out questions it agrees with people on 100.0 %" in out
    record = json.loads(ran("evaluate", "--judge", f"tfidf:{tmp_path}", "--limit", "4", "--json"))
    assert record["setting"]["judge"]["agreement"]["true"]["mean"] == 1.0


def test_a_judge_that_fails_half_way_leaves_answers_that_the_next_run_takes_up(few_texts, tmp_path, monkeypatch):
    from trimtab.errors import BadValue
    from trimtab.evaluate import Verdict
    from trimtab.evaluate.judges import EndpointJudge

    asked = []

    def judged(self, question, answer):
        asked.append(answer)
        if len(asked) == 4:
            raise BadValue("judge m answered 'mu'")
        return Verdict(1.0, 0.25)

    monkeypatch.setattr(EndpointJudge, "__call__", judged)
    monkeypatch.chdir(tmp_path)
    command = ("evaluate", "--judge", "http://127.0.0.1:9", "--judge-model", "m", "--limit", "4")
    result = run(*command)
    assert result.exit_code == 2, result.output
    assert "mu'; 4 answers and 2 verdicts are kept in runs/answers/" in result.stderr
    record = json.loads(ran(*command, "--json"))
    assert record["rows"][0]["True"]["mean"] == 1.0
    # one verdict before anything is generated, two and a failure; then one again and the two that were missing
    assert len(asked) == 4 + 1 + 2


NO_TEXT = b"caf\xe9?\nWhat is coal?\n/compare \xff\n"


def test_bytes_that_are_no_text_are_refused():
    refused = run("generate", "--max-new-tokens", "20", stdin=NO_TEXT)
    assert (refused.exit_code, "is not UTF-8 text" in refused.stderr) == (2, True)


@pytest.mark.slow
def test_a_chat_goes_on_after_bytes_that_are_no_text():
    import subprocess

    command = [sys.executable, "-m", "trimtab", "chat", "--max-new-tokens", "20"]
    done = subprocess.run(command, input=NO_TEXT, capture_output=True, cwd=ROOT)
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0
    _, refused, answered, last = done.stdout.decode().splitlines()
    assert "is not UTF-8 text" in refused
    assert answered.strip().endswith(".")
    assert "there is no edit" in last


def test_bake_writes_a_checkpoint_and_says_what_positions_change(tiny, tmp_path, monkeypatch):
    cut_data(monkeypatch)
    ran("fit", "--model", tiny, "--limit", "20", "--strength", "1", "--out", str(tmp_path / "s"))
    command = ("bake", "--model", tiny, "--shift", str(tmp_path / "s"), "--out", str(tmp_path / "b"))
    out = ran(*command)
    assert "loads as LlamaForCausalLM" in out
    assert "baked, at all positions" in out
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "b").config.attention_bias
    again = json.loads(ran(*command, "--overwrite", "--json"))
    assert again["relative"] < 1e-3


def test_convert_writes_for_lm_eval_and_reads_iti_s_files(shift, tmp_path):
    assert "hook points (layers." in ran("convert", "to-lm-eval", shift, "--out", str(tmp_path / "s.pt"))
    np.save(tmp_path / "x_head_wise.npy", np.random.default_rng(0).normal(size=(6, 2, 8)).astype(np.float16))
    np.save(tmp_path / "x_labels.npy", np.array([1, 0, 1, 0, 1, 0]))
    text = ran("convert", "from-iti", str(tmp_path), "--heads", "4", "--out", str(tmp_path / "acts"))
    assert "6 examples, 2 layers, 4 heads, 2 d_head, 6 groups" in text


JUDGES = """
from dataclasses import dataclass

@dataclass
class Long:
    words: int

def verdict(question, answer):
    return float(answer in question.correct), float(len(answer) > Long(3).words)

def length(pair, text):
    return min(len(text), 40) / 40

def fails(question, answer):
    return 1 / 0

def nonsense(question, answer):
    return "great"
"""


@pytest.fixture
def judges(tmp_path, monkeypatch) -> str:
    """Return a user's file with functions that judge, in the folder where the test runs."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(JUDGES, encoding="utf-8")
    return "mine.py"


def test_json_keeps_the_rows_that_the_figures_were_made_of(few_texts, tiny):
    (row,) = json.loads(ran("evaluate", "--model", tiny, "--limit", "3", "--json"))["rows"]
    details = row["details"]
    assert {name: len(rows) for name, rows in details.items()} == {"generated": 3, "multiple_choice": 3, "drift": 6}
    for figure, rows, key in (("True", "generated", "true"), ("MC2", "multiple_choice", "mc2")):
        assert row[figure]["mean"] == pytest.approx(np.mean([r[key] for r in details[rows]]))
    assert row["CE"]["mean"] == pytest.approx(np.mean([r["ce"] for r in details["drift"]]))
    assert {"text", "label", "logprob"} == set(details["multiple_choice"][0]["answers"][0])


def test_a_function_of_the_user_s_judges_answers_and_generated_texts(few_texts, tiny, judges):
    said = json.loads(ran("evaluate", "--model", tiny, "--limit", "3", "--judge", "mine.py:verdict", "--json"))
    judge = said["setting"]["judge"]
    assert judge["name"] == "mine.py:verdict"
    assert judge["sha256"]
    rows = said["rows"][0]["details"]["generated"]
    assert [r["informative"] for r in rows] == [float(len(r["answer"]) > 3) for r in rows]
    # the verdicts are known again by the file that gave them
    (kept,) = Path("runs/answers").rglob("verdicts.jsonl")
    assert len(kept.read_text().splitlines()) == 3
    ran("evaluate", "--model", tiny, "--limit", "3", "--judge", "mine.py:verdict")
    assert len(kept.read_text().splitlines()) == 3
    scored = ran("evaluate", "--model", tiny, "--data", PAIRS, "--limit", "2", "--judge", "mine.py:length", "--json")
    (row,) = json.loads(scored)["rows"]
    lengths = [min(len(r["text"]), 40) / 40 for r in row["details"]["score"]]
    assert row["score"]["mean"] == pytest.approx(np.mean(lengths))
    assert len(row["details"]["pairs"]) == 2


@pytest.mark.parametrize(
    "data, judge, metric",
    [
        (PAIRS, "length", "mine.py:length"),
        pytest.param("folklore", "verdict", "true_info", marks=pytest.mark.slow),
    ],
)
def test_a_function_of_the_user_s_chooses_the_strength(data, judge, metric, few_texts, tiny, judges):
    name = f"mine.py:{judge}"
    command = ("fit", "--model", tiny, "--data", data, "--limit", "20", "--n-sites", "1")
    sweep = json.loads(ran(*command, "--judge", name, "--keep-anyway", "--json"))["sweep"]
    assert (sweep["metric"], sweep["judge"]["name"]) == (metric if metric == "true_info" else "score", name)
    assert sweep["judge"]["sha256"]
    eligible = [t for t in sweep["trials"][1:] if t["score"] is not None and not t.get("control")]
    assert sweep["chosen"]["score"] == max(t["score"] for t in eligible if t["kl"] <= sweep["kl_budget"])
    scores = {t["score"] for t in sweep["trials"]} - {None}
    # what a random model says differs in length between strengths; it never gives a listed answer
    assert (len(scores) > 1) if judge == "length" else (scores == {0.0})


@pytest.mark.parametrize("verb", ["fit", "evaluate"])
@pytest.mark.parametrize(
    "judge, data, words",
    [
        ("mine.py:fails", "folklore", "mine.py:fails failed in line 15: ZeroDivisionError (division by zero)"),
        ("mine.py:fails", PAIRS, "mine.py:fails failed in line 15: ZeroDivisionError (division by zero)"),
        ("mine.py:nonsense", "folklore", "judge mine.py:nonsense returned 'great'"),
        ("mine.py:nonsense", PAIRS, "scorer mine.py:nonsense returned 'great'"),
        ("mine.py:verdikt", "folklore", "has no judge 'verdikt'; did you mean verdict?"),
        ("nowhere.py:verdict", "folklore", "nowhere.py cannot be read (No such file or directory)"),
        ("bad.py:verdict", "folklore", "bad.py cannot be run in line 2: SyntaxError"),
    ],
)
def test_a_function_of_the_user_s_that_fails_is_named_with_its_line(verb, judge, data, words, few_texts, tiny, judges):
    Path("bad.py").write_text("def good():\n    return (\n", encoding="utf-8")
    result = run(verb, "--model", tiny, "--data", data, "--limit", "4", "--judge", judge)
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert len(result.output.splitlines()) == 1


def test_chat_in_a_pipe_gives_one_json_object_an_answer(tiny, shift, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = "Why?\n/off\nHow?\n/alpha 2\n/compare\n/sav\n/save talk.jsonl\n/save talk.jsonl\n"
    result = run("chat", "--shift", shift, "--max-new-tokens", "3", "--json", stdin=lines)
    assert result.exit_code == 0, result.output
    first, second, compared = (json.loads(line) for line in result.stdout.splitlines())
    assert (first["question"], first["alpha"], second["question"], second["alpha"]) == ("Why?", 1, "How?", 0)
    assert set(compared) == {"question", "unedited", "edited", "alpha"}
    assert compared["unedited"] == second["answer"]
    kept = [json.loads(line) for line in Path("talk.jsonl").read_text(encoding="utf-8").splitlines()]
    assert kept == [first, second]
    for words in ("asked in plain form", "Edit off", "did you mean /save?", "2 answers written to talk.jsonl"):
        assert words in result.stderr
    plain = run("chat", "--model", tiny, "--max-new-tokens", "3", stdin="/save talk.jsonl\n")
    assert "nothing to save yet" in plain.stdout
    assert "> " not in plain.stdout
    other = run("chat", "--model", tiny, "--max-new-tokens", "3", stdin="When?\n/save talk.jsonl\n")
    assert "talk.jsonl holds a result already; give another name" in other.stdout
    assert len(Path("talk.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["talk.jsonl"]
    marked = run("chat", "--model", tiny, "--max-new-tokens", "3", "--json", stdin="\ufeffWhy?\n")
    assert json.loads(marked.stdout)["question"] == "Why?"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("fit", "--data", "folclore"), "did you mean folklore?"),
        (("fit", "--data", "truthful.csv"), "no data set or file 'truthful.csv'"),
        (("fit", "--site", "head"), "did you mean heads?"),
        (("fit", "--direction", "mass-mean"), "did you mean mass_mean?"),
        (("fit", "--held-out", "1", "--data", PAIRS), "--held-out must be a share"),
        (("fit", "--held-out", "0.5"), "--held-out is for data of your own"),
        (("fit", "--metric", "mc1", "--data", PAIRS), "leave --metric and any other --judge out"),
        (("fit", "--judge", "allenai", "--data", PAIRS), "leave --metric and any other --judge out"),
        (("fit", "--judge", "exakt"), "did you mean exact?"),
        (
            ("fit", "--judge", "mine.py:f", "--strength", "1"),
            "the strength is given as 1.0, so there is nothing to judge",
        ),
        (("fit", "--judge", "mine.py:f", "--metric", "mc1"), "mc1 scores the listed answers"),
        (("fit", "--judge", "http://127.0.0.1:9", "--judge-model", "m"), "cannot be asked"),
        (("generate", "Why?", "--shift", "SHIFT", "--strength", "strong"), "--strength"),
        (("generate", "Why?", "--shift", "SHIFT", "--alpha", "nan"), "the strength must be a finite number"),
        (("generate", "Why?", "--shift", "SHIFTS"), "there is none; did you mean "),
        (("generate", "Why?", "--shift", "BROKEN"), "has no readable tensors.safetensors"),
        (("generate", "Why?", "--compare"), "--compare needs an edit"),
        (("generate",), "standard input is empty"),
        (("generate", " "), "one of the questions is empty"),
        (("generate", "--file", "nowhere.txt"), "cannot be read (No such file or directory)"),
        (("generate", "Why?", "--top-p", "3"), "--top-p"),
        (("heads", "SHIFT", "--plot", "x.foo"), "name a .png, .svg or .pdf file"),
        (("heads", "SHIFTS"), "did you mean SHIFT?"),
        (
            ("heads", "SHIFT", "--against", "DEMO"),
            "is a demo run, which keeps the directions of the shifted heads only",
        ),
        (("heads", "OTHER"), "expected a folder written by `trimtab fit` or `trimtab demo`"),
        (("generate", "Why?", "--max-new-tokens", "5000"), "do not fit the model's context"),
        (("chat", "--model", "nowhere/at/all"), "no model folder at nowhere/at/all"),
        (("evaluate", "--convention", "its"), "did you mean iti"),
        (("evaluate", "--judge", "exakt"), "did you mean exact?"),
        (("evaluate", "--judge", "http://127.0.0.1:9"), "give --judge-model"),
        (("evaluate", "--judge", "http://127.0.0.1:9", "--judge-model", "m", "--limit", "1"), "cannot be asked"),
        (("evaluate", "--judge", "tfidf:nowhere"), "no finetune_truth.jsonl and no"),
        (("evaluate", "--alpha", "2"), "--strength needs an edit"),
        (("chat", "--alpha", "2"), "--strength needs an edit"),
        (("evaluate", "--data", PAIRS, "--judge", "allenai"), "holds contrast pairs, scored by probability"),
        (
            ("fit", "--site", "residual", "--top-k", "9", "--limit", "20"),
            "top 9 layers asked for; there are 8 to choose among",
        ),
        (("fit", "--layers", "12-"), "--layers takes numbers and ranges"),
        (("fit", "--heads", "3"), "--heads takes layer.head"),
        (("fit", "--layers", "1", "--heads", "1.1"), "not both"),
        (("fit", "--layers", "99", "--limit", "20"), "no layer 99 to shift; the model has layers 0 to 7"),
        (("bake",), "needs an edit: give --edit DIR"),
        (("bake", "--shift", "SHIFT", "--out", "OTHER"), "holds something else"),
        (("bake", "--shift", "SHIFT", "--model", "TINY"), "made for another model"),
        (("heads", "nowhere"), "no fit at nowhere"),
        (("convert", "from-iti", "nowhere", "--heads", "4"), "found none"),
        (("convert", "to-lm-eval", "SHIFT", "--out", "x.csv"), "end in .pt"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, words, shift, tiny, tmp_path, monkeypatch):
    broken, other = tmp_path / "broken", tmp_path / "other"
    shutil.copytree(shift, broken)
    (broken / "shift" / "tensors.safetensors").unlink()
    other.mkdir()
    demo = tmp_path / "demo"
    shutil.copytree(shift, demo)
    (demo / "record.json").write_text('{"kind": "demo run"}')
    (other / "diary.txt").write_text("dear diary")
    monkeypatch.chdir(tmp_path)
    known = {"SHIFT": shift, "SHIFTS": shift + "s", "BROKEN": str(broken), "OTHER": str(other), "TINY": tiny}
    known["DEMO"] = str(demo)
    result = run(*(known.get(a, a) for a in arguments), stdin="")
    assert result.exit_code == 2, result.output
    shown = re.sub(r"[\s│]+", " ", result.output)
    assert words.replace("SHIFT", shift) in shown
    assert "Traceback" not in shown
    assert (other / "diary.txt").exists()


def test_help_of_every_verb_has_an_example():
    for verb in VERBS:
        shown = re.sub(r"[\s│]+", " ", ran(*verb.split(), "--help"))
        assert f"Example: trimtab {verb}" in shown


def test_python_m_trimtab_answers_within_seconds_is_quiet_in_a_pipe_and_imports_what_it_needs():
    import subprocess

    start = time.perf_counter()
    before = os.times()
    command = [sys.executable, "-X", "importtime", "-m", "trimtab", "generate", QUESTION]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    after = os.times()
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    errors = done.stderr.splitlines()
    assert [line for line in errors if not line.startswith("import time:")] == []
    imported = {line.split("|")[-1].strip().split(".")[0] for line in errors}
    assert "transformers" in imported
    assert not imported & {"sklearn", "pandas", "matplotlib", "peft", "datasets", "lm_eval", "bitsandbytes"}
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    # processor seconds, since the wall clock counts what else runs here
    assert spent < 20, f"{spent:.1f} s of processor, {time.perf_counter() - start:.1f} s"


@pytest.mark.skipif(os.name == "nt", reason="drives a terminal")
def test_a_chat_in_a_terminal(shift, tmp_path):
    pexpect = pytest.importorskip("pexpect")
    environment = {**os.environ, "TERM": "dumb", "PYTHONPATH": str(ROOT)}
    arguments = ["-m", "trimtab", "chat", "--shift", shift, "--max-new-tokens", "40"]
    talk = pexpect.spawn(sys.executable, arguments, cwd=tmp_path, env=environment, encoding="utf-8", timeout=120)
    talk.expect("asked in plain form .*the model has no chat template.*Edit ITI at strength 1. /help")
    talk.expect("> ")

    def says(line: str, *patterns: str) -> str:
        talk.sendline(line)
        for pattern in patterns:
            talk.expect(pattern)
        talk.expect("> $")
        return talk.before

    says(QUESTION, r"\r\n\w.+\.\r\n")
    says("/alpha many", "the strength must be a number, got 'many'")
    says("/alpha 0.5", "Edit ITI at strength 0.5; what was said so far is still read: .new begins anew")
    says("/compare", "unedited: .+", "strength 0.5: .+")
    says("/of", "did you mean /off")
    says("/off", "Edit off")
    says("/new", "a new conversation")
    says(QUESTION, r"\r\n\w.+\.\r\n")
    says("/save talk.jsonl", "1 answers written to talk.jsonl")
    says("/save kept", "edit at strength 0.5 written to kept")
    talk.sendline("/quit")
    talk.expect(pexpect.EOF)
    talk.close()
    assert talk.exitstatus == 0
    (turn,) = [json.loads(line) for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert turn["question"] == QUESTION
    assert turn["alpha"] == 0
    assert turn["answer"]
    assert ran("generate", QUESTION, "--shift", str(tmp_path / "kept"), "--json")


def test_chat_uses_the_model_s_template_where_it_has_one(tmp_path):
    tokenizer = tiny_tokenizer()
    before = tokenizer.chat_template
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    try:
        tiny_model(context=2000).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
    finally:
        tokenizer.chat_template = before
    out = ran("chat", "--model", str(tmp_path), "--max-new-tokens", "3", stdin="Why?\n/alpha 2\n/compare\n/quit\n")
    assert "asked in its chat template" in out
    assert out.count("there is no edit") == 2
    plain = ran("chat", "--model", str(tmp_path), "--asking", "plain", "--max-new-tokens", "3", stdin="")
    assert "asked in plain form" in plain
