"""What a suite may say: rows of a table, what they have in common, and how they are scored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from stillhouse.catalogue import NAMED, name_key
from stillhouse.mistakes import Mistake, unknown_name
from stillhouse.recipe.schema import NOT_NEGATIVE, ONE_OR_MORE, check_seeds
from stillhouse.recipe.section import Bounds, Section, setting, shown

# What the suite itself says to each command.
_OF_A_RECIPE, _OF_AN_EVALUATION = ("seed", "output", "name", "overwrite"), ("model", "out", "overwrite", "config")
KINDS = ("instruct", "tasks", "code", "judge", "agreement")
_OWN = ("name", "model", "recipe", "reference")
# Sections whose keys are changed one by one; below any other key a dictionary is a value.
_SECTIONS = (
    "student", "teacher", "data", "method", "alignment", "vocabulary", "rollout", "head", "training", "evaluation",
    "student.config", "student.lora",
)  # fmt: skip


@dataclass(frozen=True)
class SuiteRow:
    """One line of the table.

    Attributes:
        name: as the table shows it.
        slug: as folders are called by it.
        model: a model that is scored as it is; None: the row is trained.
        recipe: the recipe that it is trained by.
        changes: dotted keys over that recipe, and over what all rows have in common.
        reference: it stands there to compare with: never the best, never tested.
    """

    name: str
    slug: str
    model: str | None
    recipe: str | None
    changes: dict[str, Any]
    reference: bool

    def part(self, seed: int | None) -> str:
        """As the folders of its run with `seed` are called, or those of a model."""
        return self.slug if seed is None else f"{self.slug}-seed{seed}"


@dataclass(frozen=True, kw_only=True)
class SuiteOptions(Section):
    """A table: what is trained, with which seeds, and what it is scored by."""

    rows: list[dict] = setting("lines of the table: name; model, or recipe and keys that change it; reference")
    evaluate: dict = setting(f"how: {', '.join(KINDS)}, each with the options of its verb")
    title: str = setting("of the table", "Comparison")
    recipe: str | None = setting("the recipe of rows that name none", None)
    seeds: list[int] = setting("every row is trained once per seed", [10], NOT_NEGATIVE)
    set: dict = setting("keys of all rows' recipes; a row's own go before, and sft takes none of a teacher's", {})
    columns: list[str] = setting("show measures with these ends of their names, and the mean of each; []: all", [])
    baseline: str | None = setting("the row that others are tested against; null: the first that is no reference", None)
    resamples: int = setting("of the paired bootstrap", 10_000, Bounds(low=100))
    output: str = setting("the folder that everything goes into", "outputs/suite")
    launcher: str | None = setting(
        "starts a training: 'torchrun --nproc_per_node=4'; null: one process; command line only", None
    )
    workers: int = setting("commands that run at a time", 1, ONE_OR_MORE)
    plan: bool = setting("print the commands, and run nothing", False)
    run_generated_code: bool = setting("let evaluate code run what models wrote; command line only", False)
    judge: str | None = setting(
        "the judge's address, in the place of evaluate.judge.judge; of another machine, command line only", None
    )
    key_variable: str | None = setting("the environment variable of the judge's key; command line only", None)
    trust_remote_code: bool = setting("run Python code from models' folders; command line only", False)
    overwrite: bool = setting("train and score anew what is there with other settings", False)

    def validate(self) -> None:
        check_seeds(self, self.seeds)
        for kind, options in self.evaluate.items():
            if kind not in KINDS:
                raise unknown_name("evaluate", "kind of evaluation", str(kind), KINDS)
            if not isinstance(options, dict):
                raise Mistake(f"evaluate.{kind}", f"is a section of keys, got {shown(options)}")
            _refuse_own(f"evaluate.{kind}", options, _OF_AN_EVALUATION)
        if not self.evaluate:
            raise Mistake("evaluate", "names no kind", "write evaluate: {instruct: {data: [rows.jsonl]}}")
        if self.judge is not None and "judge" not in self.evaluate:
            raise Mistake("judge", "has nothing to judge", "write evaluate: {judge: {data: ..., judge_model: ...}}")
        _refuse_own("set", self.set, _OF_A_RECIPE)
        names = [row.name for row in self.lines]
        if self.baseline is not None and self.baseline not in names:
            raise unknown_name("baseline", "row", self.baseline, names)

    @property
    def lines(self) -> list[SuiteRow]:
        """The rows, read.

        Raises:
            Mistake: a row is not what a row is, or two would write into one folder.
        """
        found: list[SuiteRow] = []
        taken: dict[str, str] = {}  # folders, as a file system sees them that takes A for a; and whose they are
        for number, written in enumerate(self.rows, start=1):
            row = self._row(written, f"rows[{number}]")
            seeds = () if row.model is not None else self.seeds
            ours = {row.slug: f"'{row.name}'"} | {row.part(seed): f"'{row.name}', seed {seed}" for seed in seeds}
            for part, whose in ours.items():
                if part.casefold() in taken:
                    wrong = f"{whose} would have the folder of {taken[part.casefold()]}"
                    raise Mistake(f"rows[{number}]", wrong, "give it another name")
            taken |= {part.casefold(): whose for part, whose in ours.items()}
            found.append(row)
        if not found:
            raise Mistake("rows", "is empty", "write rows: [{name: ToDi, method.name: todi}]")
        return found

    def _row(self, written: dict[str, Any], where: str) -> SuiteRow:
        name, model = written.get("name"), written.get("model")
        if not isinstance(name, str) or not re.search(r"\w", name):
            raise Mistake(where, f"has no name, got {shown(name)}", "a row is {name: ToDi, method.name: todi}")
        reference = written.get("reference", model is not None)
        if not isinstance(reference, bool):
            raise Mistake(f"{where}.reference", f"must be true or false, got {shown(reference)}")
        changes = flat({key: value for key, value in written.items() if key not in _OWN})
        if model is not None:
            extra = [key for key in written if key not in ("name", "model", "reference")]
            if extra or not isinstance(model, str):
                wrong = f"is a model that is scored as it is, but sets {extra[0]}" if extra else "is no model's name"
                raise Mistake(f"{where}.model", wrong, "give model alone, or recipe and keys")
            changes = {}
        _refuse_own(where, {key: value for key, value in changes.items() if key != "name"}, _OF_A_RECIPE)
        recipe = None if model is not None else written.get("recipe", self.recipe)
        if model is None and not isinstance(recipe, str):
            raise Mistake(where, f"'{name}' has neither a recipe nor a model", "write recipe: a .yaml file")
        slug = re.sub(r"[^\w.-]+", "-", name).strip("-.")
        return SuiteRow(name, slug, model, recipe, changes, reference)


def _refuse_own(where: str, keys: dict[str, Any], own: tuple[str, ...]) -> None:
    for key in own:
        if key in keys:
            mend = {"seed": "write seeds: [10]", "output": "write output beside rows"}.get(key, "remove it")
            raise Mistake(f"{where}.{key}", "is the suite's to say", mend)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The keys of a recipe's sections, dotted; a dictionary below any other key stays a value."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if dotted in _SECTIONS and isinstance(value, dict) and value:
            leaves |= flat(value, f"{dotted}.")
        elif dotted in NAMED and isinstance(value, str):  # method: todi
            leaves[name_key(dotted)] = value
        else:
            leaves[dotted] = value
    return leaves
