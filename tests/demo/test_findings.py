import io

import pytest
from rich.console import Console

from stillhouse import store
from stillhouse.demo.findings import findings, print_table, read_sections, write_report
from stillhouse.demo.plan import Layout, Scale
from stillhouse.demo.setups import TEACHERS, cells, setups
from tests.report.runs import write_run

SETUPS = setups()
CLEAR = {"sft": 40.0, "seqkd": 65.0, "forward_kl": 70.0, "todi": 60.0, "overlap": 50.0, "cdm": 45.0}


def _layout(root, scores, *, teacher=95.0, step=2.0):
    """A demo whose runs have `scores`, `step` apart over three seeds."""
    layout = Layout(root)
    for name in TEACHERS:
        write_run(layout.teacher_run(name), exact_match=teacher)
    for setup, student, seed in cells(SETUPS, 3):
        folder = layout.run(setup, student, seed)
        write_run(folder, method=student.name, seed=seed, exact_match=scores[student.name] + step * (seed - 2))
    return layout


def _said(tmp_path, scores, **options):
    return findings(read_sections(_layout(tmp_path, scores, **options), Scale(), SETUPS, 3)[0])


def test_clear_differences_are_called_so(tmp_path):
    said = _said(tmp_path, CLEAR)
    assert said[0].endswith("by more than the spread: yes.")
    forward = "Forward KL against SFT: +30.0 points of exact match, more than both standard deviations together (4.0)."
    assert said[1] == forward
    assert said[-2].startswith("Teacher against Forward KL: +25.0 points")
    assert "SeqKD, which never sees a logit, has +25.0 of the +30.0 points" in said[-1] and "83%" in said[-1]


def test_differences_within_the_spread_are_called_so(tmp_path):
    said = _said(tmp_path, CLEAR, step=3.0)
    assert "Forward KL against SeqKD: +5.0 points of exact match, no more than both standard deviations" in said[4]
    assert said[4].endswith("(6.0): no order can be read from it.")


@pytest.mark.parametrize(
    ("changed", "teacher"), [({"todi": 35.0}, 95.0), ({"todi": 43.0}, 95.0), ({}, 71.0), ({}, 50.0)],
    ids=["a student below SFT", "a student within the spread of SFT", "a teacher within the spread", "a teacher below"],
)  # fmt: skip
def test_an_order_that_does_not_come_out_is_not_claimed(tmp_path, changed, teacher):
    assert _said(tmp_path, {**CLEAR, **changed}, teacher=teacher)[0].endswith("no, see below.")


def test_no_gain_is_said_as_such(tmp_path):
    said = _said(tmp_path, {**CLEAR, "sft": 80.0})
    assert said[-1] == "No distilled student gains anything over SFT here."
    assert "-10.0 points of exact match, more than both" in said[1]


def test_the_order_of_methods_is_the_numbers_own(tmp_path):
    said = _said(tmp_path, {**CLEAR, "todi": 90.0})
    assert said[1].startswith("ToDi against SFT") and "ToDi against Forward KL" in " ".join(said)


def test_a_setup_speaks_of_its_own_teacher_and_methods_alone(tmp_path):
    layout = _layout(tmp_path, {**CLEAR, "todi": 99.0})
    write_run(layout.teacher_run("unigram-teacher"), exact_match=66.0)
    third = read_sections(layout, Scale(), SETUPS, 3)[2]
    said = findings(third)
    assert [group.label for group in third.groups] == ["Teacher", "SFT", "SeqKD", "Overlap KL", "CDM"]
    assert not any("ToDi" in sentence or "Forward KL" in sentence for sentence in said)
    assert "CDM against SFT: +5.0 points" in " ".join(said)
    assert said[-2].startswith("Teacher against SeqKD: +1.0 points")
    assert "SeqKD, which never sees a logit, has +25.0 of the +25.0 points" in said[-1] and "100%" in said[-1]
    assert "a Unigram vocabulary of 460" in third.note


def test_the_table_and_the_page_show_every_number(tmp_path):
    layout = _layout(tmp_path, CLEAR)
    sections = read_sections(layout, Scale(), SETUPS, 3)
    console = Console(width=110, record=True, file=io.StringIO())
    print_table(sections, console)
    table, page = console.export_text(), store.read_text(write_report(layout, Scale(), sections, 3))
    labels = {student.label for setup in SETUPS for student in setup.students}
    for text in (table, page):
        assert all(label in text for label in ("Teacher", *labels, *(setup.title for setup in SETUPS)))
        assert all(
            number in text for number in ("95.0", "40.0 ± 2.0", "65.0 ± 2.0", "70.0 ± 2.0", "80.0 ± 2.0", "50.0 ± 2.0")
        )
        assert "Forward KL against SFT: +30.0 points" in text.replace("\n", " ").replace("    ", " ")
    assert "300 correct labels" in page and "3,000 prompts" in page and "30% of them wrong" in page
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
