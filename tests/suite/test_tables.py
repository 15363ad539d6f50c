import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stillhouse.evaluation import Measure
from stillhouse.mistakes import Mistake
from stillhouse.recipe import SuiteOptions
from stillhouse.recipe.suite import SuiteRow
from stillhouse.report.tables import Table, latex_text
from stillhouse.suite.columns import Comparison, Found

NAMES = (
    r"50 % & $x_1$ #1 {a} ~b ^c \d", "[0.2ex]", "*", "**bold** `code` | pipe", "<script>alert(1)</script>",
    "a\nb\\\\", "=1+1", "[x](javascript:alert(1))", r"\input{/etc/passwd}",
)  # fmt: skip


def table() -> Table:
    rows = [[name, "1.50 ± 0.10*", "-"] for name in NAMES]
    return Table("A % of\neverything", ("", NAMES[0], "cost"), rows, strong=frozenset({(0, 1), (2, 0)}))


@pytest.mark.parametrize(("sign", "written"), [
    ("&", r"\&"), ("%", r"\%"), ("$", r"\$"), ("#", r"\#"), ("_", r"\_"), ("{", r"\{"), ("}", r"\}"),
    ("~", r"\textasciitilde{}"), ("^", r"\textasciicircum{}"), ("\\", r"\textbackslash{}"), ("[", "{[}"),
    ("*", "$^{*}$"), ("|", r"\textbar{}"), ("±", r"$\pm$"),
])  # fmt: skip
def test_latex_acts_on_nothing(sign: str, written: str) -> None:
    assert latex_text(f"a{sign}b") == f"a{written}b"


def test_a_latex_table_has_its_rows_and_cells() -> None:
    body = table().latex().split(r"\midrule" + "\n")[1].split(r"\bottomrule")[0]
    lines = body.splitlines()
    assert len(lines) == len(NAMES)
    for line in lines:
        assert line.endswith(r" \\") and len(re.findall(r"(?<!\\)&", line)) == 2
        assert line[0] not in "*["  # which the \\ before it would take for its own
    assert r"\textbf{1.50 $\pm$ 0.10$^{*}$}" in lines[0]
    assert table().latex().splitlines()[0] == "% A % of everything"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_a_latex_table_compiles(tmp_path: Path) -> None:
    text = r"\documentclass{article}\usepackage[utf8]{inputenc}\usepackage{booktabs}\begin{document}"
    (tmp_path / "a.tex").write_text(f"{text}\n{table().latex()}\n\\end{{document}}\n")
    subprocess.run(["pdflatex", "-halt-on-error", "a.tex"], cwd=tmp_path, check=True, stdin=subprocess.DEVNULL)


def test_html_shows_names_and_marks_the_strong() -> None:
    seen: list[tuple[str, str]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            seen.append((tag, ""))

        def handle_data(self, data: str) -> None:
            seen.append((seen[-1][0], data))

    Reader().feed(str(table().html()))
    assert {tag for tag, _ in seen} == {"div", "table", "caption", "thead", "tbody", "tr", "th", "td", "strong"}
    assert [text for tag, text in seen if tag == "strong" and text] == ["1.50 ± 0.10*", "*"]


def test_markdown_keeps_its_cells() -> None:
    lines = table().markdown().splitlines()[2:]
    assert len(lines) == 2 + len(NAMES)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    assert lines[2].split(" | ")[1] == r"**1.50 ± 0.10\***"
    assert "<" not in "".join(lines)


def found(name: str, *scores: float, higher: bool = True, reference: bool = False, items: int = 8) -> Found:
    """A row of one measure, of one run: a sampling seed for each score, which every item has."""
    measure = Measure("x", {seed: [score] * items for seed, score in enumerate(scores)}, higher)
    row = SuiteRow(name, name, "model", None, {}, reference)
    return Found(row, {"x": {None: measure}} if scores else {}, {}, False)


def compared(*rows: Found, **changes: Any) -> Comparison:
    written = [{"name": row.row.name, "model": "model"} for row in rows]
    return Comparison(SuiteOptions(rows=written, evaluate={"instruct": {}}, **changes), rows)


def test_the_best_is_the_least_where_less_is_better() -> None:
    rows = [found("ref", 9, reference=True), found("a", 1, 2), found("b", 3, 3), found("c", 3, 3)]
    assert compared(*rows).table.strong == {(2, 1), (3, 1)}
    lower = [found("ref", 0, higher=False, reference=True), *(found(n, n == "b", higher=False) for n in "ab")]
    assert compared(*lower).table.strong == {(1, 1)}
    assert compared(rows[0], rows[1]).table.strong == set(), "one row is no best"


def test_a_row_without_a_measure_has_none() -> None:
    table = compared(found("a", 1), found("b")).table
    assert table.rows == [["a", "1.00"], ["b", "-"]]
    assert table.csv() == ",x\na,1.00\nb,-\n"


@pytest.mark.parametrize(("baseline", "stars"), [(None, "..*"), ("b", "*.*"), ("c", "**.")])
def test_stars_are_for_those_that_differ_from_the_baseline(baseline: str | None, stars: str) -> None:
    rows = [found("a", 1), found("b", 1 if baseline is None else 2), found("c", 5)]
    cells = [row[1] for row in compared(*rows, baseline=baseline).table.rows]
    assert "".join("*" if cell.endswith("*") else "." for cell in cells) == stars


def test_references_are_never_tested_unless_one_is_the_baseline() -> None:
    rows = [found("r", 9, reference=True), found("a", 1), found("b", 1)]
    assert not any("*" in row[1] for row in compared(*rows).table.rows)
    assert ["*" in row[1] for row in compared(*rows, baseline="r").table.rows] == [False, True, True]


def test_rows_of_unlike_data_are_not_compared() -> None:
    with pytest.raises(Mistake, match="b: has 9 items of x, and a 8; score both on the same data"):
        assert compared(found("a", 1), found("b", 1, items=9)).table
