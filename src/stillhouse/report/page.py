"""One HTML page that needs nothing else: no script, no address, a policy that forbids both."""

from __future__ import annotations

from collections.abc import Iterable

from stillhouse import __version__
from stillhouse.report.markup import Markup, join, tag

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

STYLE = Markup("""
:root { color-scheme: light dark; --ink: #24292f; --faint: #6a737d; --line: #d8dee4; --paper: #fff; --shade: #f6f8fa }
@media (prefers-color-scheme: dark) {
  :root { --ink: #d7dce2; --faint: #8b949e; --line: #343b44; --paper: #14181d; --shade: #1c2128 }
}
body { margin: 0 auto; max-width: 64rem; padding: 2.5rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem; padding-top: 1.1rem; border-top: 1px solid var(--line) }
h1, h2, td, th, dd, p, summary { overflow-wrap: anywhere }
p, ul { max-width: 46rem } li { margin: .25rem 0 }
.faint, caption, figcaption, footer { color: var(--faint); font-size: .875rem }
.wide { overflow-x: auto; margin: 1.2rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
caption { text-align: left; padding-bottom: .5rem; caption-side: top }
th, td { padding: .34rem .9rem .34rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
thead th { font-size: .82rem; color: var(--faint); font-weight: 600; border-bottom-width: 2px }
tbody th { font-weight: 600 } .number { text-align: right; white-space: nowrap; padding-left: .9rem }
figure { margin: 1.4rem 0 } figure svg { width: 100%; height: auto; color: var(--ink) }
details { margin: .4rem 0 } summary { cursor: pointer; font-size: .9rem }
pre { background: var(--shade); padding: .8rem 1rem; overflow-x: auto; font-size: .8rem; border-radius: 6px }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .8rem }
@media print {
  :root { --ink: #000; --faint: #444; --line: #bbb; --paper: #fff; --shade: #fff }
  body { max-width: none; padding: 0; font-size: 10pt } h2 { break-after: avoid }
  table, figure { break-inside: avoid } details:not([open]) { display: none }
}
""")


def page(title: str, blocks: Iterable[Markup], style: Markup | None = None) -> str:
    """A whole document of `blocks` under `title`; `style` is what it adds to the common one."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", STYLE if style is None else join((STYLE, style))),
    )
    footer = tag("footer", f"Written by stillhouse {__version__}.")
    body = tag("body", tag("main", tag("h1", title), join(blocks, "\n")), footer)
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def figure_block(drawing: Markup, caption: str) -> Markup:
    """A picture with the words under it."""
    return tag("figure", drawing, tag("figcaption", caption))


def paragraphs(*texts: object) -> Markup:
    """One paragraph for each text."""
    return join(tag("p", text) for text in texts)


def bullet_list(items: Iterable[object]) -> Markup:
    """A plain list."""
    return tag("ul", *(tag("li", item) for item in items))
