"""`stillhouse evaluate`: data files x seeds, each answered once, and one table of scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from stillhouse import processes, store
from stillhouse.data.encode import Limits
from stillhouse.data.templates import build
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.evaluation.kept import Keeper, out_folder
from stillhouse.evaluation.measures import Measure, write_measures
from stillhouse.evaluation.predictions import Evaluated, Prediction, Questions, predict, seeds_that_matter
from stillhouse.evaluation.sources import rows_of
from stillhouse.evaluation.terminal import print_rows, speaker, spread
from stillhouse.model_folders import remark
from stillhouse.rollout import Engine, Sampling, chosen
from stillhouse.rollout.author import identify

if TYPE_CHECKING:
    from stillhouse.recipe import EvaluateOptions

SCORES = "scores.json"
_SCORES = ("rougeL", "exact_match")
_COUNTS = ("empty", "unfinished", "clipped", "cut")
_CHOSEN = (
    "model", "template", "limit", "max_length", "max_prompt_length", "cut", "bos", "max_new_tokens", "temperature",
    "top_p", "no_repeat_ngram_size", "batch_size", "dtype",
)  # fmt: skip
_ENGINE = {"engine": "batches", "server": None}  # is named where it is another one than these


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Answer and score every row of every data file, once for each seed; keep predictions and scores; print a table.

    Predictions that are there already, whole and made with the same, are not made again. Greedy answers
    (`temperature` 0) are made for the first seed only. Under a launcher of several processes each answers its share of
    the rows; what is written is the same.

    Returns:
        What `<out>/scores.json` holds: {model, settings, data: {name: {rows, rougeL: {mean, std, per_seed},
        exact_match: {...}, empty, unfinished, clipped, cut}}}. Scores are in per cent; std is the sample standard
        deviation over seeds, None for one seed; counts are summed over seeds, but rows and cut.

    Raises:
        Mistake: a file, a row, the model or an option is wrong, or there are predictions of other settings.
    """
    processes.meet()
    say = speaker(quiet=not processes.is_first())
    out = out_folder(options.model, options.out)
    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
    )
    seeds = seeds_that_matter(sampling, options.seeds)
    if len(seeds) < len(options.seeds):
        say(f"temperature 0: every seed gives the same answers, only {seeds[0]} is used")
    if said := remark(options.model):
        say(said)
    tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
    questions = _questions(options, tokenizer, say)
    model_hash = identify(options.model, trust_remote_code=options.trust_remote_code)
    answers = _Answers(options, sampling, tokenizer, model_hash, out, say)
    evaluated = {
        name: Evaluated({seed: answers.of(name, asked, seed) for seed in seeds}) for name, asked in questions.items()
    }
    report = {
        "model": options.model,
        "settings": {key: value for key, value in _chosen(options).items() if key != "model"} | {"seeds": seeds},
        "data": {name: _entry(questions[name], found) for name, found in evaluated.items()},
    }
    if processes.is_first():
        store.write_json(out / SCORES, report)
        write_measures(out, [measure for name, found in evaluated.items() for measure in _measures(name, found)])
        print_table(report["data"])
    say(f"predictions and scores are in {out}")
    return report


@dataclass
class _Answers:
    """A model's answers: those that are on disk, and new ones for the rest; the model is loaded for new ones only."""

    options: EvaluateOptions
    sampling: Sampling
    tokenizer: PreTrainedTokenizerBase
    model_hash: str
    out: Path
    say: Callable[[str], None]

    @cached_property
    def author(self) -> Engine:
        return chosen(self.options)

    def of(self, name: str, questions: Questions, seed: int) -> list[Prediction]:
        """The answers to the questions of data set `name`, drawn with `seed`."""
        found = {"model": self.model_hash, "data": questions.hash}
        keeper = Keeper(self.out / name / f"seed{seed}", _chosen(self.options), found, self.options.overwrite)
        lines = processes.by_first(lambda: keeper.kept(self.say, "answered anew"))
        if lines is not None:
            return [Prediction.from_line(line) for line in lines]
        predictions = self._anew(questions, seed, f"{name}, seed {seed}")
        processes.by_first(lambda: keeper.write([prediction.as_line() for prediction in predictions]))
        return predictions

    def _anew(self, questions: Questions, seed: int, description: str) -> list[Prediction]:
        """Each process answers every so many-th of the questions in the order of their lengths."""
        by_length = sorted(range(len(questions.texts)), key=lambda place: len(questions.input_ids[place]))
        places = sorted(processes.share_of(by_length))
        predictions = predict(
            self.author,
            self.tokenizer,
            questions.only(places),
            self.sampling,
            seed=seed,
            description=description,
            places=places,
        )
        everybody = dict(processes.joined(list(zip(places, predictions, strict=True))))
        return [everybody[place] for place in range(len(questions.texts))]


def _chosen(options: EvaluateOptions) -> dict[str, Any]:
    """What of the options the answers depend on."""
    engine = {key: getattr(options, key) for key, usual in _ENGINE.items() if getattr(options, key) != usual}
    return {key: getattr(options, key) for key in _CHOSEN} | engine


def _questions(
    options: EvaluateOptions, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> dict[str, Questions]:
    """The questions of each data set, by its name; all files are read before anything is answered."""
    limits = Limits(options.max_length, options.max_prompt_length, cut=options.cut, bos=options.bos)
    template = build(options.template, tokenizer)
    questions = {}
    for source in options.sources:
        rows, remarks = rows_of(source, options.limit)
        for remark_on_rows in remarks:
            say(remark_on_rows)
        questions[source.name] = Questions.of(rows, template, tokenizer, limits)
    return questions


def _entry(questions: Questions, evaluated: Evaluated) -> dict[str, Any]:
    """The entry of a data set in scores.json."""
    per_seed = evaluated.per_seed
    every = [prediction for predictions in evaluated.predictions.values() for prediction in predictions]
    return {
        "rows": len(questions.texts),
        "rougeL": _spread({seed: scores.rouge_l for seed, scores in per_seed.items()}),
        "exact_match": _spread({seed: scores.exact_match for seed, scores in per_seed.items()}),
        "empty": sum(not prediction.prediction.strip() for prediction in every),
        "unfinished": sum(not prediction.finished for prediction in every),
        "clipped": sum(prediction.clipped for prediction in every),
        "cut": questions.cut,
    }


def _measures(name: str, evaluated: Evaluated) -> list[Measure]:
    """What is compared between models, answer by answer."""
    by_seed = evaluated.predictions.items()
    return [
        Measure(f"{name} ROUGE-L", {seed: [100 * found.rouge_l for found in every] for seed, every in by_seed}),
        Measure(
            f"{name} exact match", {seed: [100.0 * found.exact_match for found in every] for seed, every in by_seed}
        ),
    ]


def print_table(data: Mapping[str, Mapping[str, Any]]) -> None:
    """Print one line for each data set."""
    rows = [
        [name, str(entry["rows"]), *(spread(entry[score]["mean"], entry[score]["std"]) for score in _SCORES),
         *(str(entry[key]) for key in _COUNTS)]
        for name, entry in data.items()
    ]  # fmt: skip
    print_rows(("data", "rows", "ROUGE-L", "exact match", *_COUNTS), rows)


def _spread(per_seed: Mapping[int, float]) -> dict[str, Any]:
    values = list(per_seed.values())
    return {
        "mean": fmean(values),
        "std": stdev(values) if len(values) > 1 else None,
        "per_seed": {str(seed): value for seed, value in per_seed.items()},
    }
