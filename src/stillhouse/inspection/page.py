"""The findings as one page of HTML that needs nothing else; whatever a row or a tokenizer says stays text."""

from __future__ import annotations

from stillhouse.inspection.findings import Findings, Row
from stillhouse.inspection.tokens import LEGEND, Column, Token
from stillhouse.report.markup import Markup, join, tag
from stillhouse.report.page import bullet_list, page, paragraphs

COLOURS = 5
STYLE = Markup("""
.columns { display: flex; flex-wrap: wrap; gap: .35rem .3rem; margin: .6rem 0 1.4rem;
  font: .84rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace }
.column, .sides { display: flex; flex-direction: column; border-left: 3px solid var(--line); padding: 0 .25rem }
.sides { border: 0; font-weight: 600 } .line { min-height: 1.5em }
.token { border-radius: 3px; padding: 0 .12rem; margin-right: .1rem; overflow-wrap: anywhere; unicode-bidi: isolate }
.group0 { border-color: #1192a8 } .group0 .token { background: #1192a833 }
.group1 { border-color: #3f9142 } .group1 .token { background: #3f914233 }
.group2 { border-color: #a33ea1 } .group2 .token { background: #a33ea133 }
.group3 { border-color: #b28600 } .group3 .token { background: #b2860033 }
.group4 { border-color: #4169c8 } .group4 .token { background: #4169c833 }
.column .special { font-style: italic; font-weight: 600 } .column .masked { background: none; color: var(--faint) }
.column .lost { background: #d1242f; color: #fff }
""")


def html(findings: Findings) -> str:
    """The whole page: the rows, then what is said of them."""
    blocks = [paragraphs(LEGEND, "A token's id and bytes show when the pointer rests on it.")]
    for row in findings.rows:
        blocks += [tag("h2", row.origin), _row(row, findings.lines)]
    for title, sentences in findings.said:
        blocks += [tag("h2", title), bullet_list(sentences)]
    return page("Tokens of student and teacher" if len(findings.lines) > 1 else "Tokens", blocks, STYLE)


def _row(row: Row, names: tuple[str, ...]) -> Markup:
    sides = tag("span", *(tag("span", name, class_="line") for name in names), class_="sides")
    return tag("div", sides, *map(_column, row.columns), class_="columns")


def _column(column: Column) -> Markup:
    kind = "column" if column.group is None else f"column group{column.group % COLOURS}"
    lines = (tag("span", join(map(_token, line)), class_="line") for line in column.lines)
    return tag("span", *lines, class_=kind)


def _token(token: Token) -> Markup:
    kinds = {"special": token.special, "lost": token.lost, "masked": not token.learnt}
    kind = " ".join(["token", *(name for name, holds in kinds.items() if holds)])
    if token.id < 0:
        return tag("span", token.marked, class_=kind)
    where = "no bytes of a response" if token.span is None else f"bytes {token.span[0]} to {token.span[1]}"
    return tag("span", token.marked, class_=kind, title=f"id {token.id}, {where}")
