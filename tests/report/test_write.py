import csv
import io
import re
from html.parser import HTMLParser

import pytest

from stillhouse import report, store
from stillhouse.mistakes import Mistake
from stillhouse.recipe import ReportOptions
from stillhouse.report.markup import Markup, escape, join, tag, visible
from stillhouse.report.tables import Table
from tests.report.runs import write_run

PAYLOADS = (
    "<script>alert(1)</script>", "<ScRiPt src=//x.example/a.js></sCrIpT>", "</script><script>alert(1)//",
    "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>", "<svg><animate onbegin=alert(1) attributeName=x>",
    "<svg><script>alert&#40;1)</script>", "<math><mi xlink:href='javascript:alert(1)'>x",
    "<iframe src=javascript:alert(1)>", "<iframe srcdoc='<script>alert(1)</script>'>",
    "<object data=javascript:alert(1)>", "<embed src=//x.example>", "<a href=javascript:alert(1)>x</a>",
    "<a href='data:text/html,<script>alert(1)</script>'>x</a>", "<form action=javascript:alert(1)><button>x",
    "<button formaction=javascript:alert(1)>x", "<input autofocus onfocus=alert(1)>", "<body onload=alert(1)>",
    "<details open ontoggle=alert(1)>", "<video><source onerror=alert(1)>", "<audio src onerror=alert(1)>",
    "<marquee onstart=alert(1)>", "<meta http-equiv=refresh content='0;url=//x.example'>", "<base href=//x.example/>",
    "<link rel=stylesheet href=//x.example/a.css>", "<style>@import '//x.example/a.css';</style>",
    "<style>*{background:url(//x.example)}</style>", "<div style='background:url(javascript:alert(1))'>",
    "</title><script>alert(1)</script>", "</style><script>alert(1)</script>", "</table><script>alert(1)</script>",
    "</svg><script>alert(1)</script>", "<!--<script>alert(1)</script>-->", "--><script>alert(1)</script>",
    "]]><script>alert(1)</script>", "<![CDATA[<script>alert(1)</script>]]>",
    "<?xml version='1.0'?><script>alert(1)</script>", '"><script>alert(1)</script>', "'><script>alert(1)</script>",
    '" onmouseover="alert(1)', "' onmouseover='alert(1)", "` onmouseover=`alert(1)", 'x" autofocus onfocus="alert(1)',
    "&lt;script&gt;alert(1)&lt;/script&gt;", "&#60;script&#62;alert(1)&#60;/script&#62;",
    "&#x3c;img src=x onerror=alert(1)&#x3e;", "%3Cscript%3Ealert(1)%3C/script%3E",
    "\\x3cscript\\x3ealert(1)\\x3c/script\\x3e", "<scr\x00ipt>alert(1)</scr\x00ipt>", "<script\x0b>alert(1)</script>",
    "<img src=x\tonerror=alert(1)>", "<<script>alert(1)//<</script>", "<script x", "<",
    "{{constructor.constructor('alert(1)')()}}", "${alert(1)}", "$\\frac{1}{<script>}$", "javascript:alert(1)",
    "\u202ealert(1)\u202c<script>", "\u2028<script>alert(1)</script>",
    "\uff1cscript\uff1ealert(1)\uff1c/script\uff1e", '=HYPERLINK("//x.example")', "@SUM(1+1)*cmd|' /C calc'!A0",
    "[x](javascript:alert(1))", "![x](//x.example/a.png)", "_hidden",
)  # fmt: skip


# Everything that a report is made of; an element or attribute that is not here was smuggled in.
ELEMENTS = """html head meta title style body main h1 h2 p ul li div table caption thead tbody tr th td figure
figcaption details summary pre footer svg defs g path use clippath rect"""
ATTRIBUTES = """lang charset http-equiv name content class scope role aria-label xmlns xmlns:xlink width height viewbox
version type id d style transform clip-path x y xlink:href"""


class Anatomy(HTMLParser):
    """Every element, attribute and address of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements, self.attributes, self.addresses = set[str](), set[str](), set[str]()
        self.text, self.others = "", 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses |= {value for name, value in attrs if name.endswith(("href", "src"))}

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        self.others += 1

    unknown_decl = handle_pi = handle_comment


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    """A report of one run for each payload, which stands wherever a run or its evaluation holds a text."""
    folder = tmp_path_factory.mktemp("runs")
    for place, payload in enumerate(PAYLOADS):
        texts = {
            "method": {"name": payload},
            "output": "".join(PAYLOADS),
            "name": payload,
            "note": {payload: [payload]},
        }
        write_run(folder / f"run{place}", data=payload, recipe=texts, line={payload: payload})
    return store.read_text(report.write(ReportOptions(runs=[str(folder)], out=str(folder / "report.html"))))


def test_payloads_in_every_field_stay_text(page):
    found = Anatomy(page)
    assert len(PAYLOADS) >= 60
    assert found.elements <= {*ELEMENTS.split()} and found.attributes <= {*ATTRIBUTES.split()}
    assert found.others == 0
    assert all(address.startswith("#") for address in found.addresses)


def test_payloads_are_shown_and_not_swallowed(page):
    text = Anatomy(page).text
    assert [payload for payload in PAYLOADS if visible(payload) not in text] == []


def test_the_page_forbids_scripts_and_addresses(page):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None and "default-src &#x27;none&#x27;" in policy[1] and "script-src" not in policy[1]
    assert page.index("Content-Security-Policy") < page.index("<style")
    styles = "".join(re.findall(r'<style>.*?</style>|style="[^"]*"', page, flags=re.DOTALL))
    assert "currentColor" in styles and "url(" not in styles and "@import" not in styles


def test_the_numbers_of_the_page_are_those_of_the_runs(tmp_path):
    for seed, score in ((1, 50.0), (2, 60.0), (3, 70.0)):
        write_run(tmp_path / f"todi{seed}", method="todi", seed=seed, exact_match=score)
    write_run(tmp_path / "sft", exact_match=None)
    out = report.write(ReportOptions(runs=[str(tmp_path)], out=str(tmp_path / "out" / "report.html")))
    page, beside = store.read_text(out), store.read_text(out.with_suffix(".md"))
    assert "60.0 ± 10.0" in page and "80.0 ± 10.0" in page and "10.0 ± 1.0" in page
    assert "1 of them were not evaluated" in page
    assert "| todi | 3 | 80.0 ± 10.0 | 60.0 ± 10.0 | 10.0 ± 1.0 |" in beside
    assert "| sft | 1 | - | - | 9.0 |" in beside
    rows = list(csv.DictReader(io.StringIO(store.read_text(out.with_suffix(".csv")))))
    assert [float(row["mean"]) for row in rows if row["metric"] == "exact_match"] == [50.0, 60.0, 70.0]


def test_a_page_is_the_same_each_time(tmp_path):
    write_run(tmp_path / "run")
    pages = [
        store.read_text(report.write(ReportOptions(runs=[str(tmp_path)], out=str(tmp_path / f"{n}.html"))))
        for n in "ab"
    ]
    assert pages[0] == pages[1]


def test_out_must_be_an_html_file(tmp_path):
    with pytest.raises(Mistake, match="is not the name of an HTML file; end it with"):
        report.write(ReportOptions(runs=[str(tmp_path)], out="report.pdf"))


def test_text_is_escaped_unless_it_is_markup():
    assert tag("p", "<b>", tag("i", 1), class_='a"b') == '<p class="a&quot;b">&lt;b&gt;<i>1</i></p>'
    assert escape(Markup("<hr>")) == "<hr>" and join(["<", 2]) == "&lt;2"


@pytest.mark.parametrize("name", ["p onclick", "script>", "P", ""])
def test_names_of_elements_are_checked(name):
    with pytest.raises(ValueError, match="not a tag or attribute name"):
        tag(name)


def test_markdown_and_csv_cells_are_inert():
    table = Table("a|b", ("x",), [["=1+1|<b>\n[y](z)"], ["-3.5"]])
    assert table.markdown() == "**a\\|b**\n\n| x |\n| --- |\n| =1+1\\|&lt;b&gt; \\[y\\](z) |\n| -3.5 |\n"
    assert table.csv() == 'x\n"\'=1+1|<b>\n[y](z)"\n-3.5\n'
