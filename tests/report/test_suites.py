"""Runs below a suite's output, with what the suite measured of them."""

import csv
import io
from pathlib import Path

import pytest

from stillhouse import report, store
from stillhouse.evaluation.measures import Measure, write_measures
from stillhouse.mistakes import Mistake
from stillhouse.recipe import ReportOptions
from stillhouse.report import find_runs, read_run, sections
from tests.report.runs import write_run

DONE = {"steps": 2, "xxh3": "a"}


def write_row(suite: Path, row: str, seed: int, score: float, student: str = "small") -> Path:
    """A run of a suite, as its rows are trained, and a score of it over two sampling seeds."""
    recipe = {"name": f"{row}-seed{seed}", "output": f"{suite}/runs", "student": {"model": student}}
    folder = suite / "runs/small/todi" / f"{row}-seed{seed}"
    write_run(folder, method="todi", seed=seed, exact_match=None, recipe=recipe)
    store.write_json(folder / "finished.json", DONE)
    out = suite / "scores" / f"{row}-seed{seed}" / "instruct"
    write_measures(out, [Measure("one ROUGE-L", {1: [score - 1.0, score + 1.0], 2: [score + 2.0]})])
    store.write_json(out / "made.json", {"run": DONE})
    return folder


def test_scores_of_a_suite_stand_beside_the_curves_of_its_rows(tmp_path: Path) -> None:
    for seed in (3, 4):
        write_row(tmp_path / "out", "SFT", seed, 10.0 * seed)
        write_row(tmp_path / "out", "On-SFT", seed, 7.0, student=f"out/runs/small/sft/SFT-seed{seed}")
    (section,) = sections(find_runs([tmp_path / "out"]))
    assert {group.label: len(group.runs) for group in section.groups} == {"SFT": 2, "On-SFT": 2}
    out = report.write(ReportOptions(runs=[str(tmp_path / "out")], out=str(tmp_path / "page/report.html")))
    page, beside = store.read_text(out), store.read_text(out.with_suffix(".md"))
    assert "| method | runs | one ROUGE-L | training, s |" in beside
    assert "| SFT | 2 | 36.00 ± 7.07 | 11.5 ± 0.7 |" in beside and "| On-SFT | 2 | 8.00 ± 0.00 | 11.5 ± 0.7 |" in beside
    assert "36.00 ± 7.07" in page and "Learning curves: Suite in " in page and "were not evaluated" not in page
    rows = list(csv.DictReader(io.StringIO(store.read_text(out.with_suffix(".csv")))))
    assert [(row["seed"], float(row["mean"])) for row in rows if row["method"] == "SFT"] == [("3", 31.0), ("4", 41.0)]
    assert {row["metric"] for row in rows} == {"one ROUGE-L"}


def test_a_run_alone_has_its_scores_too_and_its_own_go_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_row(tmp_path, "A", 3, 20.0)
    own = {"rougeL": {"per_seed": {"10": 1.0}}, "exact_match": {"per_seed": {"10": 2.0}}}
    store.write_json(folder / "evaluation/scores.json", {"data": {"one": own}})
    monkeypatch.chdir(folder.parent)
    (section,) = sections([read_run(Path(folder.name))])
    assert section.groups[0].runs[0].measures["one ROUGE-L"].mean == 21.0
    table = report.score_table(section)
    assert table.columns == ("method", "runs", "one ROUGE-L", "one exact match", "training, s")
    assert table.rows[0][2] == "1.0"


def test_scores_of_a_run_that_was_there_before_are_left_out(tmp_path: Path) -> None:
    folder = write_row(tmp_path, "A", 3, 20.0)
    store.write_json(folder / "finished.json", {**DONE, "xxh3": "b"})
    run = read_run(folder)
    assert run.measures == {}
    assert run.remarks == (f"the scores in {tmp_path}/scores/A-seed3/instruct are of another run and were left out",)


def test_runs_that_are_called_as_a_suites_are_are_of_none(tmp_path: Path) -> None:
    for student, method, seed in (("small", "kd", 10), ("big", "todi", 11)):
        folder = tmp_path / "runs" / student / method / f"base-seed{seed}"
        write_run(folder, method=method, seed=seed, recipe={"output": "runs", "student": {"model": student}})
    found = sections(find_runs([tmp_path]))
    assert [section.title for section in found] == ["big in runs", "small in runs"]
    assert [[group.label for group in section.groups] for section in found] == [["todi"], ["kd"]]


def test_a_row_that_was_trained_by_another_method_before_is_two(tmp_path: Path) -> None:
    (tmp_path / "learnt_from").mkdir()
    for student, method, seed in (("small", "kd", 3), ("small", "todi", 3), ("small", "todi", 4), ("big", "todi", 3)):
        folder = tmp_path / "runs" / student / method / f"A-seed{seed}"
        write_run(folder, method=method, seed=seed, recipe={"output": f"{tmp_path}/runs"})
        (tmp_path / f"learnt_from/A-seed{seed}.json").touch()
    (section,) = sections(find_runs([tmp_path]))
    labels = {group.label: len(group.runs) for group in section.groups}
    assert labels == {"A, small, kd": 1, "A, small, todi": 2, "A, big, todi": 1}
    assert section.note == "Trained by a suite."
    (tmp_path / "table.html").touch()
    assert f"are in {tmp_path}/table.html." in sections(find_runs([tmp_path]))[0].note


@pytest.mark.parametrize(
    "entry",
    [
        {"name": 3},
        {"name": "x", "per_item": {"1": ["<b>"]}},
        {"per_item": {"1": [1.0]}},
        {"name": "x", "per_item": {"1": "abc"}},
        {"name": "x", "per_item": {"1": 3}},
        {"name": "x", "per_item": {"1": {"a": 1}}},
        {"name": "x", "per_item": [1.0]},
        3,
    ],
)
def test_what_is_no_measure_is_a_mistake(tmp_path: Path, entry: object) -> None:
    folder = write_row(tmp_path, "A", 3, 20.0)
    store.write_json(tmp_path / "scores/A-seed3/instruct/measures.json", [entry])
    with pytest.raises(Mistake, match="holds something that is no measure"):
        read_run(folder)


@pytest.mark.parametrize("name", ["A-seed4", "A", "-seed3"])
def test_another_name_is_of_no_suite(tmp_path: Path, name: str) -> None:
    run = read_run(write_run(tmp_path / "runs/small/todi" / name, seed=3))
    assert run.suite is None and run.row is None
