import pytest

from stillhouse import store
from stillhouse.report import find_runs, sections
from stillhouse.report.examples import example_table
from tests.report.runs import write_run


def _answer(folder, data, *lines):
    rows = [{"prompt": prompt, "prediction": prediction, "references": ["right"]} for prompt, prediction in lines]
    store.write_jsonl(folder / "evaluation" / data / "seed10" / "predictions.jsonl", rows)


@pytest.fixture
def root(tmp_path):
    for method in ("sft", "todi"):
        for seed in (1, 2):
            folder = write_run(tmp_path / f"{method}{seed}", method=method, seed=seed)
            _answer(
                folder, "held-out", ("one", f"{method} {seed}"), (f"only {method}", "x"), ("two\n lines", "y" * 999)
            )
    return tmp_path


def test_the_first_answers_of_each_groups_first_run_stand_beside_each_other(root):
    (section,) = sections(find_runs([root]))
    table = example_table(section, "held-out")
    assert table is not None and table.columns == ("prompt", "reference", "sft", "todi")
    assert table.rows[0] == ["one", "right", "sft 1", "todi 1"]
    assert [row[0] for row in table.rows] == ["one", "two lines"]  # prompts that all of them answered
    assert len(table.rows[1][2]) == 300


def test_no_more_than_asked_for_and_none_where_there_are_none(root):
    (section,) = sections(find_runs([root]))
    table = example_table(section, "held-out", count=1)
    assert table is not None and len(table.rows) == 1
    assert example_table(section, "elsewhere") is None


def test_a_strangers_data_name_leads_to_no_other_folder(root):
    (section,) = sections(find_runs([root / "sft1"]))
    assert example_table(section, "../../todi1/evaluation/held-out") is None


def test_changed_answers_are_refused(root):
    path = root / "sft1" / "evaluation" / "held-out" / "seed10" / "predictions.jsonl"
    path.write_text(path.read_text().replace("sft 1", "sft 9"))
    (section,) = sections(find_runs([root]))
    with pytest.raises(store.Corrupt, match=r"predictions\.jsonl"):
        example_table(section, "held-out")
