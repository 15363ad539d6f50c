"""What `evaluate` and its kinds may be asked: typed options with meanings, defaults and bounds."""

from __future__ import annotations

from dataclasses import dataclass

from stillhouse.mistakes import Mistake
from stillhouse.recipe.schema import (
    NOT_NEGATIVE,
    ONE_OR_MORE,
    PROBABILITY,
    Dtype,
    Template,
    check_lengths,
    check_seeds,
)
from stillhouse.recipe.section import Bounds, Section, setting


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

    def validate(self) -> None:
        check_lengths(self, self.max_prompt_length, self.max_length)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Answering):
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
