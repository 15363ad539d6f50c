"""What a model answers to rows that have references, scored answer by answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.data import Row
from stillhouse.data.encode import Limits
from stillhouse.data.templates import Template
from stillhouse.evaluation.metrics import Scores, exact_match, rouge_l
from stillhouse.mistakes import Mistake
from stillhouse.rollout import Engine, Sampling, encode_prompts, end_of_turn, engine_of, respond
from stillhouse.store.digests import of_bytes
from stillhouse.store.records import dumps


@dataclass(frozen=True)
class Questions:
    """Rows ready to be answered.

    Attributes:
        texts: the prompts as the template writes them.
        input_ids: as the model reads them.
        references: the acceptable answers to each, at least one.
        stop: tokens that end an answer, besides the end-of-text token.
        max_length: tokens of prompt and answer.
        cut: how many prompts lost tokens to `max_prompt_length`.
    """

    texts: list[str]
    input_ids: list[list[int]]
    references: list[tuple[str, ...]]
    stop: list[int]
    max_length: int
    cut: int

    @classmethod
    def of(
        cls, rows: Sequence[Row], template: Template, tokenizer: PreTrainedTokenizerBase, limits: Limits
    ) -> Questions:
        """The questions that `rows` ask.

        Raises:
            Mistake: a row has no prompt, or nothing to compare an answer with.
        """
        prompts = encode_prompts(rows, template, tokenizer, limits)
        references = [template.references(row) for row in rows]
        for row, acceptable in zip(rows, references, strict=True):
            if not acceptable:
                raise Mistake(row.origin, "has no response to compare an answer with", "give it one or remove the row")
        stop = end_of_turn(template, tokenizer)
        return cls(prompts.texts, prompts.input_ids, references, stop, limits.max_length, prompts.cut)

    def only(self, places: Sequence[int]) -> Questions:
        """Those at `places`, in that order."""
        texts, input_ids, references = (
            [every[place] for place in places] for every in (self.texts, self.input_ids, self.references)
        )
        return replace(self, texts=texts, input_ids=input_ids, references=references)

    @property
    def hash(self) -> str:
        """Of all that a prediction and its scores depend on: token ids, references, stop tokens."""
        return of_bytes(dumps(asdict(self))).xxh3


@dataclass(frozen=True)
class Prediction:
    """One answer and how good it is.

    Attributes:
        rouge_l: F-measure in [0, 1].
        finished: the model ended it, before its longest.
        clipped: there was room for less than `max_new_tokens`.
    """

    prompt: str
    prediction: str
    references: tuple[str, ...]
    rouge_l: float
    exact_match: bool
    finished: bool
    clipped: bool

    def as_line(self) -> dict[str, Any]:
        """As predictions.jsonl has it; `rougeL` is that file's name for `rouge_l`."""
        return {
            "prompt": self.prompt,
            "prediction": self.prediction,
            "references": list(self.references),
            "rougeL": self.rouge_l,
            "exact_match": self.exact_match,
            "finished": self.finished,
            "clipped": self.clipped,
        }

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> Prediction:
        """The inverse of `as_line`."""
        fields = dict(line)
        return cls(references=tuple(fields.pop("references")), rouge_l=fields.pop("rougeL"), **fields)


@dataclass(frozen=True)
class Evaluated:
    """The answers of a model to some rows, once for each seed.

    Attributes:
        predictions: by seed, in the order of the rows; greedy answers only under the first seed.
    """

    predictions: Mapping[int, list[Prediction]]

    @property
    def per_seed(self) -> dict[int, Scores]:
        """The scores of each seed, in per cent."""
        return {seed: scores(predictions) for seed, predictions in self.predictions.items()}

    @property
    def rouge_l(self) -> float:
        """ROUGE-L, the mean over seeds, in per cent."""
        return fmean(score.rouge_l for score in self.per_seed.values())

    @property
    def exact_match(self) -> float:
        """Exact match, the mean over seeds, in per cent."""
        return fmean(score.exact_match for score in self.per_seed.values())


def scores(predictions: Sequence[Prediction]) -> Scores:
    """The mean scores of `predictions`, in per cent."""
    return Scores(
        rouge_l=100 * fmean(prediction.rouge_l for prediction in predictions),
        exact_match=100 * fmean(prediction.exact_match for prediction in predictions),
    )


def seeds_that_matter(sampling: Sampling, seeds: Sequence[int]) -> list[int]:
    """All of `seeds`; only the first where answers are greedy, and so the same for each."""
    return list(seeds[:1] if sampling.greedy else seeds)


def predict(
    author: Engine,
    tokenizer: PreTrainedTokenizerBase,
    questions: Questions,
    sampling: Sampling,
    *,
    seed: int,
    description: str,
    places: Sequence[int] | None = None,
) -> list[Prediction]:
    """The answer to each question, scored; `places` are the questions' among all that one seed is for."""
    responses = respond(
        author,
        tokenizer,
        questions.input_ids,
        sampling,
        seed=[(seed, place) for place in (range(len(questions.texts)) if places is None else places)],
        description=description,
        max_length=questions.max_length,
        stop=questions.stop,
    )
    return [
        Prediction(
            text,
            response.text,
            references,
            rouge_l(response.text, references),
            exact_match(response.text, references),
            response.finished,
            response.clipped,
        )
        for text, references, response in zip(questions.texts, questions.references, responses, strict=True)
    ]


def evaluate_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    template: Template,
    limits: Limits,
    sampling: Sampling,
    *,
    seeds: Sequence[int],
    batch_size: int,
    places: Sequence[int] | None = None,
) -> Evaluated:
    """Answer `rows` with a model in memory and score the answers; its mode and the random state are left as they were.

    `places` are those of the rows among all that the seeds are for; by default these are all.

    Raises:
        Mistake: a row has no prompt, or nothing to compare an answer with.
    """
    questions = Questions.of(rows, template, tokenizer, limits)
    author = engine_of(model, "batches", batch_size)
    return Evaluated(
        {
            seed: predict(
                author,
                tokenizer,
                questions,
                sampling,
                seed=seed,
                places=places,
                description=f"seed {seed}",
            )
            for seed in seeds_that_matter(sampling, seeds)
        }
    )
