"""`stillhouse inspect` from its words to what a terminal and a page show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stillhouse import cli, store
from stillhouse.inspection.tokens import LEGEND
from stillhouse.vocabulary import build
from tests.alignment.tokenizers import nfkc
from tests.data.small import CHATML, byte_level, metaspace

ROWS = [
    {"instruction": "What is two plus two?", "output": "It is four."},
    {"instruction": "Name the capital of France.", "output": "Paris, of France.\r\n\tYou?"},
    {"instruction": "Hello", "output": "\ufb01ne"},
]
PAIR = ("--student=student", "--teacher=teacher")
PLAIN = (*PAIR, "--template=plain", "--text=It is four.")
Inspect = Callable[..., str]


@pytest.fixture
def inspect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inspect:
    """What the verb prints after its legend, in a folder that holds three tokenizers and three rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))
    byte_level(CHATML).save_pretrained("teacher")
    metaspace().save_pretrained("student")
    nfkc().save_pretrained("nfkc")
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def run(*words: str) -> str:
        code = cli.main(["inspect", *words])
        out, error = capsys.readouterr()
        if code:
            return error
        legend, _, rest = out.partition("\n\n")
        assert legend == LEGEND and error == ""
        return rest

    return run


def test_both_tokenisations_stand_under_each_other(inspect: Inspect):
    out = inspect(*PAIR, "--data=rows.jsonl", "--rows=1")
    assert out == (
        "rows.jsonl:1\n"
        "student  …11 (hat·is·two) (·plus·two) (?) (↵) (↵###·Respons) (e:↵) | ·I |\n"
        "teacher  …31 (↵) (↵) (###) (·Response) (:) (↵)                     | I  |\n"
        "\n"
        "student  t·is  | ·four.  | «</s>»          |\n"
        "teacher  t ·is | ·four . | «<|endoftext|>» |\n"
        "\n"
        "student: student\n"
        "  3 rows, 3 examples, 65 tokens of which 21 scored, the longest 24\n"
        "  2 examples whose text the tokenizer normalises; their spans are by characters\n"
        "\n"
        "teacher: teacher\n"
        "  3 rows, 3 examples, 129 tokens of which 25 scored, the longest 49\n"
        "\n"
        "alignment span, the one shown\n"
        "  100.0% of the student's scored tokens and 100.0% of the teacher's are aligned, in 4 rows: 50.0% 1-1, "
        "50.0% 1-n\n"
        "  100.0% of the responses' bytes are in a row\n"
        "\n"
        "alignment span, all 3 examples\n"
        "  95.2% of the student's scored tokens and 100.0% of the teacher's are aligned, in 19 rows: 73.7% 1-1, "
        "21.1% 1-n, 5.3% n-m\n"
        "  100.0% of the responses' bytes are in a row\n"
        "\n"
        "vocabulary overlap\n"
        "  reaches 29.1% of the teacher's 398 tokens and 46.8% of the student's 248\n"
        "  reaches 64.0% of the 25 teacher tokens that are learnt here\n"
        "  most frequent without a match: Y (1), <0xAC> (1), <0xEF> (1), ⇥ (1), ␍ (1), <0x81> (1), ·of (1), "
        "·France (1), ·four (1)\n"
    )


def test_tokens_in_no_group_and_the_map_are_marked(inspect: Inspect):
    words = ("--teacher_template=chat", "--rows=1", "--alignment=exact", "--vocabulary=prefix", "--show_map")
    out = inspect(*PAIR, "--data=rows.jsonl", *words)
    assert (
        "student  !t·is !·four.     | «</s>»       |    |\n"
        "teacher  !t !·is !·four !. | «<|im_end|>» | !↵ |\n"
        "map      t ·is ·f .        | ∅            | ↵  |\n"
    ) in out
    assert "alignment exact, the one shown\n  50.0% of the student's scored tokens and 28.6% of the teacher's" in out


def test_one_tokenizer_alone_shows_its_tokens_and_mask(inspect: Inspect):
    out = inspect("--student=student", "--text=It is four.", "--template=plain", "--prompt=Name")
    assert out == (
        "text\n"
        "student  («<s>») (·) (Na) (m) (e) (↵) | ·I | t·is | ·four. | «</s>» |\n"
        "\n"
        "student: student\n"
        "  1 rows, 1 examples, 10 tokens of which 4 scored, the longest 10\n"
    )


def test_a_prompt_that_is_learnt_is_no_mask(inspect: Inspect):
    assert "(" not in inspect("--student=teacher", "--text=It", "--template=plain", "--scored=all").splitlines()[1][12:]


def test_what_cannot_be_a_line_of_text_is_shown_by_its_number(inspect: Inspect):
    out = inspect("--student=teacher", "--text=a\x1b[31m\u202e\r\n\t\u4f60[red]\u00b7", "--template=plain")
    shown = "".join(line.removeprefix("student") for line in out.partition("\n\nstudent:")[0].splitlines()[1:])
    shown = shown.replace(" ", "").replace("|", "")
    assert shown == "(↵)a<U+001B>[31m<0xE2><0x80><0xAE>␍↵⇥<0xE4><0xBD><0xA0>[red]<0xC2><0xB7>«<endoftext>»"
    assert "\x1b" not in out and "\u202e" not in out


def test_lines_fit_the_terminal(inspect: Inspect, monkeypatch: pytest.MonkeyPatch):
    for width in (20, 50, 66, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        rows = inspect(*PAIR, "--data=rows.jsonl", "--alignment=exact").partition("\n\nstudent: ")[0]
        longest = len("student  (↵Name·the·capital·of·France.↵) |")  # one token, which is not broken
        assert max(map(len, rows.splitlines())) <= max(width, longest), width


def test_text_that_a_tokenizer_normalises_is_counted(inspect: Inspect):
    out = inspect("--student=teacher", "--teacher=nfkc", "--data=rows.jsonl", "--rows=3")
    assert "student  …25 (↵) (↵) (###) (·Response) (:) (↵) | <0xEF> <0xAC> <0x81> n e |" in out
    assert "teacher  …26 (↵) (↵) (###) (·Response) (:) (↵) | ·fine                    |" in out
    assert "  1 examples whose text the tokenizer normalises; their spans are by characters" in out


def test_what_depends_on_predictions_is_said(inspect: Inspect):
    out = inspect(*PLAIN, "--alignment=entropy_dtw", "--vocabulary=cdm")
    assert "  entropy_dtw depends on predictions and is found in training; dtw is shown in its place\n" in out
    assert "\nalignment dtw, the one shown\n" in out
    assert "  that is its static map; which other tokens match depends on the predictions of each position\n" in out


@pytest.mark.parametrize("aligner", ["span", "exact", "position", "dtw", "dtw_matched", "entropy_dtw"])
@pytest.mark.parametrize("vocabulary", ["exact", "min_edit", "prefix"])
def test_every_aligner_goes_with_every_map(aligner: str, vocabulary: str, inspect: Inspect):
    out = inspect(*PAIR, "--data=rows.jsonl", f"--alignment={aligner}", f"--vocabulary={vocabulary}", "--show_map")
    assert f"\nvocabulary {vocabulary}\n  reaches " in out and "\nmap " in out


def test_the_same_tokenizer_twice_is_said(inspect: Inspect):
    out = inspect("--student=teacher", "--teacher=teacher", "--text=It is four.")
    assert "  the tokenizers are the same: ids are shared, and no map of tokens is needed\n" in out
    assert "100.0% 1-1\n" in out and "most frequent without" not in out


def test_no_vocabulary_and_other_rows_than_all(inspect: Inspect):
    out = inspect(*PAIR, "--data=rows.jsonl", "--limit=2", "--vocabulary=null")
    assert "\nrows.jsonl:2\n" in out and "rows.jsonl:3" not in out
    assert "vocabulary" not in out and "all " not in out


def test_a_map_from_a_file(inspect: Inspect):
    build("min_edit", byte_level(), metaspace()).save("map.json")
    out = inspect(*PLAIN, "--vocabulary=file", "--vocabulary.path=map.json")
    assert "\nvocabulary file\n  reaches 99.5% of the teacher's 398 tokens" in out


def test_a_recipe_says_what_the_command_line_does_not(inspect: Inspect):
    Path("r.yaml").write_text(
        "student: {model: student, from_scratch: true}\nteacher: {model: teacher, template: chat}\n"
        "data: {train: rows.jsonl, template: plain, limit: 2}\nmethod: {name: cdm}\n"
    )
    out = inspect("r.yaml", "--rows=1")
    assert "«<|im_end|>»" in out and "\nalignment dtw, all 2 examples\n" in out and "\nvocabulary exact\n" in out
    out = inspect("r.yaml", "--text=It is four.", "--alignment=span", "--vocabulary=overlap")
    assert "\nalignment span, the one shown\n" in out and "\nvocabulary overlap\n" in out and "rows.jsonl" not in out


def test_a_recipe_without_a_teacher_shows_the_student(inspect: Inspect):
    Path("r.yaml").write_text("student: {model: student, from_scratch: true}\ndata: {train: rows.jsonl}\n")
    assert "teacher" not in inspect("r.yaml")


def test_the_page_holds_what_the_terminal_shows(inspect: Inspect):
    out = inspect(*PLAIN, "--out=pages/page.html")
    assert out.endswith("\npages/page.html\n")
    page = store.read_text("pages/page.html")
    assert '<span class="token" title="id ' in page and ', bytes 0 to 1">·I</span>' in page
    assert '<span class="token special" title="id 2, bytes 11 to 12">«&lt;/s&gt;»</span>' in page
    assert 'class="token masked"' in page and "no bytes of a response" in page
    assert "<li>100.0% of the responses&#x27; bytes are in a row</li>" in page


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--student=rows", "--text=a"), "rows: no tokenizer files in this folder; "),
        (("--student=student", "--text=a", "--template=chat"), "student: this tokenizer has no chat template; "),
        (("--student=teacher", "--text=a", "--bos=true"), "data.bos: this tokenizer has no beginning-of-text token; "),
    ],
)
def test_what_only_the_tokenizers_know_is_one_line(words: tuple[str, ...], line: str, inspect: Inspect):
    Path("rows").mkdir()
    said = inspect(*words)
    assert said.startswith(f"stillhouse: {line}") and said.count("\n") == 1
