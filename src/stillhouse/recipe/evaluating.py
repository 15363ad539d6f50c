"""What `evaluate` and its kinds may be asked: typed options with meanings, defaults and bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stillhouse.mistakes import Mistake
from stillhouse.recipe.address import check_address, host_of
from stillhouse.recipe.data_sets import DataSets
from stillhouse.recipe.inspection import settle_axes
from stillhouse.recipe.schema import (
    NOT_NEGATIVE,
    ONE_OR_MORE,
    PROBABILITY,
    Dtype,
    Template,
    check_lengths,
    check_seeds,
)
from stillhouse.recipe.section import Bounds, Section, setting, shown

LEADERBOARD = "open_llm_leaderboard"  # the six tasks of the first leaderboard, as TAID reports them

Running = Literal["batches", "continuous"]


@dataclass(frozen=True, kw_only=True)
class OfModel(Section):
    """What everything that is asked of a model has in common."""

    model: str = setting("a model's folder, a run's (its best checkpoint) or a name on the Hub")
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
        "dskd: as the papers sample, no 6-gram twice and prompts cut at their end, whatever no_repeat_ngram_size "
        "and cut say; plain: as the options say",
        "plain",
    )
    cut: Literal["marker", "end"] = setting(
        "a long prompt loses text before its marker (### Response:), or its end", "marker"
    )
    out: str | None = setting("the folder of the scores; null: evaluation/ in the model's or run's folder", None)
    seeds: list[int] = setting("answer once per seed; mean and deviation are over them", [10, 20, 30, 40, 50],
                               NOT_NEGATIVE)  # fmt: skip

    def validate(self) -> None:
        super().validate()
        check_seeds(self, self.seeds)
        if self.protocol == "dskd":
            if self.server is not None:
                raise Mistake("protocol", "dskd bars n-grams, which a server does not", "write plain, or remove server")
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

    teacher: str = setting("the model that it is compared with: a folder, a run's or a name on the Hub")
    out: str | None = setting(
        "the folder whose agreement/ gets the results; null: evaluation/ in the model's or run's folder", None
    )
    teacher_dtype: Dtype = setting("what the teacher's weights are kept in", "auto")
    template: Template = setting("how a row becomes a prompt", "alpaca")
    teacher_template: Template | None = setting("how it becomes the teacher's; null: the same", None)
    max_length: int = setting("tokens of prompt and response", 512, Bounds(low=2))
    max_prompt_length: int = setting("tokens of the prompt", 256, ONE_OR_MORE)
    cut: Literal["marker", "end"] = setting(
        "a long prompt loses text before its marker (### Response:), or its end", "marker"
    )
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


@dataclass(frozen=True, kw_only=True)
class TasksOptions(OfModel):
    """Tasks of lm-evaluation-harness, and how they are asked."""

    tasks: list[str] = setting("names of lm-eval's tasks, groups or tags, or open_llm_leaderboard")
    data: str | None = setting(
        "rows of the one task that is named, instead of the Hub's: .jsonl, .json, .parquet", None
    )
    out: str | None = setting(
        "the folder whose tasks/ gets the results; null: evaluation/ in the model's or run's folder", None
    )
    num_fewshot: int | None = setting("examples before each question; null: as the task has it", None, NOT_NEGATIVE)
    limit: int | None = setting("use the first so many documents of each task", None, ONE_OR_MORE)
    batch_size: int = setting("requests answered at a time", 8, ONE_OR_MORE)
    bos: bool | None = setting("begin with the BOS token; null: as the tokenizer does", None)
    apply_chat_template: bool = setting("write prompts by the tokenizer's chat template", False)
    fewshot_as_multiturn: bool = setting("examples are turns of the chat, not one text", True)
    system_instruction: str | None = setting("said before every prompt", None)
    max_new_tokens: int | None = setting("tokens of a written answer; null: as the task has it", None, ONE_OR_MORE)
    temperature: float | None = setting("of written answers; 0 is greedy; null: as the task has it", None, NOT_NEGATIVE)
    top_p: float | None = setting("of written answers; null: as the task has it", None, PROBABILITY)
    seed: int | None = setting("of few-shot examples and sampling; null: lm-eval's own, 0 and 1234", None, NOT_NEGATIVE)

    def validate(self) -> None:
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise Mistake("tasks", f"must be different names, at least one, got {shown(self.tasks)}")
        if self.data is not None and (len(self.tasks) != 1 or LEADERBOARD in self.tasks):
            raise Mistake("data", "is of one task, and several are named", "name one task, such as gsm8k")
        if self.num_fewshot is not None and LEADERBOARD in self.tasks:
            raise Mistake("num_fewshot", f"is not asked by {LEADERBOARD}, which has its own", "remove it")
        if self.top_p is not None and not self.temperature:
            raise Mistake("top_p", "has no part in greedy answers", "add --temperature=1")

    @property
    def generation(self) -> dict[str, float | bool]:
        """What is asked of written answers, in lm-eval's names; the rest is the task's."""
        given = {"max_gen_toks": self.max_new_tokens, "temperature": self.temperature, "top_p": self.top_p}
        asked: dict[str, float | bool] = {key: value for key, value in given.items() if value is not None}
        return asked if self.temperature is None else {**asked, "do_sample": self.temperature > 0}


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(OfModel):
    """Questions of two turns, and who judges the answers."""

    data: str = setting("questions: rows of {question_id, category, turns: [first, second], reference}")
    judge: str = setting("the address of an OpenAI-compatible server: http://127.0.0.1:8000/v1")
    judge_model: str = setting("the judge, as its server calls it: gpt-4")
    key_variable: str | None = setting(
        "the environment variable that holds the server's key; null: none is sent; command line only", None
    )
    out: str | None = setting(
        "the folder whose judge/ gets the results; null: evaluation/ in the model's or run's folder", None
    )
    seeds: list[int] = setting("answer once per seed; mean and deviation are over them", [10], NOT_NEGATIVE)
    template: Template = setting("how a question becomes a prompt", "alpaca")
    limit: int | None = setting("use the first so many questions", None, ONE_OR_MORE)
    max_length: int = setting("tokens of prompt and answer", 2048, Bounds(low=2))
    bos: bool | None = setting("begin with the BOS token; null: as the tokenizer does", None)
    max_new_tokens: int = setting("tokens of an answer", 1024, ONE_OR_MORE)
    temperature: float | None = setting("of all answers, 0 is greedy; null: as MT-Bench has it for each category", None,
                                        NOT_NEGATIVE)  # fmt: skip
    top_p: float = setting("sample from the smallest set of tokens with this mass", 1.0, PROBABILITY)
    batch_size: int = setting("questions answered at a time", 16, ONE_OR_MORE)
    judge_tokens: int = setting("tokens of a judgement", 2048, ONE_OR_MORE)
    requests: int = setting("judgements asked for at the same time", 4, ONE_OR_MORE)
    attempts: int = setting("how often a judgement without a rating is asked for", 3, ONE_OR_MORE)
    retries: int = setting("how often a request that failed is sent again", 6, NOT_NEGATIVE)
    wait: float = setting("seconds before the first repetition of a request; doubled each time", 1.0, Bounds(above=0))
    timeout: float = setting("seconds that a request may take", 300.0, Bounds(above=0))

    def validate(self) -> None:
        check_seeds(self, self.seeds)
        if "@" in self.judge or "?" in self.judge:
            raise Mistake("judge", "holds a password or a query", "put the key into the environment; see key_variable")
        if host_of(self.judge) is None:
            raise Mistake("judge", f"is no address: {shown(self.judge)}", "write one such as http://127.0.0.1:8000/v1")
        if self.key_variable is not None and not self.key_variable.isidentifier():
            raise Mistake("key_variable", "names no environment variable", "write a name such as OPENAI_API_KEY")
        if self.max_new_tokens >= self.max_length:
            wrong = f"must be below max_length, which is {self.max_length}, got {self.max_new_tokens}"
            raise Mistake("max_new_tokens", wrong, "leave room for the question")
