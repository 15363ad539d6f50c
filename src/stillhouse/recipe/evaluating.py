"""What `evaluate` and its kinds may be asked: typed options with meanings, defaults and bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stillhouse.mistakes import Mistake
from stillhouse.recipe.data_sets import DataSets
from stillhouse.recipe.inspection import settle_axes
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
class OfModel(Section):
    """What everything that is asked of a model has in common."""

    model: str = setting("a model folder or a name on the Hub")
    dtype: Dtype = setting("what the weights are kept in; auto: as they were saved", "auto")
    trust_remote_code: bool = setting("run Python code from the model's folder; command line only", False)
    overwrite: bool = setting("replace results that are there already", False)


@dataclass(frozen=True, kw_only=True)
class Answering(OfModel):
    """What `generate` and `evaluate` have in common: a model, its prompts, and how it answers them."""

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
class EvaluateOptions(DataSets, Answering):
    """Rows to answer and score."""

    protocol: Literal["plain", "dskd"] = setting(
        "dskd: no 6-gram twice and prompts cut at their end, as the papers sample", "plain"
    )
    cut: Literal["marker", "end"] = setting("a long prompt loses text before its marker, or its end", "marker")
    out: str | None = setting("the folder of the scores; null: the model's folder/evaluation", None)
    seeds: list[int] = setting("answer once per seed; mean and deviation are over them", [10, 20, 30, 40, 50],
                               NOT_NEGATIVE)  # fmt: skip

    def validate(self) -> None:
        super().validate()
        check_seeds(self, self.seeds)
        if self.protocol == "dskd":
            self._settle({"temperature": (1.0,), "top_p": (1.0,), "no_repeat_ngram_size": (0, 6)})
            object.__setattr__(self, "no_repeat_ngram_size", 6)
            object.__setattr__(self, "cut", "end")

    def _settle(self, allowed: dict[str, tuple[float, ...]]) -> None:
        for key, values in allowed.items():
            if getattr(self, key) not in values:
                wrong = f"is {getattr(self, key)}, but protocol dskd has {values[-1]:g}"
                raise Mistake(key, wrong, "remove it, or write protocol: plain")


@dataclass(frozen=True, kw_only=True)
class AgreementOptions(DataSets, OfModel):
    """A student, its teacher, and responses that both predict."""

    teacher: str = setting("the model that it is compared with: a folder or a name on the Hub")
    out: str | None = setting("the folder of the results; null: the model's folder/evaluation", None)
    teacher_dtype: Dtype = setting("what the teacher's weights are kept in", "auto")
    template: Template = setting("how a row becomes a prompt", "alpaca")
    teacher_template: Template | None = setting("how it becomes the teacher's; null: the same", None)
    max_length: int = setting("tokens of prompt and response", 512, Bounds(low=2))
    max_prompt_length: int = setting("tokens of the prompt", 256, ONE_OR_MORE)
    cut: Literal["marker", "end"] = setting("a long prompt loses text before its marker, or its end", "marker")
    bos: bool | None = setting("begin with the student's BOS token; null: as its tokenizer does", None)
    temperature: float = setting("of the divergences; all else is at 1", 1.0, Bounds(above=0))
    top_k: int = setting("how many likeliest tokens of either are compared", 5, ONE_OR_MORE)
    bins: int = setting("of the reliability tables, of equal width", 15, ONE_OR_MORE)
    alignment: dict | None = setting("which positions correspond: span or exact; null: span, or ids are shared", None)
    vocabulary: dict | None = setting("which tokens correspond; null: overlap, or ids are shared", None)
    batch_size: int = setting("examples read at a time", 8, ONE_OR_MORE)

    def validate(self) -> None:
        super().validate()
        check_lengths(self, self.max_prompt_length, self.max_length)
        settle_axes(self)
        aligner, chosen = self.alignment or {"name": "span"}, self.vocabulary or {"name": "overlap"}
        if aligner["name"] not in ("span", "exact"):
            wrong = f"{aligner['name']} pairs positions that have read unlike texts"
            raise Mistake("alignment.name", wrong, "take span or exact")
        if aligner.get("merge", "first") != "first":
            raise Mistake("alignment.merge", "the first positions of a group alone have read the same", "remove it")
        if chosen["name"] == "cdm":
            raise Mistake("vocabulary.name", "cdm depends on the predictions of a row", "take overlap, or min_edit")

    @property
    def alone(self) -> bool:
        """Whether nothing asks for a second tokenisation where both tokenizers are the same."""
        return self.teacher_template is None and self.alignment is None and self.vocabulary is None
