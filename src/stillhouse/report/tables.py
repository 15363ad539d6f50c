"""One table, written as HTML, Markdown, LaTeX or CSV; hostile text stays text in each."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from stillhouse.report.markup import Markup, join, tag, visible

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Table:
    """Rows of text under column titles; the first `names` columns are names, the others numbers.

    `strong` are the row and column of the cells that stand out.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    strong: frozenset[tuple[int, int]] = frozenset()

    def html(self) -> Markup:
        """The table as an HTML element."""
        head = tag("tr", *(tag("th", title, scope="col", class_=self._kind(i)) for i, title in enumerate(self.columns)))
        body = join(
            tag("tr", *(self._cell(i, tag("strong", text) if (number, i) in self.strong else text)
                        for i, text in enumerate(row)))
            for number, row in enumerate(self.rows)
        )  # fmt: skip
        table = tag("table", tag("caption", self.caption), tag("thead", head), tag("tbody", body))
        return tag("div", table, class_="wide")

    def markdown(self) -> str:
        """The table as GitHub's Markdown, with its caption in front."""
        rule = ["---" if i < self.names else "--:" for i in range(len(self.columns))]
        body = [
            [f"**{markdown_text(cell)}**" if (number, i) in self.strong else markdown_text(cell)
             for i, cell in enumerate(row)]
            for number, row in enumerate(self.rows)
        ]  # fmt: skip
        lines = [[markdown_text(title) for title in self.columns], rule, *body]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"**{markdown_text(self.caption)}**\n\n{table}\n"

    def latex(self) -> str:
        """The table as LaTeX, for the package booktabs."""
        kinds = "l" * self.names + "r" * (len(self.columns) - self.names)
        head = " & ".join(latex_text(title) for title in self.columns)
        body = [
            " & ".join(rf"\textbf{{{latex_text(cell)}}}" if (number, i) in self.strong else latex_text(cell)
                       for i, cell in enumerate(row))
            for number, row in enumerate(self.rows)
        ]  # fmt: skip
        lines = [
            rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", rf"{head} \\", r"\midrule",
            *(rf"{line} \\" for line in body), r"\bottomrule", r"\end{tabular}",
        ]  # fmt: skip
        caption = " ".join(visible(self.caption).split())
        return "\n".join([f"% {caption}", r"% needs \usepackage{booktabs}", *lines, ""])

    def csv(self) -> str:
        """The table as CSV; a text that a spreadsheet would take for a formula gets an apostrophe in front."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows([[csv_text(cell) for cell in row] for row in (self.columns, *self.rows)])
        return out.getvalue()

    def _kind(self, column: int) -> str:
        return "name" if column < self.names else "number"

    def _cell(self, column: int, text: str | Markup) -> Markup:
        if column == 0:
            return tag("th", text, scope="row", class_="name")
        return tag("td", text, class_=self._kind(column))


def markdown_text(text: str) -> str:
    """`text` on one line with what Markdown or HTML would act on made harmless."""
    line = " ".join(visible(text).split())
    for mark in "\\`*_[]|~":
        line = line.replace(mark, "\\" + mark)
    return html.escape(line, quote=False)


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "|": r"\textbar{}",
    "*": r"$^{*}$", "[": "{[}",  # which a line's end before them would take for arguments of its own
    "≥": r"$\geq$", "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def latex_text(text: str) -> str:
    """`text` on one line with what LaTeX would act on made harmless."""
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(visible(text).split()))


def csv_text(text: str) -> str:
    """`text` as a cell that no spreadsheet takes for a formula."""
    line = visible(text)
    return f"'{line}" if line.startswith(_FORMULA) and line != "-" and not _is_number(line) else line


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
