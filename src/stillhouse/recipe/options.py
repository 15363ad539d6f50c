"""What the verbs may be asked that train nothing: typed options with meanings, defaults and bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stillhouse.mistakes import Mistake
from stillhouse.recipe.evaluating import Answering
from stillhouse.recipe.schema import NOT_NEGATIVE, ONE_OR_MORE, Dtype
from stillhouse.recipe.section import Section, setting


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(Answering):
    """Rows to answer, and where the answered rows go."""

    data: str = setting("rows whose prompts are answered: .jsonl, .json, .parquet or a name on the Hub")
    out: str = setting("the .jsonl file that is written")
    seed: int = setting("of sampling", 10, NOT_NEGATIVE)


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Section):
    """Which checkpoint becomes a model of its own, and where it goes."""

    model: str = setting("a run's folder (its best checkpoint), a checkpoint, or any model or adapter folder")
    out: str = setting("the folder that is written")
    dtype: Dtype = setting("what the weights are written in; auto: as the model, or an adapter's base, is", "auto")
    trust_remote_code: bool = setting("run Python code from the model's folder; command line only", False)
    overwrite: bool = setting("replace a folder that an export wrote", False)


@dataclass(frozen=True, kw_only=True)
class VocabMapOptions(Section):
    """Which vocabularies are mapped, how, and where the map goes."""

    kind: Literal["exact", "min-edit", "min_edit", "prefix"] = setting("exact, min-edit or prefix")
    teacher: str = setting("a folder with a tokenizer, or a name on the Hub")
    student: str = setting("a folder with a tokenizer, or a name on the Hub; the map leads to its tokens")
    out: str = setting("the .json file that is written")
    ignore_space: bool = setting("for exact: a token without a twin goes to one that differs in its blank", False)
    trust_remote_code: bool = setting("run Python code from a tokenizer's folder; command line only", False)
    overwrite: bool = setting("replace a map that is there already", False)

    def validate(self) -> None:
        if self.ignore_space and self.kind != "exact":
            raise Mistake("ignore_space", f"is not asked by {self.kind}", "remove it, or take exact")


@dataclass(frozen=True)
class ReportOptions(Section):
    """Which runs go into a report."""

    runs: list[str] = setting("folders of runs, or of many runs")
    out: str = setting("the file that is written", "report.html")

    def validate(self) -> None:
        if not self.runs:
            raise Mistake("runs", "names no folder", "write stillhouse report outputs")


@dataclass(frozen=True)
class DemoOptions(Section):
    """The embedded example."""

    output: str = setting("the folder that everything goes into", "outputs/demo")
    seeds: int = setting("students of each kind", 3, ONE_OR_MORE)
    full: bool = setting("train the methods that take longer, too", False)
    workers: int = setting("processes that train at the same time", 2, ONE_OR_MORE)


@dataclass(frozen=True)
class MethodsOptions(Section):
    """How the table of methods is printed."""

    json: bool = setting("as one JSON object instead of a table", False)
    markdown: bool = setting("as the page docs/methods.md", False)
    compositions: bool = setting("as the page docs/compositions.md: what can be combined with what", False)

    def validate(self) -> None:
        asked = [name for name in ("json", "markdown", "compositions") if getattr(self, name)]
        if len(asked) > 1:
            raise Mistake(asked[1], f"is asked beside {asked[0]}", "take one of them")
