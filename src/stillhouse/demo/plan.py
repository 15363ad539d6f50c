"""What the demo trains on what: its data files, its recipes and its tasks, written out before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from stillhouse import store
from stillhouse.demo import skills
from stillhouse.demo.vocabulary import LONGEST, Size, train_tokenizer, write_model_folder
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


@dataclass(frozen=True)
class Setup:
    """One question to the methods: which rows each of them trains on, and with what settings."""

    name: str
    title: str
    note: str
    train: dict[str, str]  # method -> data file
    settings: dict[str, dict[str, float]]  # method -> settings


METHODS = {"sft": "SFT", "seqkd": "SeqKD", "forward_kl": "Forward KL", "todi": "ToDi"}

SETUPS = (
    Setup(
        "teacher-answers",
        "Few labels, and prompts that the teacher answers",
        "SFT has {labelled} correct labels. The others train on these and on {unlabelled:,} prompts without labels "
        "that the teacher answered (greedy); SeqKD sees the teacher's text alone, forward KL and ToDi its logits too.",
        {"sft": "labelled-repeated", **dict.fromkeys(("seqkd", "forward_kl", "todi"), "labelled-answered")},
        {"forward_kl": {"temperature": 1.0, "kd_weight": 0.5}, "todi": {"temperature": 1.0, "kd_weight": 0.5}},
    ),
    Setup(
        "noisy-labels",
        "Labels of which many are wrong",
        "{noisy:,} labels, {wrong_share:.0%} of them wrong. SFT, forward KL and ToDi train on the same prompts and the "
        "same text; SeqKD on the teacher's text for the same prompts.",
        {"sft": "noisy", "seqkd": "noisy-answered", "forward_kl": "noisy", "todi": "noisy"},
        {"forward_kl": {"temperature": 1.0, "kd_weight": 1.0}, "todi": {"temperature": 1.0, "kd_weight": 0.5}},
    ),
)


@dataclass(frozen=True)
class Layout:
    """Where everything of a demo lies."""

    root: Path

    def data(self, name: str) -> Path:
        """A file of rows."""
        return self.root / "data" / f"{name}.jsonl"

    def model(self, side: str) -> Path:
        """The folder that the teacher or the student is born from."""
        return self.root / "models" / side

    def recipe(self, *names: str) -> Path:
        """A recipe."""
        return self.root / "recipes" / f"{'-'.join(names)}.yaml"

    @property
    def teacher_run(self) -> Path:
        """The run of the teacher's fine-tuning."""
        return self.root / "teacher" / "sft" / "teacher"

    @property
    def teacher(self) -> Path:
        """The trained teacher."""
        return self.teacher_run / "last"

    def run(self, setup: Setup, method: str, seed: int) -> Path:
        """A student's run."""
        return self.root / setup.name / "student" / method / f"seed{seed}"


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
    texts = (f"### Instruction:\n{row['instruction']}\n\n### Response:\n{row['output']}" for row in teacher[:5_000])
    tokenizer = train_tokenizer(texts, scale.vocabulary)
    write_model_folder(layout.model("teacher"), tokenizer, TEACHER_SIZE)
    write_model_folder(layout.model("student"), tokenizer, STUDENT_SIZE)


def write_recipes(layout: Layout, scale: Scale, seeds: int) -> None:
    """Every recipe of the demo: a user could run each of them alone."""
    teacher = _recipe(layout, "teacher", "teacher", {"name": "sft"}, 1, scale.teacher_steps, 64, 4e-3)
    _write(layout.recipe("teacher"), {**teacher, "name": "teacher", "output": str(layout.root)})
    for setup, method, seed in cells(seeds):
        settings = {"name": method, **setup.settings.get(method, {})}
        recipe = _recipe(layout, "student", setup.train[method], settings, seed, scale.student_steps, 32, 8e-3)
        teacher = {"teacher": {"model": str(layout.teacher)}} if needs_teacher(setup, method) else {}
        recipe = {**recipe, **teacher, "name": f"seed{seed}", "output": str(layout.root / setup.name)}
        _write(layout.recipe(setup.name, method, f"seed{seed}"), recipe)


def tasks(layout: Layout, seeds: int) -> list[Task]:
    """The demo's command lines; students that need no teacher learn beside it."""
    evaluated = _evaluate(layout, layout.teacher_run)
    planned = [
        Task("teacher", (("sft", str(layout.recipe("teacher"))), evaluated)),
        Task("labelled-answered", (_answer(layout, "unlabelled"),), ("teacher",), lambda: _join_answers(layout)),
        Task("noisy-answered", (_answer(layout, "noisy"),), ("teacher",)),
    ]
    answers = {task.name for task in planned[1:]}
    for setup, method, seed in cells(seeds):
        verb = "distill" if needs_teacher(setup, method) else "sft"
        recipe = layout.recipe(setup.name, method, f"seed{seed}")
        needs = answers & {setup.train[method]} | ({"teacher"} if needs_teacher(setup, method) else set())
        commands = ((verb, str(recipe)), _evaluate(layout, layout.run(setup, method, seed)))
        planned.append(Task(f"{setup.name}-{method}-seed{seed}", commands, tuple(sorted(needs))))
    return planned


def cells(seeds: int) -> Iterator[tuple[Setup, str, int]]:
    """Every student: its set-up, its method and its seed."""
    return ((setup, method, seed) for seed in range(1, seeds + 1) for setup in SETUPS for method in METHODS)


def needs_teacher(setup: Setup, method: str) -> bool:
    """Whether the method asks the teacher for logits while it trains."""
    return method in setup.settings


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


def _answer(layout: Layout, prompts: str) -> tuple[str, ...]:
    answered = layout.data(f"{prompts}-answered")
    return ("generate", f"--model={layout.teacher}", f"--data={layout.data(prompts)}", f"--out={answered}", *_GREEDY)


def _evaluate(layout: Layout, run: Path) -> tuple[str, ...]:
    data = f"--data=[{layout.data(HELD_OUT)}]"
    return ("evaluate", f"--model={run / 'last'}", data, f"--out={run / 'evaluation'}", "--seeds=1", *_GREEDY)


_GREEDY = (
    "--template=short", "--temperature=0", "--max_new_tokens=32", "--batch_size=200", f"--max_length={LONGEST}",
    f"--max_prompt_length={LONGEST // 2}", "--overwrite=true",
)  # fmt: skip


def _join_answers(layout: Layout) -> None:
    """The labelled rows and those that the teacher answered, in one file."""
    files = (layout.data("labelled"), layout.data("unlabelled-answered"))
    store.write_jsonl(layout.data("labelled-answered"), [row for file in files for row in store.read_jsonl(file)])
