import pytest

from stillhouse import demo, store
from stillhouse.demo.pipeline import run
from stillhouse.demo.plan import Scale
from stillhouse.mistakes import Mistake
from stillhouse.recipe import DemoOptions

TINY = Scale(
    teacher_rows=600, teacher_steps=30, labelled=40, unlabelled=80, noisy=60, held_out=20, development=10,
    student_steps=6, vocabulary=500, unigram=300,
)  # fmt: skip


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(Mistake, match="holds something that is no demo; give another --output"):
        demo.run(DemoOptions(output=str(tmp_path)))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.slow
def test_the_whole_story_runs_and_runs_again(tmp_path, capfd):
    for full, students in ((True, 14), (False, 11)):
        options = DemoOptions(output=str(tmp_path / "demo"), seeds=1, workers=2, full=full)
        report = run(options, TINY)
        page, shown = store.read_text(report), capfd.readouterr()
        assert report == tmp_path / "demo" / "report.html" and "<svg" in page
        assert all(name in shown.out for name in ("Forward KL", "CDM", "Overlap KL", "exact match"))
        assert len(list((tmp_path / "demo").glob("*/student/*/seed1/last/model.safetensors"))) == students
        assert len(list((tmp_path / "demo").glob("*/student/*/seed1/evaluation/scores.json"))) == students
