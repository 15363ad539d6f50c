"""Columns lose no token, whatever the text and the tokenizers; colours say no more than marks; a page is inert."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from stillhouse.alignment import Side, build
from stillhouse.data.encode import Limits, encode_all
from stillhouse.data.example import Example, Segment
from stillhouse.data.pieces import Pieces
from stillhouse.inspection import Findings, Row, legible, look
from stillhouse.inspection.page import html
from stillhouse.inspection.reach import predicted_tokens
from stillhouse.inspection.terminal import print_findings, row_lines
from stillhouse.inspection.tokens import columns_of, tokens_of
from stillhouse.recipe import InspectOptions
from tests.alignment.tokenizers import TEXT, TOKENIZERS
from tests.data.small import byte_level, metaspace
from tests.report.test_write import PAYLOADS, Anatomy

PIECES = {name: Pieces.of(tokenizer) for name, tokenizer in TOKENIZERS.items()}
# Everything that the page is made of.
ELEMENTS = set(re.findall(r"\w+", "html head meta title style body main h1 h2 p ul li div span footer"))
ATTRIBUTES = {"lang", "charset", "http-equiv", "name", "content", "class", "title"}
NAMES = st.sampled_from(sorted(TOKENIZERS))


def item(text: str, name: str) -> dict[str, Any]:
    example = Example((Segment("What is two plus two, and why?\n", False), Segment(text, True)), "t")
    return encode_all([example], TOKENIZERS[name], Limits(1000, 500), spans="bytes")[0][0]


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXT.filter(str.strip), student=NAMES, teacher=NAMES, aligner=st.sampled_from(["span", "position", "dtw"]))
def test_every_token_is_in_one_column_in_its_order(text: str, student: str, teacher: str, aligner: str):
    items = [item(text, student), item(text, teacher)]
    tokens = [tokens_of(one, PIECES[name], alone=False) for one, name in zip(items, (student, teacher), strict=True)]
    alignment = build(aligner, PIECES[student], PIECES[teacher])(*(Side.of(one) for one in items))
    columns = columns_of(tokens[0], tokens[1], alignment)
    for side, whole in enumerate(tokens):
        shown = [token for column in columns for token in column.lines[side]]
        ids = [token.id for token in shown if token.id >= 0]
        assert ids == [token.id for token in whole][len(whole) - len(ids) :]
        assert len(ids) == len(whole) or shown[0].text == f"…{len(whole) - len(ids)}"
        for column in columns:
            assert {token.group for token in column.lines[side]} <= {column.group, None}
        assert sum(token.group is not None for token in shown) == sum(
            len(members[side]) for members in alignment.groups()
        )
    for line in row_lines(Row("t", columns), ("student", "teacher"), 60):
        assert line.plain.isprintable() and cell_len(line.plain) <= 60


def test_what_is_no_text_is_shown_by_its_number():
    assert legible(b"a b\r\n\t") == "a·b␍↵⇥"
    assert legible(b"\xf0\x9f!") == "<0xF0><0x9F>!"
    assert legible("\u200d\x1b\u00b7\ufe0f".encode()) == "<U+200D><U+001B><U+00B7>\ufe0f"
    assert legible("\u0301e\u0301".encode()) == "◌\u0301e\u0301"


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    """A row of every payload, in its prompt and in its response, in a file whose name is one."""
    byte_level().save_pretrained(tmp_path / "teacher")
    metaspace().save_pretrained(tmp_path / "student")
    data = tmp_path / "<img src=x onerror=alert(1)>.jsonl"
    data.write_text("".join(json.dumps({"instruction": text, "output": text}) + "\n" for text in PAYLOADS))
    student, teacher = str(tmp_path / "student"), str(tmp_path / "teacher")
    return look(InspectOptions(student=student, teacher=teacher, data=str(data), rows=len(PAYLOADS), scored="all"))


def test_payloads_stay_text_on_the_page(findings: Findings):
    page = Anatomy(html(findings))
    assert page.elements <= ELEMENTS and page.attributes <= ATTRIBUTES
    assert page.others == 0 and not page.addresses
    assert "<img src=x onerror=alert(1)>.jsonl" in page.text


def test_a_payload_in_one_token_stays_text(tmp_path: Path):
    payload = "<script>alert(1)</script>"
    tokenizer = byte_level()
    tokenizer.add_tokens([payload, '" onmouseover="alert(1)'])
    tokenizer.save_pretrained(tmp_path)
    found = look(InspectOptions(student=str(tmp_path), text=f'It {payload} is " onmouseover="alert(1)'))
    page = Anatomy(html(found))
    assert payload in page.text and '"·onmouseover="alert(1)' in page.text
    assert "script" not in page.elements and "onmouseover" not in page.attributes


def test_colours_are_added_to_the_same_text(findings: Findings):
    def printed(**how: Any) -> str:
        out = io.StringIO()
        print_findings(findings, Console(file=out, width=80, highlight=False, markup=False, emoji=False, **how))
        return out.getvalue()

    plain, coloured = printed(), printed(force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    for colour in (31, 32, 33, 34, 35, 36):  # red is of what is not aligned
        assert re.search(rf"\x1b\[(?:\d+;)*{colour}m", coloured), colour


def test_what_is_counted_is_what_is_predicted():
    example = Example((Segment("Q?\n", False), Segment("It is", True)), "t")
    encoded = encode_all([example], byte_level(), Limits(100, 50), spans="bytes")[0]
    said = b"".join(Pieces.of(byte_level()).content[token] for token in predicted_tokens(encoded))
    assert said == b"It is"  # and the end of the text, which is no bytes


def test_spans_are_in_all_bytes_though_the_aligner_leaves_blanks_out(tmp_path: Path):
    byte_level().save_pretrained(tmp_path)
    folder = str(tmp_path)
    found = look(InspectOptions(student=folder, teacher=folder, text="It is", alignment={"name": "exact"}))
    assert [token.span for column in found.rows[0].columns[1:] for token in column.lines[0]][-1] == (5, 6)
