"""A suite of models small enough that all of it is run: three rows, two seeds, two data sets."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest

import stillhouse
from stillhouse import report
from stillhouse.mistakes import Mistake
from stillhouse.recipe import ReportOptions
from stillhouse.suite import Difference, carry_out, suite
from stillhouse.suite.plan import plan
from stillhouse.suite.significance import Resampled, difference
from tests.suite.small import INSTRUCT, ROWS, do, job, options, write_folder

SETS = ("one", "two")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite whose commands were all carried out, and its tables written."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_folder(folder)
        lines = plan(options())
        for kind in ("trainings", "scorings"):
            for line in lines:
                for one in getattr(line, kind).values():
                    for each in one if isinstance(one, list) else [one]:
                        do(each)
        suite(options())
    return folder


@pytest.fixture
def folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def scored(row: str, name: str) -> dict[str, dict[int, list[float]]]:
    """Of each run of a row: ROUGE-L in per cent of each item, by sampling seed, from the predictions on disk."""
    return {
        run.name: {
            seed: [100 * json.loads(line)["rougeL"] for line in
                   (run / f"instruct/{name}/seed{seed}/predictions.jsonl").read_text().splitlines()]
            for seed in (1, 2)
        }
        for run in sorted(Path("out/scores").glob(f"{row}*"))
    }  # fmt: skip


def values(row: str, names: tuple[str, ...]) -> list[float]:
    """What mean and deviation are taken over."""
    of_sets = []
    for name in names:
        runs = [[fmean(items) for items in run.values()] for run in scored(row, name).values()]
        of_sets.append(runs[0] if len(runs) == 1 else [fmean(run) for run in runs])
    return [fmean(together) for together in zip(*of_sets, strict=True)]


def items(row: str, name: str) -> np.ndarray:
    return np.mean([every for run in scored(row, name).values() for every in run.values()], axis=0)


def difference_of(ours: str, theirs: str, names: tuple[str, ...]) -> Difference:
    """Two rows, compared by the draws that each measure has of its own."""
    number = {"one": 0, "two": 2}  # after each ROUGE-L stands exact match
    rows = [[Resampled.of(items(row, name), 200, number[name]) for name in names] for row in (ours, theirs)]
    return difference(list(zip(*rows, strict=True)))


def read(name: str) -> list[list[str]]:
    """A CSV file of the suite."""
    return list(csv.reader(Path("out", name).read_text().splitlines()))


def test_every_number_of_the_table_is_that_of_the_predictions(folder: Path) -> None:
    titles, *rows = read("table.csv")
    assert titles[:4] == ["", "one ROUGE-L", "two ROUGE-L", "mean ROUGE-L"]
    assert [row[0] for row in rows] == ["Base", "SFT", "FKL", "ToDi"]
    for name, *cells in rows:
        for cell, sets in zip(cells, (SETS[:1], SETS[1:], SETS), strict=False):
            found = values(name, sets)
            star = "*" if name not in ("Base", "SFT") and difference_of(name, "SFT", sets).p < 0.05 else ""
            assert cell == f"{fmean(found):.2f} ± {stdev(found):.2f}{star}"
    cells = [cell for row in rows for cell in row[1:4]]
    assert len(set(cells)) > 6 and any(cell.endswith("*") for cell in cells), "too alike to test anything"


def test_the_best_are_bold_and_no_reference_is(folder: Path) -> None:
    lines = [line for line in Path("out/table.md").read_text().splitlines() if line.startswith("| ")][2:]
    for place, sets in enumerate((SETS[:1], SETS[1:], SETS), start=2):
        means = {name: fmean(values(name, sets)) for name in ("SFT", "FKL", "ToDi")}
        bold = {line.split("|")[1].strip() for line in lines if line.split("|")[place].strip().startswith("**")}
        assert bold == {name for name, mean in means.items() if mean == max(means.values())}


def test_scores_and_significance_have_every_value(folder: Path) -> None:
    lines = list(csv.DictReader(Path("out/scores.csv").read_text().splitlines()))
    assert len(lines) == (1 + 3 * 2) * 2 * 2 * 2  # runs, data sets, ROUGE-L and exact match, sampling seeds
    one = next(line for line in lines if (line["row"], line["training_seed"], line["measure"], line["sampling_seed"])
               == ("FKL", "4", "two ROUGE-L", "2"))  # fmt: skip
    assert float(one["value"]) == pytest.approx(fmean(scored("FKL", "two")["FKL-seed4"][2]))
    pairs = list(csv.DictReader(Path("out/significance.csv").read_text().splitlines()))
    assert len(pairs) == 6 * 3
    for pair in pairs:
        sets = SETS if pair["measure"].startswith("mean") else (pair["measure"].split()[0],)
        found = difference_of(pair["row"], pair["other"], sets)
        written = [float(pair[key]) for key in ("difference", "low95", "high95", "p")]
        assert written == pytest.approx([found.mean, found.low, found.high, found.p])


def test_costs_are_those_of_the_runs(folder: Path) -> None:
    titles, *rows = read("table.csv")
    place = titles.index("peak memory, GiB")
    peaks = [max(json.loads(line).get("peak_memory_gib", 0) for line in path.read_text().splitlines())
             for path in Path("out/runs/small/todi").glob("ToDi-*/metrics.jsonl")]  # fmt: skip
    assert rows[3][place] == f"{fmean(peaks):.2f}" and rows[0][place] == "-"


def test_every_rows_recipe_is_that_of_its_run(folder: Path) -> None:
    recipes = {path.stem: path.read_text() for path in Path("out/recipes").glob("*.yaml")}
    runs = {path.parent.name: path.read_text() for path in Path("out/runs").rglob("recipe.yaml")}
    assert recipes == runs and len(runs) == 6
    page = Path("out/table.html").read_text()
    assert page.count("<details>") == 4 and "--student.model=out/runs/small/sft/SFT-seed3" in page
    assert r"\begin{tabular}{lrrrrrr}" in Path("out/table.tex").read_text()


def test_a_second_call_runs_nothing_and_gives_the_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path("out").rglob("*") if path.is_file()}
    monkeypatch.setattr(carry_out, "_start", lambda job: pytest.fail(f"ran {job}"))
    suite(options())
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path("out").rglob("*") if path.is_file()}
    assert before == after


def test_all_is_done_and_a_plan_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert suite(options("--plan")) is None
    titles = capsys.readouterr().out.splitlines()[::2]
    assert len(titles) == 13 and all(title.endswith(" (done)") for title in titles)


def test_a_run_of_other_settings_takes_overwrite(folder: Path) -> None:
    rows = [*ROWS[:3], {"name": "ToDi", "training": {"learning_rate": 0.3}}]
    with pytest.raises(Mistake) as caught:
        plan(options(rows=rows))
    folder_of_run = "out/runs/small/todi/ToDi-seed3"
    assert str(caught.value) == (
        f"rows[4], ToDi: training.learning_rate: is 0.3 here, but {folder_of_run} was trained with 0.2; "
        "give another output, or --overwrite=true to train it anew"
    )
    lines = plan(options("--overwrite", rows=rows))
    again = [one.title for line in lines for one in line.jobs if not one.done]
    assert again == ["ToDi, seed 3", "ToDi, seed 4", "ToDi, seed 3: instruct", "ToDi, seed 4: instruct"]
    assert job(lines, "ToDi, seed 3").command[-1] == "--overwrite=true"
    assert "--overwrite=true" not in job(lines, "FKL, seed 3").command


def test_what_learnt_from_a_row_that_is_trained_anew_is_trained_anew(folder: Path) -> None:
    rows = [ROWS[0], {**ROWS[1], "training.learning_rate": 0.3}, *ROWS[2:]]
    lines = plan(options("--overwrite", rows=rows))
    again = [title for line in lines for one in line.jobs if not one.done and ":" not in (title := one.title)]
    assert again == ["SFT, seed 3", "SFT, seed 4", "FKL, seed 3", "FKL, seed 4"]
    path = Path("out/runs/small/sft/SFT-seed3/finished.json")
    kept = {file: file.read_bytes() for file in (path, path.with_name("finished.json.xxh3"))}
    stillhouse.store.write_json(path, {"another": "run"})
    try:
        with pytest.raises(Mistake, match="learnt from another run of SFT, seed 3 than there is now"):
            plan(options())
    finally:
        for file, content in kept.items():
            file.write_bytes(content)


def test_scores_of_other_options_take_overwrite(folder: Path) -> None:
    evaluate = {"instruct": {**INSTRUCT, "limit": 3}}
    with pytest.raises(Mistake) as caught:
        plan(options(evaluate=evaluate))
    assert str(caught.value) == (
        "rows[1], Base: evaluate.instruct.limit: is 3, but scores in out/scores/Base/instruct were made with not set; "
        "give another output, or --overwrite=true"
    )
    undone = [one for line in plan(options("--overwrite", evaluate=evaluate)) for one in line.jobs if not one.done]
    assert len(undone) == 7 and all(one.command[-1] == "--overwrite=true" for one in undone)


def test_more_data_and_other_rows_are_no_change_of_settings(folder: Path) -> None:
    more = {"instruct": {**INSTRUCT, "data": ["one.jsonl", "two.jsonl", "dev.jsonl"]}}
    undone = [one.title for line in plan(options(evaluate=more)) for one in line.jobs if not one.done]
    assert len(undone) == 7 and all(title.endswith(": instruct") for title in undone)
    kept = Path("one.jsonl").read_text()
    Path("one.jsonl").write_text(kept.replace("plus", "and"))
    try:
        undone = [one.title for line in plan(options()) for one in line.jobs if not one.done]
    finally:
        Path("one.jsonl").write_text(kept)
    assert len(undone) == 7


def test_scores_that_are_gone_are_made_again(folder: Path) -> None:
    path = Path("out/scores/SFT-seed3/instruct/measures.json")
    content = path.read_bytes()
    path.unlink()
    try:
        assert [one.title for line in plan(options()) for one in line.jobs if not one.done] == ["SFT, seed 3: instruct"]
    finally:
        path.write_bytes(content)


def test_an_end_that_no_measure_has_names_those_there_are(folder: Path) -> None:
    with pytest.raises(Mistake, match="no measure ends with 'ROUGE'; there are one ROUGE-L, one exact match, two"):
        suite(options(columns=["ROUGE"]))


def test_a_report_has_the_suites_scores(folder: Path, tmp_path: Path) -> None:
    page = report.write(ReportOptions(runs=["out"], out=str(tmp_path / "report.html")))
    lines = page.with_suffix(".md").read_text().splitlines()
    titles, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert titles[2:-1] == ["one ROUGE-L", "one exact match", "two ROUGE-L", "two exact match"]
    assert {row[0] for row in rows[1:]} == {"SFT", "FKL", "ToDi"}
    for name, runs, one, _, two, *_ in rows[1:]:
        found = [values(name, (part,)) for part in SETS]
        assert runs == "2" and [one, two] == [f"{fmean(each):.2f} ± {stdev(each):.2f}" for each in found]


@pytest.mark.slow
def test_a_suite_that_was_killed_ends_with_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By real processes: killed after its first training, taken up with two workers; but for times, the same."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path)
    changes = {"rows": [ROWS[1], ROWS[3]], "seeds": [3], "evaluate": {"instruct": {**INSTRUCT, "data": ["one.jsonl"]}}}
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{Path(stillhouse.__file__).parents[1]}:{root}"}
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    options(**changes)
    command = [sys.executable, "-u", "-m", "stillhouse", "suite", "suite.yaml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None and killed.stdout.readline().startswith("[1/4] SFT, seed 3: ")
        killed.kill()
    finished = Path("out/runs/small/sft/SFT-seed3/finished.json").stat().st_mtime_ns
    done = subprocess.run([*command, "--workers=2"], capture_output=True, text=True, check=True)
    assert "[3/3]" in done.stdout
    assert Path("out/runs/small/sft/SFT-seed3/finished.json").stat().st_mtime_ns == finished
    lines = plan(options(**changes, output="straight"))
    for line in lines:
        do(line.trainings[3])
        do(line.scorings[3][0])
    suite(options(**changes, output="straight"))
    assert without_costs("out/table.md") == without_costs("straight/table.md")
    for name in ("scores.csv", "significance.csv"):
        assert Path("out", name).read_bytes() == Path("straight", name).read_bytes()


def without_costs(table: str) -> list[str]:
    return re.findall(r"^\|[^|]*\|[^|]*\|", Path(table).read_text(), re.MULTILINE)
