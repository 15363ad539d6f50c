"""What the verbs may be asked that train nothing: typed options with meanings, defaults and bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stillhouse.mistakes import Mistake
from stillhouse.recipe.schema import (
    NOT_NEGATIVE,
    ONE_OR_MORE,
    PROBABILITY,
    Dtype,
    Template,
    check_address,
    check_lengths,
    check_seeds,
)
from stillhouse.recipe.section import Bounds, Section, setting

Running = Literal["batches", "continuous"]


@dataclass(frozen=True, kw_only=True)
class _Answering(Section):
    """What `generate` and `evaluate` have in common: a model, its prompts, and how it answers them."""

    model: str = setting("a model folder or a name on the Hub")
    template: Template = setting("how a row becomes a prompt", "alpaca")
    limit: int | None = setting("use the first so many rows", None, ONE_OR_MORE)
    max_length: int = setting("tokens of prompt and answer", 512, Bounds(low=2))
    max_prompt_length: int = setting("tokens of the prompt", 256, ONE_OR_MORE)
    bos: bool | None = setting("begin with the BOS token; null: as the tokenizer does", None)
    max_new_tokens: int = setting("tokens of an answer", 256, ONE_OR_MORE)
    temperature: float = setting("of sampling; 0 is greedy", 1.0, NOT_NEGATIVE)
    top_p: float = setting("sample from the smallest set of tokens with this mass", 1.0, PROBABILITY)
    no_repeat_ngram_size: int = setting("no n-gram of this size twice; 0: off", 0, NOT_NEGATIVE)
    batch_size: int = setting("prompts answered at a time", 32, ONE_OR_MORE)
    engine: Running = setting("transformers' generate in batches, or its continuous batching", "batches")
    server: str | None = setting("the address of a vLLM server that has `model`, and answers instead", None)
    dtype: Dtype = setting("what the weights are kept in; auto: as they were saved", "auto")
    trust_remote_code: bool = setting("run Python code from the model's folder; command line only", False)
    overwrite: bool = setting("replace results that are there already", False)

    def validate(self) -> None:
        check_lengths(self, self.max_prompt_length, self.max_length)
        if self.server is None:
            return
        check_address("server", self.server)
        if self.engine != "batches":
            raise Mistake("engine", "is of a model in this process, and a server answers", "remove it, or server")
        if self.no_repeat_ngram_size:
            raise Mistake("no_repeat_ngram_size", "is not known to a server", "write 0, or remove server")


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(_Answering):
    """Rows to answer, and where the answered rows go."""

    data: str = setting("rows whose prompts are answered: .jsonl, .json, .parquet or a name on the Hub")
    out: str = setting("the .jsonl file that is written")
    seed: int = setting("of sampling", 10, NOT_NEGATIVE)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(_Answering):
    """Rows to answer and score."""

    data: list[str] = setting("one or more files of rows")
    out: str | None = setting("the folder of the scores; null: the model's folder/evaluation", None)
    seeds: list[int] = setting("answer once per seed; mean and deviation are over them", [10, 20, 30, 40, 50],
                               NOT_NEGATIVE)  # fmt: skip

    def validate(self) -> None:
        super().validate()
        check_seeds(self, self.seeds)
        if not self.data:
            raise Mistake("data", "names no file", "write data: [rows.jsonl]")


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
