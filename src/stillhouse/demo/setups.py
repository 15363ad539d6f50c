"""The demo's questions: which students stand in which set-up, what each of them learns from, and with what settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stillhouse.catalogue import METHODS

TEACHER, UNIGRAM_TEACHER = TEACHERS = ("teacher", "unigram-teacher")
SFT, SEQKD = "SFT", "SeqKD"


@dataclass(frozen=True)
class Student:
    """A row of a set-up.

    Attributes:
        name: of its folders.
        label: in tables and pictures.
        train: the data file that it learns from.
        method: that section of its recipe.
        sections: what its recipe says besides, by section.
        runs_of: the set-up whose runs these are; by default its own.
        begins_at: the student of the set-up whose weights, after training with the same seed, it begins with; by
            default it has fresh ones.
        full: whether only the full demo trains it.
    """

    name: str
    label: str
    train: str
    method: dict[str, Any]
    sections: dict[str, Any] = field(default_factory=dict)
    runs_of: str = ""
    begins_at: str = ""
    full: bool = False

    @property
    def needs_teacher(self) -> bool:
        """Whether it asks the teacher for predictions while it trains."""
        return METHODS[self.method["name"]].needs_teacher

    def run_name(self, seed: int) -> str:
        """The last part of a run's folder, below that of its method."""
        return f"seed{seed}" if self.name == self.method["name"] else f"{self.name}-seed{seed}"


@dataclass(frozen=True)
class Setup:
    """One question to the methods.

    Attributes:
        note: what it is, with names of a scale's numbers in braces.
        full_note: what is said besides where the students of the full demo are in it.
    """

    name: str
    title: str
    note: str
    students: tuple[Student, ...]
    teacher: str = TEACHER
    full_note: str = ""

    def student(self, name: str) -> Student:
        """The one of that name."""
        return next(student for student in self.students if student.name == name)


def setups(*, full: bool = False) -> tuple[Setup, ...]:
    """Every set-up, with the students of the full demo or without."""
    return tuple(_whole(setup) if full else _short(setup) for setup in _ALL)


def cells(chosen: Sequence[Setup], seeds: int) -> Iterator[tuple[Setup, Student, int]]:
    """Every student that is trained: its set-up, itself and its seed."""
    return (
        (setup, student, seed)
        for seed in range(1, seeds + 1)
        for setup in chosen
        for student in setup.students
        if not student.runs_of
    )


def _whole(setup: Setup) -> Setup:
    return replace(setup, note=f"{setup.note} {setup.full_note}".rstrip())


def _short(setup: Setup) -> Setup:
    return replace(setup, students=tuple(student for student in setup.students if not student.full))


def _asking(name: str, label: str, train: str, kd_weight: float, **settings: Any) -> Student:
    """A student that learns from the teacher's predictions at temperature 1."""
    return Student(name, label, train, {"name": name, "temperature": 1.0, "kd_weight": kd_weight, **settings})


def _going_on(name: str, label: str, train: str, method: str, **rollout: Any) -> Student:
    """A student of the full demo that goes on from SFT, perhaps on what it writes itself to the prompts.

    Its weights are trained already. In exact match on the 100 development prompts, with one seed, reverse KL had 81 at
    this learning rate and 65 at the others', GKD 81 and 82, forward KL 86 and 89.
    """
    sections: dict[str, Any] = {"training": {"learning_rate": 3e-3}}
    if rollout:
        sections["rollout"] = {**rollout, "max_new_tokens": 32, "show_every": 50}  # an answer has at most some twenty
    return replace(_asking(method, label, train, 1.0), name=name, sections=sections, begins_at="sft", full=True)


_AS_STUDENT = {"projector_learning_rate": 8e-3}  # projectors have no more steps than the student to learn in
_ALL = (
    Setup(
        "teacher-answers",
        "Few labels, and prompts that the teacher answers",
        "SFT has {labelled} correct labels. The others train on these and on {unlabelled:,} prompts without labels "
        "that the teacher answered (greedy); SeqKD sees the teacher's text alone, forward KL and ToDi its logits too.",
        (
            Student("sft", SFT, "labelled-repeated", {"name": "sft"}),
            Student("seqkd", SEQKD, "labelled-answered", {"name": "seqkd"}),
            _asking("forward_kl", "Forward KL", "labelled-answered", 0.5),
            _asking("todi", "ToDi", "labelled-answered", 0.5),
            _going_on("forward_kl_on", "Forward KL after SFT", "labelled-answered", "forward_kl"),
            _going_on("on_policy_fkl", "On-policy forward KL", "labelled-answered", "forward_kl", source="student"),
            _going_on("on_policy_rkl", "On-policy reverse KL", "labelled-answered", "reverse_kl", source="student"),
            _going_on("gkd", "GKD", "labelled-answered", "gkd", source="mixed"),
        ),
        full_note="The last four begin where SFT's run of their seed ended, so they have had twice the steps, and "
        "learn the teacher's logits alone: forward KL after SFT on the same text as the others, the on-policy ones on "
        "what they answer to the same prompts themselves, GKD on either, half of the steps each.",
    ),
    Setup(
        "noisy-labels",
        "Labels of which many are wrong",
        "{noisy:,} labels, {wrong_share:.0%} of them wrong. SFT, forward KL and ToDi train on the same prompts and the "
        "same text; SeqKD on the teacher's text for the same prompts.",
        (
            Student("sft", SFT, "noisy", {"name": "sft"}),
            Student("seqkd", SEQKD, "noisy-answered", {"name": "seqkd"}),
            _asking("forward_kl", "Forward KL", "noisy", 1.0),
            _asking("todi", "ToDi", "noisy", 0.5),
        ),
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
        (
            Student("sft", SFT, "labelled-repeated", {"name": "sft"}, runs_of="teacher-answers"),
            Student("seqkd", SEQKD, "labelled-unigram-answered", {"name": "seqkd"}),
            _asking("overlap", "Overlap KL", "labelled-unigram-answered", 0.5),
            replace(_asking("cdm", "CDM", "labelled-unigram-answered", 0.5), sections={"alignment": {"name": "exact"}}),
            replace(_asking("dskd_cma", "DSKD-CMA", "labelled-unigram-answered", 0.5, **_AS_STUDENT), full=True),
            replace(_asking("mcw_kd", "MCW-KD", "labelled-unigram-answered", 0.5, top_k=50, **_AS_STUDENT), full=True),
        ),
        teacher=UNIGRAM_TEACHER,
        full_note="DSKD-CMA and MCW-KD need no token of the one vocabulary to be one of the other.",
    ),
)
