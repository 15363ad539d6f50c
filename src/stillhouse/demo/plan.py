"""What the demo trains on what: its data files, its recipes and its tasks, written out before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import yaml

from stillhouse import store
from stillhouse.demo import skills
from stillhouse.demo.vocabulary import LONGEST, Size, train_tokenizer, train_unigram, write_model_folder
from stillhouse.demo.workers import Task

Row = dict[str, str]

TEACHER_SIZE = Size(hidden=96, layers=2, intermediate=192)
STUDENT_SIZE = Size(hidden=64, layers=1, intermediate=128)
HELD_OUT = "held-out"
TEACHER, UNIGRAM_TEACHER = TEACHERS = ("teacher", "unigram-teacher")


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
class Setup:
    """One question to the methods: which rows each of them trains on, and with what settings."""

    name: str
    title: str
    note: str
    train: dict[str, str]  # method -> data file
    settings: dict[str, dict[str, float]]  # method -> settings, of those that ask the teacher for logits
    teacher: str = TEACHER
    shared: dict[str, str] = field(default_factory=dict)  # method -> set-up whose runs these are
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)  # method -> further sections of its recipe


LABELS = {
    "sft": "SFT", "seqkd": "SeqKD", "forward_kl": "Forward KL", "todi": "ToDi", "overlap": "Overlap KL", "cdm": "CDM",
}  # fmt: skip

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
    Setup(
        "other-tokenizer",
        "A teacher with another tokenizer",
        "As the first, with a second teacher: as large and taught the same, but it reads and predicts the tokens of a "
        "Unigram vocabulary of {unigram}. SFT's runs are those of the first set-up. SeqKD sees the second teacher's "
        "text alone; overlap KL also its logits of the tokens that both vocabularies have, where both predict the same "
        "text; CDM, in the same rows, also those of tokens that it matches in their context. With its own alignment, "
        "which pairs tokens by their edit distance, CDM stayed below SFT in a trial (10% with one seed): vocabularies "
        "this small split words so unlike that many of its pairs stand after different text.",
        {"sft": "labelled-repeated", **dict.fromkeys(("seqkd", "overlap", "cdm"), "labelled-unigram-answered")},
        {"overlap": {"temperature": 1.0, "kd_weight": 0.5}, "cdm": {"temperature": 1.0, "kd_weight": 0.5}},
        teacher=UNIGRAM_TEACHER,
        shared={"sft": "teacher-answers"},
        sections={"cdm": {"alignment": {"name": "exact"}}},
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

    def run(self, setup: Setup, method: str, seed: int) -> Path:
        """A student's run."""
        return self.root / setup.shared.get(method, setup.name) / "student" / method / f"seed{seed}"


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


def write_recipes(layout: Layout, scale: Scale, seeds: int) -> None:
    """Every recipe of the demo: a user could run each of them alone."""
    for name in TEACHERS:
        recipe = _recipe(layout, name, "teacher", {"name": "sft"}, 1, scale.teacher_steps, 64, 4e-3)
        _write(layout.recipe(name), {**recipe, "name": "teacher", "output": str(layout.root)})
    for setup, method, seed in cells(seeds):
        settings = {"name": method, **setup.settings.get(method, {})}
        recipe = _recipe(layout, "student", setup.train[method], settings, seed, scale.student_steps, 32, 8e-3)
        teacher = {"teacher": {"model": str(layout.teacher(setup.teacher))}} if needs_teacher(setup, method) else {}
        recipe = {**recipe, **teacher, **setup.sections.get(method, {}), "name": f"seed{seed}"}
        recipe["output"] = str(layout.root / setup.name)
        _write(layout.recipe(setup.name, method, f"seed{seed}"), recipe)


def tasks(layout: Layout, seeds: int) -> list[Task]:
    """The demo's command lines; students that need no teacher learn beside it."""
    planned = [
        Task(name, (("sft", str(layout.recipe(name))), _evaluate(layout, layout.teacher_run(name))))
        for name in TEACHERS
    ]
    for name, (teacher, prompts, out, after) in _answers(layout).items():
        planned.append(Task(name, (_answer(layout, teacher, prompts, out),), (teacher,), after))
    answers = {task.name for task in planned[len(TEACHERS) :]}
    for setup, method, seed in cells(seeds):
        verb = "distill" if needs_teacher(setup, method) else "sft"
        recipe = layout.recipe(setup.name, method, f"seed{seed}")
        needs = answers & {setup.train[method]} | ({setup.teacher} if needs_teacher(setup, method) else set())
        commands = ((verb, str(recipe)), _evaluate(layout, layout.run(setup, method, seed)))
        planned.append(Task(f"{setup.name}-{method}-seed{seed}", commands, tuple(sorted(needs))))
    return planned


def cells(seeds: int) -> Iterator[tuple[Setup, str, int]]:
    """Every student that is trained: its set-up, its method and its seed."""
    return (
        (setup, method, seed)
        for seed in range(1, seeds + 1)
        for setup in SETUPS
        for method in setup.train
        if method not in setup.shared
    )


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
