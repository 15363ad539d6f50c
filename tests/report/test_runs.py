import json
import math

import pytest

from stillhouse import store
from stillhouse.mistakes import Mistake
from stillhouse.report import find_runs, read_run, sections
from tests.report.runs import write_run


def test_a_run_is_read_back(tmp_path):
    run = read_run(write_run(tmp_path / "run", method="todi", seed=3))
    assert (run.method, run.student, run.seed, run.seconds) == ("todi", "small", 3, 11.0)
    assert [line["ce"] for line in run.training] == [3.0, 2.0, 1.0]
    assert [line["eval_exact_match"] for line in run.evaluation] == [30.0]
    assert run.scores["held-out"]["exact_match"].mean == 40.0
    assert run.remarks == ()


def test_runs_are_found_at_any_depth_once_each(tmp_path):
    write_run(tmp_path / "b" / "todi" / "seed1")
    write_run(tmp_path / "a")
    found = find_runs([tmp_path, tmp_path / "a"])
    assert [run.folder.relative_to(tmp_path).as_posix() for run in found] == ["a", "b/todi/seed1"]


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_folder_without_runs_is_a_mistake(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Mistake, match="no such folder" if name == "absent" else "holds no run"):
        find_runs([tmp_path / name])


def test_a_recipe_with_aliases_is_refused_before_they_unfold(tmp_path):
    folder = write_run(tmp_path / "run")
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(
        f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    store.write_text(folder / "recipe.yaml", bomb)
    with pytest.raises(Mistake, match=r"recipe\.yaml: has YAML aliases"):
        read_run(folder)


def test_a_recipe_that_makes_objects_is_refused(tmp_path):
    folder = write_run(tmp_path / "run")
    store.write_text(folder / "recipe.yaml", "method: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(Mistake, match=r"recipe\.yaml:1: is not plain YAML"):
        read_run(folder)


def test_a_corrupt_score_is_never_shown(tmp_path):
    folder = write_run(tmp_path / "run")
    path = folder / "evaluation" / "scores.json"
    path.write_text(path.read_text().replace("40.0", "90.0"))
    with pytest.raises(store.Corrupt, match=r"scores\.json"):
        read_run(folder)


def test_a_score_that_is_no_number_is_a_mistake(tmp_path):
    folder = write_run(tmp_path / "run")
    store.write_json(folder / "evaluation" / "scores.json", {"data": {"d": {"rougeL": {"per_seed": {"1": "<b>"}}}}})
    with pytest.raises(Mistake, match=r"d\.rougeL: holds something that is not a number"):
        read_run(folder)


def test_broken_lines_and_values_are_left_out_and_said(tmp_path):
    folder = write_run(tmp_path / "run", line={"loss_name": "<script>", "grad_norm": None})
    store.append_line(folder / "metrics.jsonl", "[1, 2]")
    store.append_line(folder / "metrics.jsonl", json.dumps({"step": 40, "loss": math.nan}))
    run = read_run(folder)
    assert run.remarks == (
        "metrics.jsonl: 'loss_name' is not a number and was left out",
        "metrics.jsonl:6 is no JSON object and was left out",
    )
    assert len(run.training) == 4 and math.isnan(run.training[-1]["loss"])


def test_runs_that_differ_by_their_seed_alone_are_one_group(tmp_path):
    for seed, score in ((2, 60.0), (1, 50.0), (3, 70.0)):
        write_run(tmp_path / f"todi{seed}", method="todi", seed=seed, exact_match=score)
    write_run(tmp_path / "sft", seed=1, exact_match=None)
    (section,) = sections(find_runs([tmp_path]))
    assert [(group.label, len(group.runs)) for group in section.groups] == [("sft", 1), ("todi", 3)]
    todi = section.groups[1]
    assert [run.seed for run in todi.runs] == [1, 2, 3]
    assert str(todi.score("held-out", "exact_match")) == "60.0 ± 10.0"
    assert section.groups[0].score("held-out", "exact_match") is None


def test_what_tells_groups_of_one_method_apart_is_in_their_labels(tmp_path):
    for weight in (0.5, 1.0):
        method = {"name": "todi", "kd_weight": weight, "temperature": 2.0}
        write_run(tmp_path / f"w{weight}", method="todi", recipe={"method": method})
    write_run(tmp_path / "sft")
    (section,) = sections(find_runs([tmp_path]))
    labels = [group.label for group in section.groups]
    assert labels == ["sft", "todi, method.kd_weight=0.5", "todi, method.kd_weight=1.0"]


def test_students_and_output_folders_are_sections(tmp_path):
    write_run(tmp_path / "1")
    write_run(tmp_path / "2", recipe={"output": "p"})
    write_run(tmp_path / "3", recipe={"student": {"model": "large"}})
    assert [section.title for section in sections(find_runs([tmp_path]))] == ["small in o", "small in p", "large in o"]
