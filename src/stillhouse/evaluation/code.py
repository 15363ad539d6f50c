"""`stillhouse evaluate code`: programs that a model writes, run against the tests of their problems in sandboxes.

<out>/code/<data set>/seed<seed>/           the programs, kept as all predictions are
<out>/code/<data set>/seed<seed>-verdicts/  a line for each program that was run, kept in the same way
<out>/code/code.json, measures.json         pass@k, counts of verdicts, the sandbox and its limits
"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse import sandbox, store
from stillhouse.data import Row, read_rows
from stillhouse.data.encode import Limits
from stillhouse.data.problems import Problem, read_problems
from stillhouse.data.templates import build
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.evaluation import evalplus
from stillhouse.evaluation.kept import Keeper, out_folder
from stillhouse.evaluation.measures import MEASURES, Measure, write_measures
from stillhouse.evaluation.pass_at_k import pass_at_k
from stillhouse.evaluation.predictions import seeds_that_matter
from stillhouse.evaluation.terminal import speaker, spread
from stillhouse.mistakes import Mistake
from stillhouse.model_folders import remark
from stillhouse.progress import track
from stillhouse.recipe.scorers import evalplus_folder, evalplus_identity
from stillhouse.rollout import Sampling, encode_prompts, end_of_turn, respond
from stillhouse.rollout.author import identify, load_author
from stillhouse.store.digests import of_bytes
from stillhouse.store.records import dumps

if TYPE_CHECKING:
    from stillhouse.recipe import CodeOptions

RESULTS = "code.json"
_WRITING = (
    "model", "prompt", "shots", "limit", "samples", "max_length", "max_new_tokens", "temperature", "top_p",
    "batch_size", "dtype",
)  # fmt: skip
# Programs that run at a time: more than there are cores would fail by the clock for want of one.
WORKERS = min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
_RUNNING = ("time_limit", "memory_limit")
_TEMPLATES = {"completion": "plain", "chat": "chat"}

Lines = list[dict[str, Any]]


def evaluate_code(options: CodeOptions) -> dict[str, Any]:
    """Have a model write programs for every problem; run them where `run_generated_code` allows it; print pass@k.

    Programs, and verdicts on them, that are there already and made with the same are not made again.

    Returns:
        What `<out>/code/code.json` holds: {model, settings, sandbox: {kind, system_calls_filtered}, limits, data:
        {name: {problems, pass@k: {k: {mean, std, per_seed}}, verdicts: {verdict: count}, unfinished, per_problem:
        {task: {seed: [verdict of each sample]}}}}}; rates in per cent. Empty where nothing was run.

    Raises:
        Mistake: a file, a row, the model or an option is wrong; no sandbox works; there are results of other settings.
    """
    say = speaker()
    out = out_folder(options.model, options.out) / "code"
    problems = {
        name: read_problems(path, limit=options.limit, shots=options.shots) for name, path in options.sources.items()
    }
    kind = sandbox.choose(options.sandbox) if options.run_generated_code else None
    if kind not in (None, "namespaces") and options.scorer == "evalplus":
        raise Mistake("sandbox", f"EvalPlus cannot write its results in '{kind}'", "it takes --sandbox=namespaces")
    running = None if kind is None else _Running(options, kind, out, say)
    if said := remark(options.model):
        say(said)
    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p)
    seeds = seeds_that_matter(sampling, options.seeds)
    if len(seeds) < len(options.seeds):
        say(f"temperature 0: every seed gives the same programs, only {seeds[0]} is used")
    writing = _Writing(options, sampling, out, say)
    programs = {(name, seed): writing.of(name, asked, seed) for name, asked in problems.items() for seed in seeds}
    if running is None or kind is None:
        for summary in (*out.glob("code.json*"), *out.glob(f"{MEASURES}*")):  # of programs that are there no more
            summary.unlink()
        say(f"the programs in {out} were not run: that takes --run-generated-code, which runs them in a sandbox")
        return {}
    if kind == "none":
        say("--sandbox=none: the programs run with your rights, and can see their tests")
    verdicts = {key: running.of(key, problems[key[0]], lines) for key, lines in programs.items()}
    if options.scorer == "evalplus":  # its extra tests are a column of their own
        problems |= {f"{name}+": asked for name, asked in problems.items()}
        for (name, seed), lines in list(verdicts.items()):
            verdicts[f"{name}+", seed] = [{**line, "verdict": line["plus"]} for line in lines]
            programs[f"{name}+", seed] = programs[name, seed]
    report = {
        "model": options.model,
        "settings": {key: getattr(options, key) for key in (*_WRITING, "scorer") if key != "model"} | {"seeds": seeds},
        "sandbox": sandbox.describe(kind),
        "limits": running.limits.as_record(),
        "data": {},
    }
    measures: list[Measure] = []
    for name, asked in problems.items():
        found = {seed: verdicts[name, seed] for seed in seeds}
        columns = _measures(name, found, options)
        entry = _entry(asked, found, columns, options)
        entry["unfinished"] = sum(not line["finished"] for seed in seeds for line in programs[name, seed])
        report["data"][name] = entry
        measures += columns
    store.write_json(out / RESULTS, report)
    write_measures(out, measures)
    _print(report)
    say(f"programs, verdicts and results are in {out}")
    return report


@dataclass
class _Writing:
    """A model's programs: those that are on disk, and new ones for the rest; loaded for new ones only."""

    options: CodeOptions
    sampling: Sampling
    out: Path
    say: Callable[[str], None]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.options.model, trust_remote_code=self.options.trust_remote_code)

    @cached_property
    def model(self) -> PreTrainedModel:
        options = self.options
        return load_author(options.model, dtype=options.dtype, trust_remote_code=options.trust_remote_code)

    @cached_property
    def identity(self) -> str:
        return identify(self.options.model, trust_remote_code=self.options.trust_remote_code)

    def of(self, name: str, problems: Sequence[Problem], seed: int) -> Lines:
        """A line for each program, `samples` for each problem: {task, sample, answer, candidate, finished, clipped}."""
        options = self.options
        template = build(_TEMPLATES[options.prompt], self.tokenizer)
        rows = [Row({"prompt": problem.prompt(options.prompt)}, problem.task) for problem in problems]
        limits = Limits(options.max_length, options.max_length)
        prompts = encode_prompts(rows, template, self.tokenizer, limits)
        stop = end_of_turn(template, self.tokenizer)
        asked = of_bytes(dumps([prompts.input_ids, stop, [asdict(problem) for problem in problems]])).xxh3
        chosen = {key: getattr(options, key) for key in _WRITING}
        found = {"model": self.identity, "data": asked}
        keeper = Keeper(self.out / name / f"seed{seed}", chosen, found, options.overwrite)
        lines = keeper.kept(self.say, "written anew")
        if lines is not None:
            return lines
        places = [(place, sample) for place in range(len(problems)) for sample in range(options.samples)]
        responses = respond(
            self.model,
            self.tokenizer,
            [prompts.input_ids[place] for place, _ in places],
            self.sampling,
            seed=[(seed, place, sample) for place, sample in places],
            batch_size=options.batch_size,
            description=f"{name}, seed {seed}",
            max_length=options.max_length,
            stop=stop,
        )
        lines = [
            {
                "task": problems[place].task,
                "sample": sample,
                "answer": response.text,
                "candidate": problems[place].candidate(response.text, options.prompt),
                "finished": response.finished,
                "clipped": response.clipped,
            }
            for (place, sample), response in zip(places, responses, strict=True)
        ]
        keeper.write(lines)
        return lines


class _Running:
    """Verdicts on programs: those that are on disk, and new ones for the rest."""

    def __init__(self, options: CodeOptions, kind: sandbox.Kind, out: Path, say: Callable[[str], None]) -> None:
        self.options, self.out, self.say = options, out, say
        self.kind: sandbox.Kind = kind
        self.limits = sandbox.Limits(
            wall_s=options.time_limit, cpu_s=math.ceil(options.time_limit), memory_mb=options.memory_limit
        )
        self.package = evalplus_folder(options.evalplus) if options.scorer == "evalplus" else ""

    def of(self, key: tuple[str, int], problems: Sequence[Problem], lines: Lines) -> Lines:
        """A line for each program: {task, sample, verdict, detail, seconds}."""
        name, seed = key
        by_task = {problem.task: problem for problem in problems}
        trials = [
            sandbox.Trial(line["candidate"], by_task[line["task"]].checks, by_task[line["task"]].names)
            for line in lines
        ]
        found = {"model": of_bytes(dumps([asdict(trial) for trial in trials])).xxh3}
        rows = self._rows_of_evalplus(name, lines) if self.package else []
        if self.package:
            found |= {
                "data": of_bytes(evalplus.as_lines(rows).encode()).xxh3,
                "EvalPlus": evalplus_identity(self.package),
            }
        chosen = {
            "model": self.options.model,
            "sandbox": self.kind,
            "scorer": self.options.scorer,
            **{key: getattr(self.options, key) for key in _RUNNING},
        }
        keeper = Keeper(self.out / name / f"seed{seed}-verdicts", chosen, found, self.options.overwrite)
        kept = keeper.kept(self.say, "run anew")
        if kept is not None:
            return kept
        if self.package:
            found_lines = self._by_evalplus(rows, lines)
        else:
            verdicts = self._judged(trials, f"running {name}, seed {seed}")
            found_lines = [
                {"task": line["task"], "sample": line["sample"], **asdict(verdict)}
                for line, verdict in zip(lines, verdicts, strict=True)
            ]
        keeper.write(found_lines)
        return found_lines

    def _rows_of_evalplus(self, name: str, lines: Lines) -> list[Mapping[str, Any]]:
        """Its data of the problems that `lines` are for."""
        tasks = {line["task"] for line in lines}
        rows = [row.fields for row in read_rows(self.options.sources[name], split="test")]
        return [row for row in rows if row.get("task_id") in tasks]

    def _by_evalplus(self, rows: Sequence[Mapping[str, Any]], lines: Lines) -> Lines:
        workers = self.options.workers or WORKERS
        limits = sandbox.Limits(
            wall_s=60 + self.options.time_limit * len(lines),
            cpu_s=60 + math.ceil(self.options.time_limit * len(lines)),
            memory_mb=max(4096, self.options.memory_limit),
            processes=4 * workers,
            files_mb=256,
            open_files=1024,
            output_kb=1 << 18,
        )
        return evalplus.score(self.kind, self.package, rows, lines, limits)

    def _judged(self, trials: Sequence[sandbox.Trial], description: str) -> Iterator[sandbox.Verdict]:
        workers = self.options.workers or WORKERS
        with ThreadPoolExecutor(workers) as pool:
            judged = pool.map(lambda trial: sandbox.judge(self.kind, trial, self.limits), trials)
            try:
                yield from track(judged, description, total=len(trials))
            except sandbox.Unavailable as error:
                raise Mistake("--sandbox", f"{self.kind} worked, and no longer does: {error}") from None
            finally:
                pool.shutdown(cancel_futures=True)


def _measures(name: str, verdicts: Mapping[int, Lines], options: CodeOptions) -> list[Measure]:
    """pass@k in per cent, problem by problem."""
    per_seed = {seed: _passed(lines) for seed, lines in verdicts.items()}
    return [
        Measure(
            f"{name} pass@{k}",
            {
                seed: [100 * pass_at_k(options.samples, count, k) for count in passed.values()]
                for seed, passed in per_seed.items()
            },
        )
        for k in sorted(set(options.k))
    ]


def _passed(lines: Lines) -> dict[str, int]:
    """How many samples of each problem passed, in the order of the problems."""
    passed = dict.fromkeys((line["task"] for line in lines), 0)
    for line in lines:
        passed[line["task"]] += line["verdict"] == "passed"
    return passed


def _entry(
    problems: Sequence[Problem], verdicts: Mapping[int, Lines], columns: Sequence[Measure], options: CodeOptions
) -> dict[str, Any]:
    """The entry of a data set in code.json."""
    counts = Counter(line["verdict"] for lines in verdicts.values() for line in lines)
    per_problem: dict[str, dict[str, list[str]]] = {problem.task: {} for problem in problems}
    for seed, lines in verdicts.items():
        for line in lines:
            per_problem[line["task"]].setdefault(str(seed), []).append(line["verdict"])
    return {
        "problems": len(problems),
        "samples": options.samples,
        "pass@k": {
            column.name.rpartition("@")[2]: {
                "mean": column.mean,
                "std": column.std,
                "per_seed": {str(seed): value for seed, value in column.per_seed.items()},
            }
            for column in columns
        },
        "verdicts": {verdict: counts[verdict] for verdict in sandbox.VERDICTS},
        "per_problem": per_problem,
    }


def _print(report: Mapping[str, Any]) -> None:
    """One line for each data set, tab-separated where nobody watches a terminal."""
    lines = Console(width=None if sys.stdout.isatty() else 500, highlight=False, markup=False)
    for name, entry in report["data"].items():
        rates = [f"pass@{k} {spread(rate['mean'], rate['std'])}" for k, rate in entry["pass@k"].items()]
        counts = ", ".join(f"{count} {verdict}" for verdict, count in entry["verdicts"].items() if count)
        lines.print(f"{name}: {', '.join(rates)} of {entry['problems']} problems ({counts}); {_place(report)}")


def _place(report: Mapping[str, Any]) -> str:
    kind = report["sandbox"]["kind"]
    return "run without a sandbox" if kind == "none" else f"run in {kind}"
