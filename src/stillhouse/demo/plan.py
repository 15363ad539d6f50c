"""What the demo trains on what: its data files, its recipes and its tasks, written out before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import yaml

from stillhouse import store
from stillhouse.demo import skills
from stillhouse.demo.setups import TEACHER, TEACHERS, UNIGRAM_TEACHER, Setup, Student, cells
from stillhouse.demo.vocabulary import LONGEST, Size, train_tokenizer, train_unigram, write_model_folder
from stillhouse.demo.workers import Task

Row = dict[str, str]

TEACHER_SIZE = Size(hidden=96, layers=2, intermediate=192)
STUDENT_SIZE = Size(hidden=64, layers=1, intermediate=128)
HELD_OUT = "held-out"


@dataclass(frozen=True)
class Scale:
    """How much of everything; tests take less."""

    teacher_rows: int = 30_000
    teacher_steps: int = 400
    labelled: int = 300
    unlabelled: int = 3_000
    noisy: int = 1_000
    wrong_share: float = 0.3
    held_out: int = 400
    development: int = 100
    student_steps: int = 400
    vocabulary: int = 700
    unigram: int = 460


@dataclass(frozen=True)
class Layout:
    """Where everything of a demo lies."""

    root: Path

    def data(self, name: str) -> Path:
        """A file of rows."""
        return self.root / "data" / f"{name}.jsonl"

    def model(self, side: str) -> Path:
        """The folder that a teacher or the student is born from."""
        return self.root / "models" / side

    def recipe(self, *names: str) -> Path:
        """A recipe."""
        return self.root / "recipes" / f"{'-'.join(names)}.yaml"

    def teacher_run(self, teacher: str) -> Path:
        """The run of a teacher's fine-tuning."""
        return self.root / teacher / "sft" / "teacher"

    def teacher(self, teacher: str) -> Path:
        """A trained teacher."""
        return self.teacher_run(teacher) / "last"

    def run(self, setup: Setup, student: Student, seed: int) -> Path:
        """A student's run."""
        return self.root / (student.runs_of or setup.name) / "student" / student.method["name"] / student.run_name(seed)


def write_data(layout: Layout, scale: Scale) -> None:
    """Generate every file of rows, and the tokenizer and model folders; the same on every machine."""
    stream = skills.rows(Random("teacher"), held_out=False)
    teacher = [next(stream) for _ in range(scale.teacher_rows)]
    labelled = skills.distinct(skills.rows(Random("labelled"), held_out=False), scale.labelled)
    known = {row["instruction"] for row in labelled}
    unlabelled = skills.distinct(skills.rows(Random("unlabelled"), held_out=False), scale.unlabelled, known)
    noisy = skills.distinct(skills.rows(Random("noisy"), held_out=False, wrong_share=scale.wrong_share), scale.noisy)
    held_out = skills.distinct(skills.rows(Random("held out"), held_out=True), scale.held_out + scale.development)
    store.write_jsonl(layout.data("teacher"), teacher)
    store.write_jsonl(layout.data("labelled"), labelled)
    # As often as makes epochs of like length, so that all curves have their points at like steps, and few of them.
    store.write_jsonl(layout.data("labelled-repeated"), labelled * (1 + scale.unlabelled // scale.labelled))
    store.write_jsonl(
        layout.data("unlabelled"), [{"instruction": row["instruction"], "input": ""} for row in unlabelled]
    )
    store.write_jsonl(layout.data("noisy"), noisy * max(1, scale.unlabelled // scale.noisy))
    store.write_jsonl(layout.data(HELD_OUT), held_out[: scale.held_out])
    store.write_jsonl(layout.data("development"), held_out[scale.held_out :])
    # A response is tokenised apart from its prompt, so no piece may reach from one into the other.
    prompts = [f"### Instruction:\n{row['instruction']}\n\n### Response:\n" for row in teacher[:5_000]]
    responses = [row["output"] for row in teacher[:5_000]]
    tokenizer = train_tokenizer(map("".join, zip(prompts, responses, strict=True)), scale.vocabulary)
    unigram = train_unigram([*prompts, *responses], scale.unigram)
    write_model_folder(layout.model(TEACHER), tokenizer, TEACHER_SIZE)
    write_model_folder(layout.model(UNIGRAM_TEACHER), unigram, TEACHER_SIZE)
    write_model_folder(layout.model("student"), tokenizer, STUDENT_SIZE)


def write_recipes(layout: Layout, scale: Scale, chosen: Sequence[Setup], seeds: int) -> None:
    """Every recipe of the demo: a user could run each of them alone."""
    for name in TEACHERS:
        recipe = _recipe(layout, name, "teacher", {"name": "sft"}, 1, scale.teacher_steps, 64, 4e-3)
        _write(layout.recipe(name), {**recipe, "name": "teacher", "output": str(layout.root)})
    for setup, student, seed in cells(chosen, seeds):
        recipe = _recipe(layout, "student", student.train, student.method, seed, scale.student_steps, 32, 8e-3)
        teacher = {"teacher": {"model": str(layout.teacher(setup.teacher))}} if student.needs_teacher else {}
        begun = _begun(setup, student)
        if begun is not None:
            recipe["student"] = {"model": str(layout.run(setup, begun, seed) / "last")}
        said = {key: {**recipe.get(key, {}), **section} for key, section in student.sections.items()}
        recipe = {**recipe, **teacher, **said, "name": student.run_name(seed)}
        recipe["output"] = str(layout.root / setup.name)
        _write(layout.recipe(setup.name, student.name, f"seed{seed}"), recipe)


def tasks(layout: Layout, chosen: Sequence[Setup], seeds: int) -> list[Task]:
    """The demo's command lines; students that need no teacher learn beside it."""
    planned = [
        Task(name, (("sft", str(layout.recipe(name))), _evaluate(layout, layout.teacher_run(name))))
        for name in TEACHERS
    ]
    for name, (teacher, prompts, out, after) in _answers(layout).items():
        planned.append(Task(name, (_answer(layout, teacher, prompts, out),), (teacher,), after))
    answers = {task.name for task in planned[len(TEACHERS) :]}
    for setup, student, seed in cells(chosen, seeds):
        verb = "distill" if student.needs_teacher else "sft"
        recipe = layout.recipe(setup.name, student.name, f"seed{seed}")
        needs = answers & {student.train} | ({setup.teacher} if student.needs_teacher else set())
        begun = _begun(setup, student)
        needs |= set() if begun is None else {_task_name(setup, begun, seed)}
        commands = ((verb, str(recipe)), _evaluate(layout, layout.run(setup, student, seed)))
        planned.append(Task(_task_name(setup, student, seed), commands, tuple(sorted(needs))))
    return planned


def _task_name(setup: Setup, student: Student, seed: int) -> str:
    return f"{student.runs_of or setup.name}-{student.name}-seed{seed}"


def _begun(setup: Setup, student: Student) -> Student | None:
    """The student whose weights `student` begins with."""
    return setup.student(student.begins_at) if student.begins_at else None


def _recipe(
    layout: Layout, side: str, train: str, method: dict[str, Any], seed: int, steps: int, batch: int, rate: float
) -> dict[str, Any]:
    return {
        "student": {"model": str(layout.model(side)), "from_scratch": True},
        "data": {
            "train": str(layout.data(train)),
            "eval": str(layout.data("development")),
            "template": "short",
            "max_length": LONGEST,
            "max_prompt_length": LONGEST // 2,
        },
        "method": method,
        "training": {
            "max_steps": steps,
            "per_device_train_batch_size": batch,
            "per_device_eval_batch_size": 100,
            "learning_rate": rate,
            "adam_beta2": 0.98,
            "weight_decay": 0.01,
            "warmup_steps": steps // 10,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.05},
            "max_grad_norm": 1.0,
        },
        "evaluation": {"generate": False},
        "seed": seed,
        "overwrite": True,
    }


def _write(path: Path, recipe: dict[str, Any]) -> None:
    store.write_text(path, yaml.safe_dump(recipe, sort_keys=False))


def _answers(layout: Layout) -> dict[str, tuple[str, str, str, Callable[[], None] | None]]:
    """Data file of answers -> who writes them, to which prompts, into which file, and what becomes of it then."""
    return {
        "labelled-answered": (TEACHER, "unlabelled", "unlabelled-answered", partial(_join_answers, layout, "")),
        "noisy-answered": (TEACHER, "noisy", "noisy-answered", None),
        "labelled-unigram-answered": (
            UNIGRAM_TEACHER, "unlabelled", "unlabelled-unigram-answered", partial(_join_answers, layout, "unigram-"),
        ),
    }  # fmt: skip


def _answer(layout: Layout, teacher: str, prompts: str, out: str) -> tuple[str, ...]:
    files = f"--data={layout.data(prompts)}", f"--out={layout.data(out)}"
    return ("generate", f"--model={layout.teacher(teacher)}", *files, *_GREEDY)


def _evaluate(layout: Layout, run: Path) -> tuple[str, ...]:
    data = f"--data=[{layout.data(HELD_OUT)}]"
    return ("evaluate", f"--model={run / 'last'}", data, f"--out={run / 'evaluation'}", "--seeds=1", *_GREEDY)


_GREEDY = (
    "--template=short", "--temperature=0", "--max_new_tokens=32", "--batch_size=200", f"--max_length={LONGEST}",
    f"--max_prompt_length={LONGEST // 2}", "--overwrite=true",
)  # fmt: skip


def _join_answers(layout: Layout, whose: str) -> None:
    """The labelled rows and those that a teacher answered, in one file."""
    files = (layout.data("labelled"), layout.data(f"unlabelled-{whose}answered"))
    store.write_jsonl(
        layout.data(f"labelled-{whose}answered"), [row for file in files for row in store.read_jsonl(file)]
    )
