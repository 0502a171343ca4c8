"""`trimtab compare`, `report` and `reproduce`: files read, plans printed, mistakes named in one sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests import foreign
from tests.comparing import TEXTS
from tests.tiny import tiny_model, tiny_questions, tiny_tokenizer
from trimtab.cli import app
from trimtab.cli.comparison_file import job_of, quick, read_comparison_file
from trimtab.cli.comparison_methods import method_of
from trimtab.cli.real import real_files
from trimtab.cli.user_code import hash_of_code
from trimtab.compare import OnQuantized, Stack, Widened
from trimtab.compare.records import RunFolder
from trimtab.compare.specification import grown, specification
from trimtab.errors import Incompatible
from trimtab.peft import LoRA
from trimtab.prompting import FewShot, RetrievedPassages
from trimtab.steer import ITI, RandomDirection

FOREIGN = foreign.__file__
CONFIG = """\
model: {model}
questions: {questions}
folds: 2
seeds: [0]
trials: 1
max_new_tokens: 3
texts: {texts}
methods:
  - few-shot: {{shots: [1]}}
  - iti: {{top_ks: [2], alphas: [1]}}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with a model, questions and a configuration."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [
        {"question": q.question, "correct": list(q.correct), "incorrect": list(q.incorrect)} for q in tiny_questions(8)
    ]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    (folder / "c.yaml").write_text(
        CONFIG.format(model=folder / "model", questions=folder / "mine.jsonl", texts=folder / "texts.txt")
    )
    return folder


def trimtab(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def said(result):
    return " ".join((result.output + getattr(result, "stderr", "")).split())


@pytest.mark.slow
def test_compare_runs_a_file_and_report_makes_the_page(files, tmp_path):
    plan = trimtab("compare", "--config", files / "c.yaml", "--out", tmp_path / "run", "--dry-run")
    assert plan.exit_code == 0, plan.output
    assert "| ITI | 1 | 2 | 2 |" in plan.output
    assert "3 to train on, 1 to choose on, 4 to test on." in said(plan)
    assert not (tmp_path / "run").exists()
    ran = trimtab("compare", "--config", files / "c.yaml", "--out", tmp_path / "run", "--json")
    assert ran.exit_code == 0, ran.output
    record = json.loads(ran.stdout)
    assert record["finished"]
    assert [r["method"] for r in record["rows"] if r["variant"] == "best"] == ["Baseline", "Few-shot", "ITI"]
    page = trimtab("report", tmp_path / "run")
    assert page.exit_code == 0, page.output
    assert (tmp_path / "run" / "report.html").exists() and (tmp_path / "run" / "report.md").exists()
    again = trimtab("compare", "--config", files / "c.yaml", "--out", tmp_path / "run", "--dry-run", "--json")
    assert json.loads(again.stdout)["seconds"] == 0
    # a page beside the records does not keep the run from going on
    assert trimtab("compare", "--config", files / "c.yaml", "--out", tmp_path / "run").exit_code == 0


def test_entries_of_a_file_are_methods():
    assert method_of("iti") == ITI()
    assert method_of({"few-shot": {"shots": [1, 2]}}) == FewShot(shots=(1, 2))
    assert method_of("few-shot + iti") == Stack((FewShot(), ITI()))
    assert method_of({"lora": {"r": 4}}) == LoRA(r=4)
    assert method_of({"lora": {"grid": {"epochs": [2, 4]}}}) == Widened(LoRA(), (("epochs", (2, 4)),))
    assert method_of("qlora") == OnQuantized(LoRA())
    assert method_of({"retrieved passages": {"paths": ["notes.txt"]}}) == RetrievedPassages(("notes.txt",))
    tuned = method_of({"stack": [{"lora": {"r": 4}}, "iti"]})
    assert tuned == Stack((LoRA(r=4), ITI()))
    assert method_of({"random direction": {"draws": 4}}) == RandomDirection(draws=4)


@pytest.mark.parametrize(
    "line, message",
    [
        ("modle: embedded", "unknown key 'modle'; did you mean model"),
        ("methods: 5", "field 'methods' is 5, expected a valid array"),
        ("methods: []", "field 'methods' is []; value should have at least 1 item"),
        ("methods: [{lora: 8}]", "the options of 'lora' are keys with values, such as `lora: {r: 8}`; got 8"),
        ("methods: [itti]", "unknown method 'itti'; did you mean iti"),
        ("methods: [{iti: {heads: 3}}]", "the method 'iti': unknown key 'heads'; "),
        ("methods: [{iti: {top_ks: 3}}]", "the method 'iti': field 'top_ks' is 3, expected a valid array"),
        ("methods: [{lora: {rank: 3}}]", "the method 'lora': unknown key 'rank'"),
        ("methods: [{lora: {r: eight}}]", "the method 'lora': field 'r' is 'eight', expected a valid integer"),
        (
            "methods: [{lora: {epochs: many}}]",
            "field 'recipe.epochs' is 'many', expected a valid number",
        ),
        (
            "methods: [{lora: {grid: {epochz: [1]}}}]",
            "grid: unknown key 'epochz'; did you mean epochs",
        ),
        (
            "methods: [{lora: {grid: {epochs: [few]}}}]",
            "grid: field 'recipe.epochs' is 'few', expected a valid number",
        ),
        ("methods: [{lora: {grid: {epochs: []}}}]", "every knob needs one value or more to try"),
        ("methods: [{iti: {grid: {alpa: [1]}}}]", "the method 'iti' has no knob 'alpa'; did you mean alpha"),
        ("methods: [{iti: {grid: [3]}}]", "grid holds knobs with lists of values"),
        ("methods: [{iti: {}, caa: {}}]", "an entry of methods is one name, with its options below it; got iti, caa"),
        (
            "methods: [iti, {iti: {top_ks: [8]}}]",
            "two methods are called 'ITI'; give one of them another name, such as",
        ),
        ("methods: [{iti: {name: 3}}]", "the method 'iti': name must be text, got 3"),
        (
            "methods: ['nowhere.py:Mine']",
            "nowhere.py cannot be read (No such file or directory); give FILE.py:NAME, a me",
        ),
        (f"methods: ['{FOREIGN}:Nudgin']", "has no method 'Nudgin'; did you mean Nudging"),
        (f"methods: ['{FOREIGN}:first_layer']", "is neither a Method, an Edit nor a Control"),
        (f"methods: ['{FOREIGN}:Nudging': {{size: 3}}]", "Nudging: unknown key 'size'; did you mean sizes"),
        ("methods: [retrieved passages]", "the method 'retrieved passages': field 'paths' is missing"),
        ("methods: [{stack: iti}]", "a stack is a list of methods"),
        ("methods: [iti + qlora]", "LoRA r=8 on nf4 answers with a model of its own, on which ITI would not act"),
        ("methods: [random direction]", "'Random direction' takes the setting that 'ITI' chose, which is not among"),
        ("methods: [iti, {random direction: {grid: {draws: [2]}}}]", "chooses nothing; leave out its grid"),
        ("limit: abc", "field 'limit' is 'abc', expected a valid integer"),
        ("folds: 2.5", "field 'folds' is 2.5, expected a valid integer"),
        ("folds: true", "field 'folds' is True, expected a valid integer"),
        (
            "convention: foo",
            "field 'convention' is 'foo', expected 'plain', 'bare', 'primer', 'chat', 'lm-eval' or 'iti'",
        ),
        ("metric: bleu", "settings cannot be chosen by 'bleu'; choose true_info, true, info, mc1, mc2"),
        ("max_new_tokens: 0", "field 'max_new_tokens' is 0, expected greater than or equal to 1"),
        ("seeds: []", "field 'seeds' is []; value should have at least 1 item"),
        ("seeds: 3", "field 'seeds' is 3, expected a valid array"),
        ("seeds: [1, 1]", "each seed once"),
        ("kl_budget: -1", "field 'kl_budget' is -1, expected greater than 0"),
        ("kl_budget: .nan", "field 'kl_budget' is nan, expected a finite number"),
        ("validation: 1", "field 'validation' is 1, expected less than 1"),
        ("trials: 0", "field 'trials' is 0, expected greater than or equal to 1"),
        ("train_sizes: [few]", "field 'train_sizes[0]' is 'few', expected a valid integer or 'all'"),
        ("train_sizes: [2]", "field 'train_sizes[0]' is 2, expected greater than or equal to 3 or 'all'"),
        ("train_sizes: [5000, all]", "5000 training questions asked for, and fold 0 has 229"),
        ("judge: exatc", "unknown judge 'exatc'; did you mean exact"),
        ("judge: http://127.0.0.1:9", "needs a model to ask for: give --judge-model NAME"),
        ("low_data_methods: [loar]", "low_data_methods: 'loar' is not among the methods"),
        ("questions: 5", "field 'questions' is 5, expected a valid string"),
        ("load: {dtpye: float32}", "load: unknown key 'dtpye'; did you mean dtype"),
        ("load: {dtype: 16}", "load: field 'dtype' is 16, expected a valid string"),
        ("texts: nowhere.txt", "nowhere.txt cannot be read"),
        ("a: [", "cannot be read as YAML"),
        ("folds: 2\nfolds: 3", "cannot be read as YAML: the key 'folds' stands twice"),
        ("methods: [lora: {r: 4, r: 8}]", "the key 'r' stands twice"),
        ("- iti", "must hold keys"),
    ],
)
def test_a_file_that_says_what_cannot_be_is_refused_in_one_sentence_that_names_the_key(files, tmp_path, line, message):
    (tmp_path / "c.yaml").write_text(f"{line}\n")
    result = trimtab("compare", "--config", tmp_path / "c.yaml", "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code == 2, result.output
    assert message in said(result)
    assert "Traceback" not in said(result) and result.output.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()


def test_a_file_names_the_judge_and_runs_of_two_judges_are_two_comparisons(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_JUDGE_KEY", "secret")
    said = []
    for model in ("grader", "other"):
        (tmp_path / "c.yaml").write_text(f"judge: http://127.0.0.1:9/v1\njudge_model: {model}\n")
        meters = job_of(read_comparison_file(tmp_path / "c.yaml")).meters
        judge = meters[0].instrument.judge
        assert judge.key == "secret"
        said.append([meter.describe() for meter in meters])
        assert judge.name == f"{model} at http://127.0.0.1:9/v1"
    assert said[0] != said[1]
    assert "secret" not in str(said)


def test_edited_code_of_a_method_or_meter_of_ones_own_is_another_one(tmp_path):
    mine, model = tmp_path / "mine.py", tiny_model()

    def specified(meters="[]"):
        (tmp_path / "c.yaml").write_text(
            f"questions: folklore\nlimit: 12\nmeters: {meters}\nmethods:\n  - few-shot\n  - {mine}:Nudging\n"
            f"  - few-shot + {mine}:Nudging\n  - random tries: {mine}:Nudging\n"
        )
        return specification(job_of(read_comparison_file(tmp_path / "c.yaml")), model)

    text = Path(FOREIGN).read_text()
    mine.write_text(text)
    held, measured = specified(), specified(f"['{mine}:Surprise']")
    own = ["Nudging", "Few-shot + Nudging", "Random tries (Nudging)"]
    assert list(held["code"]) == own
    assert grown(held, specified())[1] == set()  # the control: the same file
    mine.write_text(text + "\n# edited\n")
    assert grown(held, specified())[1] == set(own)
    with pytest.raises(Incompatible, match=r"differs in the code of meter \S+mine.py:Surprise"):
        grown(measured, specified(f"['{mine}:Surprise']"))
    RunFolder(tmp_path / "run").open_for(held)
    with pytest.raises(
        Incompatible, match=r"differs in method 'Few-shot [+] Nudging', method 'Nudging'.*--redo-changed"
    ):
        RunFolder(tmp_path / "run").open_for(specified())
    # a run that says nothing of code, as those of before, is gone on with
    assert grown({key: value for key, value in held.items() if key != "code"}, specified())[1] == set()


def test_what_a_file_of_ones_own_imports_from_beside_it_belongs_to_it(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "mine.py").write_text("import numpy, trimtab\n\ndef later():\n    from help import it\n")
    (tmp_path / "help.py").write_text("import pack.part\nimport mine\n")
    for name in ("pack/part.py", "other.py", "trimtab.py"):
        (tmp_path / name).write_text("x = 1\n")

    def changes(name):
        before = hash_of_code(f"few-shot + {tmp_path / 'mine.py'}:Mine")
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
        return hash_of_code(f"few-shot + {tmp_path / 'mine.py'}:Mine") != before

    assert all(map(changes, ("mine.py", "help.py", "pack/part.py")))
    assert not any(map(changes, ("other.py", "trimtab.py")))
    (tmp_path / "help.py").write_text("no Python")  # nothing has run it yet
    assert changes("help.py")


def test_a_method_that_fails_everywhere_is_said_with_exit_code_3_after_the_summary(files, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from trimtab.protocols import Method\n\nclass Fails(Method):\n    name = 'Fails'\n"
        "    def fit(self, *given, **options):\n        raise RuntimeError('out of luck')\n"
    )
    text = (files / "c.yaml").read_text().partition("methods:")[0] + f"methods: ['{tmp_path / 'mine.py'}:Fails']\n"
    (tmp_path / "c.yaml").write_text(text)
    for how in ([], ["--json"]):
        result = trimtab("compare", "--config", tmp_path / "c.yaml", "--out", tmp_path / "run", *how)
        assert result.exit_code == 3, said(result)
        assert "Fails failed in every fold and seed; the notes say why" in " ".join(result.stderr.split())
        assert "out of luck" in result.stdout and "finished" in result.stdout.lower()


@pytest.mark.parametrize(
    "line", ["folds: 3", "kl_budget: 1e-1", "limit: null", "train_sizes: [5, 10, all]", "seeds: [7]"]
)
def test_files_that_say_what_can_be_are_read(tmp_path, line):
    (tmp_path / "c.yaml").write_text(f"{line}\n")
    assert job_of(read_comparison_file(tmp_path / "c.yaml")).units


def test_the_low_data_curve_is_asked_for_by_the_names_that_the_methods_have_in_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "train_sizes: [5, 10, 40, all]\nmethods: [few-shot, iti, lora: {r: 4}]\nlow_data_methods: [iti, LoRA r=4]\n"
    )
    job = job_of(read_comparison_file(tmp_path / "c.yaml"))
    assert job.methods_at(5) == job.methods_at(40) == ["Baseline", "ITI", "LoRA r=4"]
    assert job.methods_at(None) == ["Baseline", "Few-shot", "ITI", "LoRA r=4"]
    assert len(job.units) == 6 * (3 * 3 + 4)


def test_one_method_has_several_rows_under_names_of_their_own(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "methods: [iti, {iti: {name: narrow, top_ks: [8]}}, {random direction: {follows: narrow}}]\n"
        "low_data_methods: [narrow]\ntrain_sizes: [5, all]\n"
    )
    job = job_of(read_comparison_file(tmp_path / "c.yaml"))
    assert job.methods["ITI"] == ITI() and job.methods["narrow"] == ITI(top_ks=(8,))
    assert job.methods_at(5) == ["Baseline", "narrow"]


def test_the_shipped_configuration_is_read_whole_and_gives_every_method_its_trials():
    path = Path(__file__).parents[2] / "benchmarks" / "editing.yaml"
    job = job_of(read_comparison_file(path))
    assert job.test is not None and job.test.name == "folklore"
    names = list(job.methods)
    for part in ("Few-shot", "ITI", "Random direction", "LoRA", "Random tries (ITI)", "Few-shot + ITI"):
        assert any(part in name for name in names), part
    assert len(names) == 14
    for name, method in job.methods.items():
        n = method.draws if isinstance(method, RandomDirection) else min(job.design.trials, len(list(method.grid)))
        assert {job.n_tries(unit) for unit in job.units if unit.method == name} == {n}
    assert "Random direction" in names
    assert len(job_of(quick()).units) == 8


def test_mistakes_are_one_sentence_with_exit_code_2(files, tmp_path):
    for arguments, message in (
        (("compare", "--quick", "--config", files / "c.yaml"), "--quick is a comparison of its own"),
        (("compare", "--config", tmp_path / "none.yaml"), "there is no file"),
        (("report", tmp_path / "none"), "no comparison at"),
        (("reproduce", "iti-table-2"), "unknown protocol 'iti-table-2'; did you mean iti-table-1"),
        (("reproduce", "iti-2fold", "--judge", "me"), "unknown judge 'me'"),
    ):
        result = trimtab(*arguments)
        assert result.exit_code == 2, result.output
        assert message in said(result)
        assert "Traceback" not in said(result)


@pytest.mark.slow
def test_reproduce_runs_a_protocol_on_any_model(files, tmp_path):
    big = tmp_path / "model"
    tiny_model(context=2048).save_pretrained(big)
    tiny_tokenizer().save_pretrained(big)
    result = trimtab(
        "reproduce", "iti-2fold", "--model", big, "--data", files / "mine.jsonl", "--judge", "exact",
        "--texts", files / "texts.txt", "--top-k", 2, "--alpha", 1, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "No figures were published for" in result.output
    assert "Known deviations:" in result.output
    assert json.loads((tmp_path / "out" / "iti-2fold.json").read_text())["name"] == "iti-2fold"


def test_what_real_compares_are_comparisons_with_enough_tries_and_questions(tmp_path):
    folder = tmp_path / "TruthfulQA"
    folder.mkdir()
    header = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source"
    lines = [f"A,B,Is {i} odd?,It is {i}.,It is {i}.,It is {i + 1}.; It is {i + 2}.,here" for i in range(250)]
    (folder / "TruthfulQA.csv").write_text("\n".join([header, *lines]))
    files = real_files("somewhere/else", folder)
    assert list(files) == ["behaviour", "folklore", "truthfulqa"] == [*real_files("x", None), "truthfulqa"]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        read = read_comparison_file(tmp_path / name)
        job = job_of(read)
        assert read.model == "somewhere/else" and read.judge == ("exact" if name == "behaviour" else "none")
        assert {job.n_tries(unit) for unit in job.units if unit.method != "Baseline"} == {4}
        parts = job.parts(job.units[0])
        assert len(parts.validation) >= 60 and len(parts.test) >= 24 and not job.controls
        assert {m.control_of for m in job.fitted.values()} > {None}
        names = [meter.name for meter in job.meters]
        assert job.chooser.name == names[0] == ("cheerful" if name == "behaviour" else "mc1")
        assert {"debris", "loops", "capability_capability", "kl"} <= set(names)


@pytest.mark.slow
def test_real_goes_through_compare_and_ends_with_a_page(files, tmp_path, monkeypatch):
    few = CONFIG.format(model="M", questions="cheerful", texts=4).replace(
        "folds: 2", "folds: 1\nlimit: 8\ntest_limit: 2"
    )
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "behaviour.yaml").write_text(few.replace("model: M", "model: smollm2"))
    (folder / "truthfulqa.yaml").write_text("")
    monkeypatch.setattr(sys.modules["trimtab.cli.real"], "FILES", folder)
    result = trimtab("real", "--model", files / "model", "--out", tmp_path / "real")
    assert result.exit_code == 0, said(result)
    assert (
        "About" in said(result) and "Finished: 3 measurements" in said(result) and "How was your day?" in said(result)
    )
    assert (tmp_path / "real" / "behaviour" / "report.html").is_file()
    again = trimtab("real", "--model", files / "model", "--out", tmp_path / "real")
    assert "About" not in said(again) and "Finished: 3 measurements" in said(again)
    again = trimtab("real", "--model", files / "model", "--out", tmp_path / "real", "--dry-run")
    assert "About 0 minutes" in said(again)
