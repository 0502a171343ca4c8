"""Question files of the user's own, and every way in which they can be malformed."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.datasets import Question, contrast_pairs, from_file
from trimtab.errors import BadDataset

ROW = {"question": "Is it so?", "correct": ["Yes."], "incorrect": ["No."]}
OTHER = {"question": "Is it not?", "correct": ["No."], "incorrect": ["Yes.", "Perhaps."]}
SO, NOT = Question("Is it so?", ("Yes.",), ("No.",)), Question("Is it not?", ("No.",), ("Yes.", "Perhaps."))
HEADER = "question,correct,incorrect\n"


def write(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(*rows: list[str]) -> str:
    out = io.StringIO(newline="")
    csv.writer(out).writerows(rows)
    return out.getvalue()


# ---- what is read


def test_jsonl_json_and_csv_give_the_same_questions(tmp_path):
    from_jsonl = from_file(write(tmp_path, "mine.jsonl", lines(ROW, OTHER)))
    from_json = from_file(write(tmp_path, "mine.json", json.dumps([ROW, OTHER], indent=1)))
    from_csv = from_file(write(tmp_path, "mine.csv", HEADER + "Is it so?,Yes.,No.\nIs it not?,No., Yes. ;Perhaps.;\n"))
    assert from_jsonl.questions == from_json.questions == from_csv.questions == (SO, NOT)
    assert from_jsonl.name == from_csv.name == "mine"
    assert from_file(str(tmp_path / "mine.csv")) == from_csv


def test_all_fields_are_kept(tmp_path):
    notes = {"best_answer": "So.", "category": "logic", "source": "a book", "explanation": "It is known."}
    expected = Question("Is it so?", ("Yes.", "So."), ("No.",), "So.", "logic", "a book", "It is known.")
    row = {**ROW, "correct": ["Yes.", "So."], **notes, "unknown field": 5}
    assert from_file(write(tmp_path, "a.jsonl", lines(row))).questions == (expected,)
    values = [["question", "correct", "incorrect", *notes], ["Is it so?", "Yes.;So.", "No.", *notes.values()]]
    assert from_file(write(tmp_path, "a.csv", table(*values))).questions == (expected,)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no BOM", "BOM"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path, name, mark, end):
    text = lines(ROW, OTHER) if name == "a.jsonl" else HEADER + "Is it so?,Yes.,No.\nIs it not?,No.,Yes.;Perhaps.\n"
    content = mark + text.encode().replace(b"\n", end)
    assert from_file(write(tmp_path, name, content)).questions == (SO, NOT)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_line_separators_inside_texts_do_not_end_a_line(tmp_path, name, separator):
    row = {**ROW, "question": f"Is it{separator}so?"}
    content = lines(row) if name == "a.jsonl" else HEADER + f"Is it{separator}so?,Yes.,No.\n"
    assert separator in content
    (question,) = from_file(write(tmp_path, name, content))
    assert question.question == f"Is it{separator}so?"


def test_blank_lines_are_passed_over_and_still_counted(tmp_path):
    path = write(tmp_path, "a.jsonl", "\n" + lines(ROW) + "  \n" + lines(OTHER) + "\n")
    assert from_file(path).questions == (SO, NOT)
    bad = write(tmp_path, "b.jsonl", "\n" + lines(ROW) + "\n{\n")
    with pytest.raises(BadDataset, match=r"b\.jsonl, line 4: not valid JSON"):
        from_file(bad)


def test_quoted_csv_fields_may_hold_commas_quotes_and_line_breaks(tmp_path):
    rows = [["question", "correct", "incorrect"], ['Is it "so",\nor not?', "Yes, it is.", "No."]]
    (question,) = from_file(write(tmp_path, "a.csv", table(*rows)))
    assert (question.question, question.correct) == ('Is it "so",\nor not?', ("Yes, it is.",))


answer_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.dictionaries(answer_texts, st.lists(answer_texts, min_size=2, max_size=4, unique=True), min_size=1),
    ascii_only=st.booleans(),
)
def test_any_texts_survive_a_round_through_jsonl(tmp_path_factory, rows, ascii_only):
    path = tmp_path_factory.mktemp("round") / "a.jsonl"
    given_rows = [{"question": q, "correct": a[:1], "incorrect": a[1:]} for q, a in rows.items()]
    path.write_bytes("\n".join(json.dumps(r, ensure_ascii=ascii_only) for r in given_rows).encode())
    assert from_file(path).questions == tuple(Question(q, (a[0],), tuple(a[1:])) for q, a in rows.items())


# ---- contrast pairs


PAIRS = [{"positive": "I love it.", "negative": "I hate it."}, {"positive": "How nice.", "negative": "How sad."}]


@pytest.mark.parametrize("read", [from_file, contrast_pairs])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_contrast_pairs_have_one_text_of_each_kind(tmp_path, read, name):
    content = lines(*PAIRS) if name == "a.jsonl" else table([*PAIRS[0]], *([*p.values()] for p in PAIRS))
    pairs = read(write(tmp_path, name, content))
    assert [(p.prompt, p.positive, p.negative) for p in pairs] == [
        ("", ("I love it.",), ("I hate it.",)),
        ("", ("How nice.",), ("How sad.",)),
    ]
    assert [(s.text, s.label) for s in pairs.statements()][:2] == [("I love it.", True), ("I hate it.", False)]


def test_a_prompt_that_both_texts_continue_stands_before_them(tmp_path):
    row = {"prompt": "The film was", "positive": "splendid.", "negative": "dreadful."}
    pairs = contrast_pairs(write(tmp_path, "a.jsonl", lines(row)))
    assert [s.text for s in pairs.statements()] == ["The film was splendid.", "The film was dreadful."]
    assert {s.group for s in pairs.statements()} == {"The film was"}


# ---- what is refused: every message names the file, the line and the field


MALFORMED = {
    "no JSON": ("a.jsonl", lines(ROW) + "{'question': 1}\n", r"line 2: not valid JSON \([^:]*, column 2\)"),
    "cut-off JSON": ("a.jsonl", lines(ROW)[:-5], "line 1: not valid JSON"),
    "JSON list": ("a.jsonl", lines(ROW) + '["Is it so?"]\n', "line 2: expected a JSON object, got list"),
    "JSON document": ("a.jsonl", json.dumps([ROW, OTHER], indent=1), "line 1: not valid JSON"),
    "no question": (
        "a.jsonl",
        lines(ROW, {"correct": ["A"], "incorrect": ["B"]}),
        "line 2: field 'question' is missing",
    ),
    "no false field": (
        "a.jsonl",
        lines(ROW, {"question": "Q?", "correct": ["A"]}),
        "line 2: field 'incorrect' is missing; found question, correct",
    ),
    "field twice": (
        "a.jsonl",
        lines(ROW) + '{"question": "Q?", "correct": ["A"], "correct": ["C"], "incorrect": ["B"]}\n',
        "line 2: not valid JSON .the key 'correct' stands twice in one object",
    ),
    "accents in two ways": (
        "a.jsonl",
        lines({**ROW, "question": "Où est Zoë?"}, {**ROW, "question": "Ou\u0300 est Zoe\u0308?"}),
        "line 2: '.*' stands in line 1 already",
    ),
    "true and false but for accents": (
        "a.jsonl",
        lines({**ROW, "correct": ["Malm\u00f6."], "incorrect": ["Malmo\u0308."]}),
        "line 1: .* lists 'Malmö.' as true and as false",
    ),
    "null": ("a.jsonl", lines({**ROW, "correct": None}), "line 1: field 'correct' is missing"),
    "empty object": ("a.jsonl", "{}\n", "line 1: field 'question' is missing; found none"),
    "no false answer": (
        "a.jsonl",
        lines(OTHER, {**ROW, "incorrect": []}),
        "line 2: field 'incorrect' must be .* not empty",
    ),
    "no true answer": ("a.jsonl", lines({**ROW, "correct": []}), "line 1: field 'correct' must be .* not empty"),
    "empty answer": (
        "a.jsonl",
        lines({**ROW, "correct": ["Yes.", " "]}),
        "line 1: field 'correct' .* none of them empty",
    ),
    "answers a number": (
        "a.jsonl",
        lines({**ROW, "correct": 5}),
        "line 1: field 'correct' must be a text or a list .* 5",
    ),
    "answers an object": (
        "a.jsonl",
        lines({**ROW, "correct": {"a": 1}}),
        "line 1: field 'correct' must be a text or a list",
    ),
    "an answer a number": (
        "a.jsonl",
        lines({**ROW, "incorrect": ["No.", 5]}),
        r"line 1: field 'incorrect' must hold texts",
    ),
    "an answer null": ("a.jsonl", lines({**ROW, "incorrect": [None]}), r"line 1: field 'incorrect' must hold texts"),
    "question a number": (
        "a.jsonl",
        lines({**ROW, "question": 7}),
        "line 1: field 'question' must be a text, .* got 7",
    ),
    "question blank": (
        "a.jsonl",
        lines({**ROW, "question": " "}),
        "line 1: field 'question' must be a text, not empty",
    ),
    "category a list": (
        "a.jsonl",
        lines({**ROW, "category": ["x"]}),
        r"line 1: field 'category' must be a text; got \['x'\]",
    ),
    "best answer a number": (
        "a.jsonl",
        lines({**ROW, "best_answer": 0}),
        "line 1: field 'best_answer' must be a text; got 0",
    ),
    "best answer false": (
        "a.jsonl",
        lines({**ROW, "best_answer": "No."}),
        r"line 1: .* best answer 'No\.' is not among",
    ),
    "same answer on both sides": (
        "a.jsonl",
        lines(OTHER, {**ROW, "incorrect": ["No.", "Yes. "]}),
        r"line 2: .*'Is it so\?' lists 'Yes\.' as true and as false",
    ),
    "question twice": ("a.jsonl", lines(ROW, OTHER, ROW), r"line 3: 'Is it so\?' stands in line 1 already; merge"),
    "empty JSONL": ("a.jsonl", "", "a.jsonl: no questions; at least one is needed"),
    "blank JSONL": ("a.jsonl", "\n \n", "a.jsonl: no questions"),
    "empty CSV": ("a.csv", "", "a.csv: no questions"),
    "header only": ("a.csv", HEADER, "a.csv: no questions"),
    "no header": (
        "a.csv",
        "Is it so?,Yes.,No.\nIs it not?,No.,Yes.\n",
        "line 2: field 'question' is missing; found Is it",
    ),
    "CSV without a column": ("a.csv", "question,correct\nIs it so?,Yes.\n", "line 2: field 'incorrect' is missing"),
    "CSV of semicolons": ("a.csv", "question;correct;incorrect\nA?;B;C\n", "line 2: field 'question' is missing"),
    "too many fields": (
        "a.csv",
        HEADER + "Is it so?,Yes, it is.,No.\n",
        "line 2: more fields than the header's 3; put texts",
    ),
    "too few fields": (
        "a.csv",
        HEADER + "A?,B,C\nIs it so?,Yes.\n",
        "line 3: fewer fields than the header: 'incorrect' miss",
    ),
    "CSV answer empty": ("a.csv", HEADER + "Is it so?,Yes.,\n", "line 2: field 'incorrect' must be a text or a list"),
    "CSV answers of nothing": ("a.csv", HEADER + "Is it so?, ; ,No.\n", "line 2: field 'correct' must .*empty"),
    "CSV both sides": ("a.csv", HEADER + "Is it so?,Yes.;No.,No.\n", r"line 2: .* lists 'No\.' as true and as false"),
    "CSV question twice": ("a.csv", HEADER + "A?,B,C\nD?,E,F\nA?,G,H\n", r"line 4: 'A\?' stands in line 2 already"),
    "open quote": ("a.csv", HEADER + 'Is it so?,"Yes.,No.\n', "line 2: not valid CSV"),
    "text after a quote": ("a.csv", HEADER + 'Is it so?,"Yes"!,No.\n', "line 2: not valid CSV"),
    "wrong suffix": ("a.txt", lines(ROW), "unknown kind of file '.txt'; expected .jsonl, .json or .csv"),
    "lines in .json": ("a.json", lines(ROW, OTHER), r"a.json: not valid JSON \(Extra data.*expected a list of objects"),
    "an object in .json": ("a.json", lines(ROW), "a.json: expected a JSON list of objects, got dict"),
    "a missing comma in .json": (
        "a.json",
        '[{"positive": "A"\n "negative": "B"}]',
        r"line 2 column 2.*list of objects",
    ),
    "a number in .json": ("a.json", f"[\n{lines(ROW)},\n3]", "line 4: expected a JSON object, got int"),
    "a pair without negative in .json": (
        "a.json",
        f'[{lines(PAIRS[0])},\n\n {{"positive":\n "So."}}]',
        "line 4: field 'negative' is missing; found positive",
    ),
    "no suffix": ("a", lines(ROW), "unknown kind of file ''; expected .jsonl, .json or .csv"),
    "binary": ("a.jsonl", bytes(range(256)), "is not UTF-8 text; expected a .jsonl, .json or .csv file"),
    "binary CSV": ("a.csv", b"PK\x03\x04\xff\xfe", "is not UTF-8 text"),
    "UTF-16": ("a.jsonl", lines(ROW).encode("utf-16"), "is not UTF-8 text"),
    "zeros": ("a.jsonl", b"\x00" * 64, "line 1: not valid JSON"),
    "pair without negative": (
        "a.jsonl",
        lines(PAIRS[0], {"positive": "So."}),
        "line 2: field 'negative' is missing; found positive",
    ),
    "answer twice": (
        "a.jsonl",
        lines({**ROW, "correct": ["Yes.", "Yes. "]}),
        r"line 1: .* lists the true answer 'Yes\.' twice; keep it once",
    ),
    "question twice but for white space": (
        "a.jsonl",
        lines(ROW, {**ROW, "question": " Is it so?\n"}),
        r"line 2: 'Is it so\?' stands in line 1 already",
    ),
    "half a character": (
        "a.jsonl",
        lines(ROW) + json.dumps({**OTHER, "question": "Is it \ud83d?"}) + "\n",
        "line 2: holds half a character",
    ),
    "JSON without end": ("a.jsonl", "[" * 100_000, "line 1: not valid JSON"),
    "column twice": (
        "a.csv",
        "question,question,correct,incorrect\nA?,B?,C,D\n",
        "line 1: the field 'question' stands",
    ),
    "pair twice": ("a.jsonl", lines(*PAIRS, PAIRS[0]), "line 3: the pair stands in line 1 already; keep it once"),
    "pair of equal texts": ("a.jsonl", lines(PAIRS[0], {"positive": "So.", "negative": "So."}), "line 2: .* lists 'So"),
    "pair of numbers": ("a.jsonl", lines({"positive": 1, "negative": 0}), "line 1: field 'positive' must be a text"),
    "pair with a blank text": (
        "a.jsonl",
        lines({"positive": "A", "negative": " "}),
        "line 1: field 'negative' .* not empty",
    ),
    "pair whose prompt is a list": (
        "a.jsonl",
        lines({"prompt": ["x"], "positive": "A", "negative": "B"}),
        "line 1: field 'prompt' must be a text",
    ),
    "prompt twice": (
        "a.jsonl",
        lines(*({"prompt": "P", **pair} for pair in PAIRS)),
        "line 2: 'P' stands in line 1 already",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_by_file_line_and_field(tmp_path, case):
    name, content, words = MALFORMED[case]
    path = write(tmp_path, name, content)
    with pytest.raises(BadDataset, match=words) as caught:
        from_file(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message


def test_suffixes_may_be_in_capitals_and_unnamed_columns_of_a_spreadsheet_are_no_matter(tmp_path):
    assert from_file(write(tmp_path, "a.CSV", "question,correct,incorrect,,\nIs it so?,Yes.,No.,,\n")).questions == (
        SO,
    )
    assert from_file(write(tmp_path, "a.JSONL", lines(ROW))).questions == (SO,)


def test_pairs_of_one_prompt_are_lists_in_one_row(tmp_path):
    row = {"prompt": "I say:", "positive": ["I love it.", "How nice."], "negative": [" I hate it."]}
    (pair,) = from_file(write(tmp_path, "a.jsonl", lines(row)))
    assert (pair.prompt, pair.positive, pair.negative) == ("I say:", ("I love it.", "How nice."), (" I hate it.",))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    folder = tmp_path / "b.jsonl"
    folder.mkdir()
    for path in (tmp_path / "a.jsonl", folder, Path("a\0b.jsonl")):
        with pytest.raises(BadDataset, match=re.escape(str(path)) + " cannot be read"):
            from_file(path)


def test_contrast_pairs_refuse_a_file_of_questions(tmp_path):
    with pytest.raises(BadDataset, match="line 1: field 'positive' is missing; found question, correct, incorrect"):
        contrast_pairs(write(tmp_path, "a.jsonl", lines(ROW)))
