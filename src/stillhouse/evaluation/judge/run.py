"""`stillhouse evaluate judge`: answers of two turns, a grade for each from another model, and one table of means.

<out>/judge/seed<seed>/predictions.jsonl   the student's answers
<out>/judge/judgements.jsonl               a line for each reply of the judge, written when it comes
<out>/judge/judge.json                     means by turn and category
<out>/judge/measures.json                  grades question by question
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse import store
from stillhouse.data.questions import TURNS, Question, read_questions
from stillhouse.data.templates import build
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.evaluation.judge.answers import Answers, Asking, answer
from stillhouse.evaluation.judge.client import Server
from stillhouse.evaluation.judge.log import Judgement, Log, key_of
from stillhouse.evaluation.judge.prompts import judging
from stillhouse.evaluation.kept import Keeper, out_folder
from stillhouse.evaluation.measures import Measure, write_measures
from stillhouse.evaluation.terminal import print_rows, speaker, spread
from stillhouse.mistakes import Mistake
from stillhouse.model_folders import remark
from stillhouse.models import load_config, longest_input
from stillhouse.progress import track
from stillhouse.rollout.author import identify, load_author
from stillhouse.store.digests import of_bytes
from stillhouse.store.records import dumps

if TYPE_CHECKING:
    from stillhouse.recipe import JudgeOptions

JUDGE, JUDGEMENTS = "judge.json", "judgements.jsonl"
BOTH = "both"
_COLUMNS = ("1", "2", BOTH)
_CHOSEN = (
    "model", "template", "limit", "max_length", "bos", "max_new_tokens", "temperature", "top_p", "batch_size", "dtype",
)  # fmt: skip

Grades = Mapping[tuple[int, str, int], Judgement]  # by seed, question and turn (0 or 1)


def evaluate_by_judge(options: JudgeOptions) -> dict[str, Any]:
    """Let a student answer every question, once for each seed, and a judge grade both turns; print a table.

    Answers that are there already, whole and made with the same, are not made again, and nothing is judged twice.

    Returns:
        What `<out>/judge/judge.json` holds: {model, settings, judge: {address, asked, models, replies, tokens},
        questions, overall: {"1", "2", "both": {mean, std, per_seed}}, categories: {name: the same}, unparsed: {"1",
        "2"}, empty, unfinished, clipped, cut}. Grades are from 1 to 10. A judgement without a rating, after all
        attempts, is in no mean, and counted in `unparsed`; a mean of nothing is None. The counts are of answers, summed
        over turns and seeds.

    Raises:
        Mistake: a file, the model, an option or the key is wrong, the judge refuses or does not answer, or there are
            answers of other settings.
    """
    say = speaker()
    out = out_folder(options.model, options.out) / "judge"
    server = _server(options)
    log = Log.read(out / JUDGEMENTS)
    questions = read_questions(options.data, limit=options.limit)
    if said := remark(options.model):
        say(said)
    tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
    model_hash = identify(options.model, trust_remote_code=options.trust_remote_code)
    student = _Student(options, questions, tokenizer, model_hash, out, say)
    seeds = options.seeds[:1] if student.greedy else options.seeds
    if len(seeds) < len(options.seeds):
        say(f"temperature 0: every seed gives the same answers, only {seeds[0]} is used")
    answers = {seed: student.answers(seed) for seed in seeds}
    grades = _judged(questions, answers, server, log, options)
    report = _report(options, questions, answers, grades)
    store.write_json(out / JUDGE, report)
    measures = list(_measures(questions, seeds, grades))
    write_measures(out, measures)
    _print(report)
    if missing := sum(report["unparsed"].values()):
        say(f"{missing} judgements have no rating and are in no mean; measures.json has only what is whole")
    say(f"answers, judgements and means are in {out}")
    return report


def _server(options: JudgeOptions) -> Server:
    name = options.key_variable
    key = "" if name is None else os.environ.get(name, "").strip()
    if name is not None and not key:
        raise Mistake(name, "is not set, and the server's key is to be in it", f"write export {name}=...")
    if not (key.isascii() and (key.isprintable() or not key)):
        raise Mistake(str(name), "holds characters that no key has", "set the variable anew")
    return Server(
        options.judge, options.judge_model, key, options.judge_tokens, options.timeout, options.retries, options.wait
    )


@dataclass
class _Student:
    """A student's answers: those that are on disk, and new ones; it is loaded for new ones only."""

    options: JudgeOptions
    questions: Sequence[Question]
    tokenizer: PreTrainedTokenizerBase
    model_hash: str
    out: Path
    say: Callable[[str], None]

    @cached_property
    def model(self) -> PreTrainedModel:
        options = self.options
        return load_author(options.model, dtype=options.dtype, trust_remote_code=options.trust_remote_code)

    @cached_property
    def asking(self) -> Asking:
        options = self.options
        config = load_config(options.model, trust_remote_code=options.trust_remote_code)
        return Asking(
            build(options.template, self.tokenizer),
            options.max_new_tokens,
            options.temperature,
            options.top_p,
            min(options.max_length, longest_input(config) or options.max_length),
            options.bos,
            options.batch_size,
        )

    @property
    def greedy(self) -> bool:
        """Whether a seed changes nothing."""
        return all(self.asking.sampling(question.category).greedy for question in self.questions)

    def answers(self, seed: int) -> list[Answers]:
        """The answers to all questions, drawn with `seed`."""
        chosen = {key: getattr(self.options, key) for key in _CHOSEN}
        asked = [(question.id, question.category, question.turns) for question in self.questions]
        found = {"model": self.model_hash, "data": of_bytes(dumps(asked)).xxh3}
        keeper = Keeper(self.out / f"seed{seed}", chosen, found, self.options.overwrite)
        lines = keeper.kept(self.say, "answered anew")
        if lines is not None:
            return [Answers.from_line(line) for line in lines]
        answers = answer(self.model, self.tokenizer, self.questions, self.asking, seed)
        keeper.write([one.as_line() for one in answers])
        return answers


def _judged(
    questions: Sequence[Question],
    answers: Mapping[int, Sequence[Answers]],
    server: Server,
    log: Log,
    options: JudgeOptions,
) -> Grades:
    """A judgement of every answer, several asked for at a time; after the first failure nothing new is sent."""
    asked = {
        (seed, question.id, turn): judging(question, given.texts, turn)
        for seed, every in answers.items()
        for question, given in zip(questions, every, strict=True)
        for turn in range(TURNS)
    }
    keys = {place: key_of(server, messages) for place, messages in asked.items()}
    first = {key: place for place, key in reversed(keys.items())}  # the same answer of two seeds is judged once
    with ThreadPoolExecutor(options.requests) as pool:
        waiting = {key: pool.submit(log.judge, server, asked[place], options.attempts, _notes(place))
                   for key, place in reversed(first.items())}  # fmt: skip
        try:
            for done in track(as_completed(waiting.values()), "judging", len(waiting)):
                done.result()
        except BaseException:
            server.stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {place: waiting[key].result() for place, key in keys.items()}


def _notes(place: tuple[int, str, int]) -> dict[str, Any]:
    seed, question, turn = place
    return {"question_id": question, "seed": seed, "turn": turn + 1}


def _report(
    options: JudgeOptions, questions: Sequence[Question], answers: Mapping[int, Sequence[Answers]], grades: Grades
) -> dict[str, Any]:
    seeds = list(answers)
    judgements = {id(judgement): judgement for judgement in grades.values()}.values()  # two seeds may share one
    replies = [reply for judgement in judgements for reply in judgement.replies]
    counted = [reply.tokens for reply in replies if reply.tokens is not None]
    every = [one for given in answers.values() for one in given]
    categories = {name: [asked for asked in questions if asked.category == name] for name in
                  dict.fromkeys(asked.category for asked in questions)}  # fmt: skip
    return {
        "model": options.model,
        "settings": {key: getattr(options, key) for key in _CHOSEN if key != "model"} | {"seeds": seeds},
        "judge": {
            "address": options.judge,
            "asked": options.judge_model,
            "models": sorted({reply.model for reply in replies}),
            "replies": len(replies),
            "tokens": {
                "prompt": sum(prompt for prompt, _ in counted),
                "completion": sum(completion for _, completion in counted),
                "uncounted": len(replies) - len(counted),
            },
        },
        "questions": len(questions),
        "overall": _means(questions, seeds, grades),
        "categories": {name: _means(asked, seeds, grades) for name, asked in categories.items()},
        "unparsed": {
            str(turn + 1): sum(judgement.rating is None for (_, _, at), judgement in grades.items() if at == turn)
            for turn in range(TURNS)
        },
        "empty": sum(not text.strip() for one in every for text in one.texts),
        "unfinished": sum(not finished for one in every for finished in one.finished),
        "clipped": sum(clipped for one in every for clipped in one.clipped),
        "cut": sum(cut for one in every for cut in one.cut),
    }


def _means(questions: Iterable[Question], seeds: Sequence[int], grades: Grades) -> dict[str, Any]:
    """The mean grades of `questions`: of the first turn, the second, and both; by seed, and over seeds."""
    names = [question.id for question in questions]
    means = {}
    for column in _COLUMNS:
        per_seed = {}
        for seed in seeds:
            rated = [found for name in names for found in _ratings(grades, seed, name, column) if found is not None]
            per_seed[str(seed)] = fmean(rated) if rated else None
        whole = [mean for mean in per_seed.values() if mean is not None]
        means[column] = {
            "mean": fmean(whole) if whole else None,
            "std": stdev(whole) if len(whole) > 1 else None,
            "per_seed": per_seed,
        }
    return means


def _ratings(grades: Grades, seed: int, question: str, column: str) -> Iterator[float | None]:
    for turn in range(TURNS) if column == BOTH else (int(column) - 1,):
        yield grades[seed, question, turn].rating


def _measures(questions: Sequence[Question], seeds: Sequence[int], grades: Grades) -> Iterator[Measure]:
    """Grades question by question; a column in which one has no rating is left out, since it could not be compared."""
    for column in _COLUMNS:
        rated = {seed: [list(_ratings(grades, seed, asked.id, column)) for asked in questions] for seed in seeds}
        if all(found is not None for every in rated.values() for ratings in every for found in ratings):
            per_item = {seed: [fmean(filter(None, ratings)) for ratings in every] for seed, every in rated.items()}
            yield Measure("judge" if column == BOTH else f"judge turn {column}", per_item)


def _print(report: Mapping[str, Any]) -> None:
    """Print a line for each category, and one for all."""
    rows = [[name, *(_text(means[column]) for column in _COLUMNS)] for name, means in report["categories"].items()]
    rows.append(["all", *(_text(report["overall"][column]) for column in _COLUMNS)])
    print_rows(("category", "turn 1", "turn 2", "both"), rows)


def _text(means: Mapping[str, float | None]) -> str:
    return "no rating" if means["mean"] is None else spread(means["mean"], means["std"])
