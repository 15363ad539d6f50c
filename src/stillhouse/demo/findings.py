"""What came out: the table, the sentences that the numbers allow, and the page. Nothing here knows a result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from stillhouse import report, store
from stillhouse.demo.plan import HELD_OUT, Layout, Scale
from stillhouse.demo.setups import SEQKD, SFT, Setup, Student
from stillhouse.report import Group, Run, Section, Spread

METRIC = "exact_match"
CURVES = ("accuracy", "agreement", "eval_loss")
SCORES_LABEL = f"exact match on {HELD_OUT} prompts, %"


def read_sections(layout: Layout, scale: Scale, chosen: Sequence[Setup], seeds: int) -> list[Section]:
    """One section for each set-up: the teacher, then the students by method."""
    sections = []
    for setup in chosen:
        teacher = Group("Teacher", (report.read_run(layout.teacher_run(setup.teacher)),))
        students = (Group(student.label, _runs(layout, setup, student, seeds)) for student in setup.students)
        sections.append(Section(setup.title, setup.note.format(**asdict(scale)), (teacher, *students)))
    return sections


def findings(section: Section) -> list[str]:
    """What may be said of a set-up: differences, each with whether it is larger than the spread."""
    scores = {group.label: _score(group) for group in section.groups}
    students = [label for label in scores if label not in ("Teacher", SFT)]
    distilled = sorted(students, key=lambda name: -scores[name].mean)
    said = [_order(scores["Teacher"], [scores[name] for name in distilled], scores[SFT])]
    pairs = [(name, SFT) for name in distilled] + list(pairwise(distilled)) + [("Teacher", distilled[0])]
    said += [_against(higher, scores[higher], lower, scores[lower]) for higher, lower in pairs]
    return [*said, _made_of(scores, distilled[0])]


def print_table(sections: Sequence[Section], console: Console) -> None:
    """Every set-up in one table, then what it shows."""
    table = RichTable(title="Held-out prompts, greedy: mean ± standard deviation over the seeds", title_justify="left")
    for name in ("set-up", "method"):
        table.add_column(name)
    for name in ("exact match", "ROUGE-L", "s a run"):
        table.add_column(name, justify="right", no_wrap=True)
    for section in sections:
        for place, group in enumerate(section.groups):
            numbers = (group.score(HELD_OUT, METRIC), group.score(HELD_OUT, "rougeL"), group.seconds())
            table.add_row("" if place else section.title, group.label, *map(str, numbers))
        table.add_section()
    console.print(table)
    for section in sections:
        console.print(f"\n[bold]{section.title}[/bold]")
        for sentence in findings(section):
            console.print(f"  - {sentence}", highlight=False)


def write_report(layout: Layout, scale: Scale, sections: Sequence[Section], seeds: int) -> Path:
    """report.html with tables, pictures and examples; beside it scores.png, and curves.png of the second set-up."""
    blocks = [report.paragraphs(*_lead(scale, seeds))]
    picture = report.score_picture(sections, HELD_OUT, METRIC, SCORES_LABEL)
    caption = "A dot is a run, a stroke the mean over the seeds, a bar one standard deviation to either side."
    blocks.append(report.figure_block(report.svg(picture, "Exact match by method in every set-up"), caption))
    for section in sections:
        own, *rest = report.section_blocks(section)
        blocks += [own, report.bullet_list(findings(section)), *rest]
    path = layout.root / "report.html"
    store.write_text(path, report.page("Stillhouse: ten small skills, distilled", blocks))
    report.write_png(report.score_picture(sections, HELD_OUT, METRIC, SCORES_LABEL), layout.root / "scores.png")
    curves = report.learning_curves(sections[1], [q for q in report.QUANTITIES if q.key in CURVES])
    if curves is not None:
        report.write_png(curves, layout.root / "curves.png")
    return path


def _runs(layout: Layout, setup: Setup, student: Student, seeds: int) -> tuple[Run, ...]:
    return tuple(report.read_run(layout.run(setup, student, seed)) for seed in range(1, seeds + 1))


def _score(group: Group) -> Spread:
    score = group.score(HELD_OUT, METRIC)
    if score is None:
        raise ValueError(f"{group.label} was not evaluated")
    return score


def _order(teacher: Spread, distilled: Sequence[Spread], sft: Spread) -> str:
    holds = all(report.exceeds(teacher, student) and report.exceeds(student, sft) for student in distilled)
    return (
        "The teacher above every distilled student, and each of these above SFT, by more than the spread: "
        f"{'yes' if holds else 'no, see below'}."
    )


def _against(name: str, one: Spread, rival: str, other: Spread) -> str:
    difference = one.mean - other.mean
    together = (one.deviation or 0.0) + (other.deviation or 0.0)
    larger = report.exceeds(one, other) or report.exceeds(other, one)
    verdict = "more than" if larger else "no more than"
    reading = "" if larger else ": no order can be read from it"
    return (
        f"{name} against {rival}: {difference:+.1f} points of exact match, "
        f"{verdict} both standard deviations together ({together:.1f}){reading}."
    )


def _made_of(scores: dict[str, Spread], best: str) -> str:
    sft, text = scores[SFT].mean, scores[SEQKD].mean
    gain = scores[best].mean - sft
    if gain <= 0:
        return "No distilled student gains anything over SFT here."
    return (
        f"What the gain is made of: SeqKD, which never sees a logit, has {text - sft:+.1f} of the {gain:+.1f} points "
        f"that the best distilled student ({best}) gains over SFT, {(text - sft) / gain:.0%}."
    )


def _lead(scale: Scale, seeds: int) -> Iterable[str]:
    yield (
        f"Teachers learn ten small skills from {scale.teacher_rows:,} generated rows; students a third of their size "
        f"have far less to learn from. Every student was trained with {seeds} seeds, which set its first weights and "
        "the order of its data; within a seed all methods start from the same weights. The data, the two teachers and "
        "the tokenizers are the same for all seeds, so the spread is that of the students' training alone. Small sets "
        "are repeated within an epoch, so that all curves have their points at like steps."
    )
    yield (
        f"Scores are taken on {scale.held_out} prompts that no model has seen as strings, though the facts that they "
        "ask for may have been seen in other words; answers are written greedily; exact match ignores case and "
        "punctuation. The models, data and settings are tiny: nothing here says how the methods rank elsewhere."
    )
