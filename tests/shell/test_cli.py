"""The command line as a user meets it."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from trimtab import cli
from trimtab.datasets import folklore, neutral_texts
from trimtab.errors import BadDataset
from trimtab.training import (
    embedded_model as build,  # imported before questions are replaced, as it keeps a name of them
)


def run(*arguments: str):
    return CliRunner().invoke(cli.app, list(arguments), terminal_width=120)


@pytest.mark.parametrize(("rank", "printed"), [("0", True), ("1", False)])
def test_of_several_processes_the_first_alone_prints(rank: str, printed: bool, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("sys.argv", ["trimtab", "methods", "--no-count"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    assert ("lora" in capsys.readouterr().out) is printed
    print("and what comes after is printed again")
    assert "after" in capsys.readouterr().out


@pytest.fixture
def small_world(monkeypatch):
    """Cut questions, texts and strengths, so that the demo's whole path takes seconds."""
    parts = {"development": folklore("development")[:12], "final": folklore("final")[:5]}
    monkeypatch.setattr(import_module("trimtab.datasets.folklore"), "folklore", lambda part: parts[part])
    monkeypatch.setattr("trimtab.steer.strength.validation_texts", lambda: neutral_texts(3))
    # the package exports a function of the same name as this module
    monkeypatch.setattr(import_module("trimtab.evaluate.drift"), "neutral_texts", lambda: neutral_texts(3))


ROWS = ["Baseline", "Few-shot", "ITI", "Few-shot + ITI", "LoRA r=8", "Random direction"]


def test_demo_prints_the_table_and_three_answers_and_writes_the_run_folder(small_world, tmp_path):
    result = run("demo", "--out", str(tmp_path / "run"), "--draws", "1")
    assert result.exit_code == 0, result.output
    for row in [*ROWS, "True*Info", "unmatched", "MC1", "KL"]:
        assert row in result.stdout
    assert result.stdout.count("    before: ") == result.stdout.count("    after: ") == 3
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"record.json", "table.md", "heads.png", "sweep.png", "shift", "probes"} <= names
    assert (tmp_path / "run" / "heads.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert [r["name"] for r in record["rows"]] == ROWS
    assert len(record["rows"][0]["details"]["generated"]) == 5
    require_intervals(record["rows"])


@pytest.mark.slow
def test_demo_json_has_one_object_per_row_with_intervals(small_world, tmp_path):
    result = run("demo", "--out", str(tmp_path / "run"), "--draws", "1", "--json")
    assert result.exit_code == 0, result.output
    require_intervals(json.loads(result.stdout)["rows"])


def require_intervals(rows):
    assert [r["name"] for r in rows] == ROWS
    for row in rows:
        for metric in ("true", "true_info", "info", "unmatched", "mc1", "mc2"):
            assert row[metric]["low"] <= row[metric]["mean"] <= row[metric]["high"]
        assert row["true_info"]["mean"] == pytest.approx(row["true"]["mean"] * row["info"]["mean"])
    assert rows[1]["kl"]["mean"] > 0  # what the examples do to a text behind them
    assert rows[0]["kl"]["mean"] == 0
    assert rows[2]["kl"]["mean"] > 0


def test_demo_refuses_a_folder_that_holds_something_else_before_any_work(tmp_path):
    (tmp_path / "diary.txt").write_text("dear diary")
    started = time.perf_counter()
    result = run("demo", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "something else" in result.stderr
    assert "name another folder" in result.stderr
    assert (tmp_path / "diary.txt").read_text() == "dear diary"
    assert time.perf_counter() - started < 20


WRITTEN = {
    "demo": "demo run", "fit": "fit", "tune": "tuned edit", "bake": "merged model", "merge": "merged model",
    "edit": "weight edit", "combine": "weight edit", "trace": "trace", "train": "judge", "erase": "eraser",
    "from-iti": "activations", "to-lm-eval": None, "build-embedded": "embedded model", "reproduce": None,
}  # fmt: skip
"""Verb -> the kind of folder that it writes, if it is one."""
GIVEN = {"from-iti": ["none", "--heads", "2"], "to-lm-eval": ["none"], "reproduce": ["iti-2fold", "--judge", "exact"]}
GIVEN["edit"] = ["The capital of {} is", "--subject", "Chile", "--new", "Paris"]
GIVEN["trace"], GIVEN["combine"] = ["The capital of {} is", "--subject", "Chile"], ["--add", "none"]
GIVEN["train"] = ["--data", "none"]
GIVEN["erase"] = ["--pairs", str(Path(__file__).parents[2] / "examples" / "cheerful_grumpy.jsonl")]
GIVEN |= {verb: ["--edit", "none"] for verb in ("bake", "merge")}


def verbs(group, path=()):
    for name, command in group.commands.items():
        yield from verbs(command, (*path, name)) if hasattr(command, "commands") else [((*path, name), command)]


VERBS = dict(verbs(typer.main.get_command(cli.app)))


def test_every_verb_that_writes_can_be_told_to_overwrite_or_goes_on_with_what_stands_there():
    flags = {path[-1]: {o for p in command.params for o in p.opts} for path, command in VERBS.items()}
    assert {verb for verb, known in flags.items() if "--overwrite" in known} == set(WRITTEN)
    assert {verb for verb, known in flags.items() if "--out" in known} - set(WRITTEN) == {"compare", "real", "report"}


@pytest.mark.parametrize("path", [path for path in VERBS if path[-1] in WRITTEN], ids=lambda path: path[-1])
def test_an_earlier_result_stays_unless_it_may_be_overwritten(path, tmp_path, monkeypatch):
    verb, out = path[-1], tmp_path / "kept"
    kind = WRITTEN[verb]
    held = out / ("record.json" if kind else "iti-2fold.json") if verb != "to-lm-eval" else out
    held.parent.mkdir(exist_ok=True)
    held.write_text(json.dumps({"kind": kind}))

    def worked(*args, **kwargs):
        raise BadDataset("at work")

    readers = ("cli.setup.read_data", "cli.options.open_edit", "cli.setup.open_edit")
    for work in (*readers, "models.load.checkpoints.load_model", "training.embedded_model.build_embedded"):
        monkeypatch.setattr(f"trimtab.{work}", worked)
    monkeypatch.setattr("trimtab.datasets.iti_files.activations_from_iti", worked)
    monkeypatch.setattr("trimtab.evaluate.judges.judge_data.read_judge_data", worked)
    where = [str(out)] if verb == "build-embedded" else ["--out", str(out)]
    refused = run(*path, *GIVEN.get(verb, []), *where)
    assert (refused.exit_code, "--overwrite" in refused.stderr) == (2, True), refused.output
    assert held.is_file()
    assert run(*path, *GIVEN.get(verb, []), *where, "--overwrite").stderr == "trimtab: at work\n"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("demo", "--draws", "-1"), "--draws"),
        (("demo", "--seed", "x"), "--seed"),
        (("demo", "--kl-budget", "0"), "kl_budget"),
        (("build-embedded",), "OUT"),
        (("build-embedded", "out", "--device", "toaster"), "toaster"),
        (("build-embedded", "out", "--steps", "0"), "--steps"),
        (("dmo",), "dmo"),
        (("--nope",), "--nope"),
        (("fit", "--strength", "strong"), "--strength"),
        (("fit", "--limit"), "fit -h says"),
    ],
)
def test_wrong_input_exits_with_2_and_says_what_was_wrong(arguments, words, tmp_path, monkeypatch, small_world):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert re.fullmatch(r"trimtab: [^\n]+\n", result.output)
    assert words.lower() in result.output.lower()


def test_a_user_s_mistake_prints_one_line_and_an_interrupt_exits_with_130(monkeypatch, tmp_path):
    def mistaken(*args, **kwargs):
        raise BadDataset("no questions; at least one is needed")

    monkeypatch.setattr("trimtab.models.load.checkpoints.load_model", mistaken)
    result = run("demo", "--out", str(tmp_path / "run"))
    assert (result.exit_code, result.stderr) == (2, "trimtab: no questions; at least one is needed\n")

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("trimtab.models.load.checkpoints.load_model", interrupted)
    assert run("demo", "--out", str(tmp_path / "run")).exit_code == 130
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [(), ("judge",), ("convert",)])
def test_a_verb_without_arguments_has_its_help_and_no_sentence(arguments):
    said = run(*arguments).output
    assert "Usage: " in said and not re.search(r"^trimtab: ", said, re.MULTILINE)


def test_the_version_is_said_without_what_computes():
    said = "import sys; from trimtab.cli import app; app(['--version'], standalone_mode=False)"
    made = subprocess.run(
        [sys.executable, "-c", f"{said}; print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert made.stdout.splitlines()[-1] == "False"


def test_a_table_wider_than_the_terminal_goes_on_beneath_and_nothing_of_it_is_cut(monkeypatch, capsys):
    from trimtab.cli.printing import print_table

    headings = ["method", *(f"figure {i}" for i in range(6)), "answer"]
    long = "so it goes on and " * 8
    rows = [[name, *(f"{name[0]}{i} [0.123, 0.456]" for i in range(6)), long] for name in ("ITI", "Baseline")]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    parts = {}
    for columns in (80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        print_table(headings, rows, title="Of three questions")
        said = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
        assert all(cell in said for row in rows for cell in row[:-1]) and "\N{HORIZONTAL ELLIPSIS}" not in said
        assert said.split().count("goes") == long.split().count("goes") * len(rows)
        assert max(map(len, said.splitlines())) <= columns and said.count("Of three questions") == 1
        parts[columns] = said.count("Baseline")
    assert parts == {80: 3, 200: 2}


def test_version_and_warnings_are_one_line_each(monkeypatch, tmp_path):
    from importlib.metadata import version

    assert run("--version").stdout == f"trimtab {version('trimtab')}\n"

    def warned(*args, **kwargs):
        for _ in range(2):
            with warnings.catch_warnings():  # which makes Python forget what was shown
                pass
            warnings.warn("the wind has turned", stacklevel=2)
        raise BadDataset("no questions")

    monkeypatch.setattr("trimtab.models.load.checkpoints.load_model", warned)
    assert (
        run("demo", "--out", str(tmp_path / "r")).stderr
        == "trimtab: note: the wind has turned\ntrimtab: no questions\n"
    )


def test_bitsandbytes_advice_on_its_cpu_kernel_is_not_shown_and_its_other_warnings_are(monkeypatch, tmp_path, caplog):
    import logging

    said = "Failed to load CPU gemm_4bit_forward from kernels-community: %s."

    def warned(*args, **kwargs):
        logging.getLogger("bitsandbytes.backends.cpu.ops").warning(said, "No module named 'kernels'")
        logging.getLogger("bitsandbytes.backends.cpu.ops").warning("the library is broken")
        raise BadDataset("no questions")

    monkeypatch.setattr("trimtab.models.load.checkpoints.load_model", warned)
    assert run("demo", "--out", str(tmp_path / "r")).exit_code == 2
    assert [r.getMessage() for r in caplog.records] == ["the library is broken"]


def test_what_the_disk_refuses_where_no_one_expected_it_is_one_line_too(monkeypatch, tmp_path):
    def refused(*args, **kwargs):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/somewhere/model")

    monkeypatch.setattr("trimtab.models.load.checkpoints.load_model", refused)
    result = run("demo", "--out", str(tmp_path / "run"))
    said = "trimtab: /somewhere/model: Input/output error; name another place or mend this one\n"
    assert (result.exit_code, result.stderr) == (2, said)


@pytest.mark.slow
def test_build_embedded_writes_a_model_and_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "TOKENIZER_DOCUMENTS", 2000)
    monkeypatch.setattr(build, "DOCUMENTS_AT_A_TIME", 256)
    result = run("build-embedded", str(tmp_path / "m"), "--steps", "1", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["recipe"]["steps"] == 1
    assert (tmp_path / "m" / "model.safetensors").is_file()


def test_help_of_every_verb_has_an_example():
    for verb in ("demo", "build-embedded"):
        result = run(verb, "--help")
        assert result.exit_code == 0
        assert f"Example: trimtab {verb}" in result.output


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="sends a POSIX signal")
def test_ctrl_c_in_a_real_process_exits_with_130_and_leaves_nothing(tmp_path):
    program = """
import sys, time
from trimtab import cli
from trimtab.training import embedded_model
def long_work(*args):
    print("at work", file=sys.stderr, flush=True)
    time.sleep(60)
embedded_model.train_tokenizer = long_work
cli.main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, "build-embedded", "m", "--device", "cpu"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that runs the tests in the background has them ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr.readline() == "at work\n"
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()  # one that did not listen would train on beside the other tests
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not (tmp_path / "m").exists()
