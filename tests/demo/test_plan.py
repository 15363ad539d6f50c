from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from stillhouse import store
from stillhouse.demo.plan import Layout, Scale, tasks, write_data, write_recipes
from stillhouse.demo.setups import TEACHERS, UNIGRAM_TEACHER, cells, setups
from stillhouse.recipe import check, parse

SETUPS = setups(full=True)
SMALL = Scale(
    teacher_rows=500, labelled=200, unlabelled=400, noisy=40, held_out=30, development=10, vocabulary=400, unigram=300
)


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    made = Layout(tmp_path_factory.mktemp("demo"))
    write_data(made, SMALL)
    write_recipes(made, SMALL, SETUPS, seeds=2)
    return made


def _questions(layout, name):
    return [row["instruction"] for row in store.read_jsonl(layout.data(name))]


def test_the_data_has_the_sizes_asked_for(layout):
    sizes = {"teacher": 500, "labelled": 200, "unlabelled": 400, "held-out": 30, "development": 10}
    assert {name: len(_questions(layout, name)) for name in sizes} == sizes


@pytest.mark.parametrize(("name", "distinct", "times"), [("noisy", 40, 10), ("labelled-repeated", 200, 3)])
def test_small_sets_are_repeated_whole(layout, name, distinct, times):
    questions = _questions(layout, name)
    assert len(questions) == distinct * times
    assert questions[:distinct] * times == questions
    assert len(set(questions)) == distinct


def test_no_held_out_prompt_is_trained_on_and_no_prompt_comes_twice_where_it_must_not(layout):
    held_out = set(_questions(layout, "held-out") + _questions(layout, "development"))
    assert len(held_out) == 40
    for name in ("teacher", "labelled", "unlabelled", "noisy"):
        assert not held_out.intersection(_questions(layout, name))
    assert len(set(_questions(layout, "labelled") + _questions(layout, "unlabelled"))) == 600
    assert not any("output" in row for row in store.read_jsonl(layout.data("unlabelled")))


def test_the_same_data_comes_out_each_time(layout, tmp_path):
    again = Layout(tmp_path)
    write_data(again, SMALL)
    for name in ("teacher", "noisy", "held-out"):
        assert layout.data(name).read_bytes() == again.data(name).read_bytes()
    for name in ("student", *TEACHERS):
        made, repeated = (one.model(name) / "tokenizer.json" for one in (layout, again))
        assert made.read_bytes() == repeated.read_bytes()


def test_every_recipe_is_one_that_the_command_takes(layout):
    for setup, student, seed in cells(SETUPS, 2):
        verb = "distill" if student.needs_teacher else "sft"
        recipe = parse(verb, [str(layout.recipe(setup.name, student.name, f"seed{seed}"))])
        assert recipe.folder == layout.run(setup, student, seed)
        assert recipe.method["name"] == student.method["name"] and recipe.seed == seed
        assert recipe.data.train == str(layout.data(student.train))
        assert recipe.teacher is None or recipe.teacher.model == str(layout.teacher(setup.teacher))
    for name in TEACHERS:
        teacher = parse("sft", [str(layout.recipe(name))])
        check(teacher)
        assert teacher.folder == layout.teacher_run(name)


def test_methods_of_a_setup_differ_in_nothing_but_method_text_and_teacher(layout):
    for setup in SETUPS:
        recipes = [
            yaml.safe_load(layout.recipe(setup.name, student.name, "seed1").read_text())
            for student in setup.students
            if not student.runs_of
        ]
        for recipe in recipes:
            del recipe["method"], recipe["data"]["train"], recipe["name"]
            recipe.pop("teacher", None)
            recipe.pop("alignment", None)  # a part of the method, for two tokenizers
            recipe.pop("rollout", None)  # who writes the text
            if recipe["student"] != recipes[0]["student"]:  # what it begins with has a test of its own
                assert recipe["training"].pop("learning_rate") < recipes[0]["training"]["learning_rate"]
                recipe["training"]["learning_rate"] = recipes[0]["training"]["learning_rate"]
                recipe["student"] = recipes[0]["student"]
        assert all(recipe == recipes[0] for recipe in recipes)


def test_a_task_needs_what_its_command_lines_read(layout):
    planned = {task.name: task for task in tasks(layout, SETUPS, 2)}
    answers = {
        "labelled-answered": "teacher",
        "noisy-answered": "teacher",
        "labelled-unigram-answered": UNIGRAM_TEACHER,
    }
    assert len(planned) == len(TEACHERS) + len(answers) + len(list(cells(SETUPS, 2)))
    reads = {name: str(layout.teacher(name)) for name in TEACHERS}
    reads |= {name: str(layout.data(name)) for name in answers}
    students = list(planned.values())[len(reads) :]
    reads |= {f"{setup.name}-{student.name}-seed{seed}": f"{layout.run(setup, student, seed)}/last"
              for setup, student, seed in cells(SETUPS, 2)}  # fmt: skip
    for task in students:
        recipe = store.read_text(Path(task.commands[0][1]))
        assert set(task.needs) == {name for name, sign in reads.items() if sign in recipe}
    for name in TEACHERS:
        assert planned[name].needs == ()
    for name, teacher in answers.items():
        assert planned[name].needs == (teacher,) and f"--model={layout.teacher(teacher)}" in planned[name].commands[0]


def test_runs_that_two_setups_share_are_trained_once(layout):
    first, other = SETUPS[0], SETUPS[2]
    assert layout.run(other, other.student("sft"), 1) == layout.run(first, first.student("sft"), 1)
    assert first.student("sft").train == other.student("sft").train
    folders = [layout.run(setup, student, seed) for setup, student, seed in cells(SETUPS, 2)]
    assert len(set(folders)) == len(folders)


def test_who_goes_on_from_another_student_begins_with_its_last_weights_of_the_same_seed(layout):
    for setup, student, seed in cells(SETUPS, 2):
        model = parse("distill" if student.needs_teacher else "sft", [
            str(layout.recipe(setup.name, student.name, f"seed{seed}"))]).student  # fmt: skip
        if student.begins_at:
            begun = layout.run(setup, setup.student(student.begins_at), seed)
            assert (model.model, model.from_scratch) == (str(begun / "last"), False)
        else:
            assert (model.model, model.from_scratch) == (str(layout.model("student")), True)
    assert {student.name for setup in SETUPS for student in setup.students if student.begins_at}


def test_the_full_demo_has_the_shorter_ones_students_and_more():
    short = {(setup.name, student.name) for setup in setups() for student in setup.students}
    whole = {(setup.name, student.name) for setup in SETUPS for student in setup.students}
    assert short < whole and not any(student.full for setup in setups() for student in setup.students)
    assert all(longer.note.startswith(shorter.note) for shorter, longer in zip(setups(), SETUPS, strict=True))


def test_a_setup_learns_the_answers_of_its_own_teacher(layout):
    planned = {task.name: task for task in tasks(layout, SETUPS, 1)}
    for setup in SETUPS:
        for data in {student.train for student in setup.students} & planned.keys():
            assert planned[data].needs == (setup.teacher,)


@pytest.mark.parametrize("whose", ["", "unigram-"])
def test_joined_answers_are_the_labels_and_then_what_the_teacher_wrote(layout, whose):
    rows = [{"instruction": "q", "input": "", "output": f"{whose}a"}]
    store.write_jsonl(layout.data(f"unlabelled-{whose}answered"), rows)
    joining = {task.name: task.after for task in tasks(layout, SETUPS, 1)}[f"labelled-{whose}answered"]
    assert joining is not None
    joining()
    joined = store.read_jsonl(layout.data(f"labelled-{whose}answered"))
    assert joined == store.read_jsonl(layout.data("labelled")) + rows


def test_the_share_of_wrong_labels_is_the_scales(tmp_path):
    clean, noisy = Layout(tmp_path / "clean"), Layout(tmp_path / "noisy")
    write_data(clean, replace(SMALL, wrong_share=0.0))
    write_data(noisy, replace(SMALL, wrong_share=1.0))
    right = {row["instruction"]: row["output"] for row in store.read_jsonl(clean.data("teacher"))}
    shared = [row for row in store.read_jsonl(noisy.data("noisy")) if row["instruction"] in right]
    assert shared and all(row["output"] != right[row["instruction"]] for row in shared)
