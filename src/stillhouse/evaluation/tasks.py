"""`stillhouse evaluate tasks`: tasks of lm-evaluation-harness, each asked once, and one table of scores.

<out>/tasks/tasks.json                     scores of tasks and groups, in lm-eval's own units
<out>/tasks/measures.json                  numbers document by document
<out>/tasks/<task>/predictions.jsonl       a line for each document and filter: question, answer, scores
<out>/tasks/<task>/result.json             the task's entry in tasks.json
<out>/tasks/files/<task>.yaml              the task file that --data made
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from stillhouse import store
from stillhouse.adapters import bare
from stillhouse.data.tokenizer import leading_ids, load_tokenizer
from stillhouse.evaluation import harness
from stillhouse.evaluation.kept import Keeper, out_folder
from stillhouse.evaluation.measures import Measure, write_measures
from stillhouse.evaluation.terminal import print_rows, speaker
from stillhouse.mistakes import Mistake
from stillhouse.model_folders import remark
from stillhouse.models import load_config, longest_input
from stillhouse.progress import track
from stillhouse.recipe.evaluating import LEADERBOARD
from stillhouse.rollout.author import identify, load_author
from stillhouse.store.digests import of_bytes

if TYPE_CHECKING:
    from stillhouse.recipe import TasksOptions

TASKS, RESULT = "tasks.json", "result.json"
_SEED = 1234  # lm-eval's own, of few-shot examples
_NEW_TOKENS = 256  # lm-eval's own, where neither task nor user says
_CHOSEN = (
    "model", "limit", "batch_size", "bos", "apply_chat_template", "fewshot_as_multiturn", "system_instruction",
    "max_new_tokens", "temperature", "top_p", "seed", "dtype",
)  # fmt: skip

# Fractions, which a table shows in per cent; other metrics (perplexity, bleu) are shown as they are.
_FRACTIONS = {
    "acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em", "f1", "pass@1", "mc1", "mc2",
    "prompt_level_strict_acc", "prompt_level_loose_acc", "inst_level_strict_acc", "inst_level_loose_acc",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One of the six columns of the first Open LLM Leaderboard: shots, and the score that it showed."""

    shots: int
    metric: str


# Beeching et al., Open LLM Leaderboard, 2023, as TAID (Shing et al., 2025) reports it.
PARTS = {
    "arc_challenge": Part(25, "acc_norm,none"),
    "hellaswag": Part(10, "acc_norm,none"),
    "truthfulqa_mc2": Part(0, "acc,none"),
    "mmlu": Part(5, "acc,none"),
    "winogrande": Part(5, "acc,none"),
    "gsm8k": Part(5, "exact_match,strict-match"),
}


def evaluate_tasks(options: TasksOptions) -> dict[str, Any]:
    """Ask a model every task, once; keep samples and scores; print a table.

    Results that are there already, whole and made with the same, are not made again.

    Returns:
        What `<out>/tasks/tasks.json` holds: {model, settings, lm_eval, tasks: {name: {version, shots, documents, of,
        cut, scores: {"metric,filter": {value, stderr}}, higher_is_better}}, groups: {name: {scores, members}},
        open_llm_leaderboard: {mean, parts} or None}. `cut` counts requests that lost the beginning of their prompt
        since it is longer than the model's positions; stderr is None where lm-eval has none.

    Raises:
        Mistake: lm-eval is missing, a task or its data is, an option is wrong, or there are results of other settings.
    """
    say = speaker()
    out = out_folder(options.model, options.out) / "tasks"
    if said := remark(options.model):
        say(said)
    version = harness.require()
    shots = _shots(options)
    loaded = harness.load(list(shots), options.data, out / "files")
    tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
    model_hash = identify(options.model, trust_remote_code=options.trust_remote_code)
    _check_options(options, loaded, tokenizer)
    answers = _Answers(options, tokenizer, model_hash, version, out, say)
    asked = [(task, shots[name]) for name, tasks in loaded.members.items() for task in tasks]
    for task, count in asked:
        answers.check(task, loaded.tasks[task], count)
    found = {task: answers.of(task, loaded.tasks[task], count) for task, count in track(asked, "tasks")}
    results = {task: result for task, (result, _) in found.items()}
    report = {
        "model": options.model,
        "settings": {key: getattr(options, key) for key in _CHOSEN if key != "model"},
        "lm_eval": version,
        "tasks": results,
        "groups": _groups(loaded, results),
        LEADERBOARD: leaderboard(results, loaded.members) if LEADERBOARD in options.tasks else None,
    }
    store.write_json(out / TASKS, report)
    seed = _SEED if options.seed is None else options.seed
    write_measures(out, list(_measures(loaded.members, found, seed)))
    _print(report)
    if cut := sum(result["cut"] for result in results.values()):
        say(f"{cut} requests lost the beginning of their prompt, which is longer than the model's positions")
    say(f"samples and scores are in {out}")
    return report


def _shots(options: TasksOptions) -> dict[str, int | None]:
    """Each name that lm-eval knows, with its number of examples; None is the task's own."""
    shots: dict[str, int | None] = {}
    for name in options.tasks:
        if name == LEADERBOARD:
            shots |= {part: PARTS[part].shots for part in PARTS}
        else:
            shots[name] = options.num_fewshot
    if LEADERBOARD in options.tasks and (twice := sorted(PARTS.keys() & set(options.tasks))):
        raise Mistake("tasks", f"{twice[0]} is asked for twice, by {LEADERBOARD} too", "remove one")
    return shots


def _check_options(options: TasksOptions, loaded: harness.Loaded, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse options that would do nothing, or that the tokenizer has no answer to."""
    if options.apply_chat_template and not tokenizer.chat_template:
        raise Mistake("apply_chat_template", "the tokenizer has no chat template", "remove it")
    if options.bos and tokenizer.bos_token_id not in leading_ids(tokenizer):
        wrong = "lm-eval leaves the BOS token to the tokenizer, and this one puts none in front of a text"
        raise Mistake("bos", wrong, "remove it")
    given = [key for key in ("max_new_tokens", "temperature", "top_p") if getattr(options, key) is not None]
    if given and all(task.OUTPUT_TYPE != "generate_until" for task in loaded.tasks.values()):
        raise Mistake(given[0], "is of written answers, and no task here asks for one", "remove it")


@dataclass
class _Answers:
    """Results of a model: those that are on disk, and new ones for the rest; the model is loaded for new ones only."""

    options: TasksOptions
    tokenizer: PreTrainedTokenizerBase
    model_hash: str
    version: str
    out: Path
    say: Callable[[str], None]

    @cached_property
    def room(self) -> int:
        """The most tokens that prompt and answer may have; lm-eval's own 2048 where the model names no limit."""
        options = self.options
        return longest_input(load_config(options.model, trust_remote_code=options.trust_remote_code)) or 2048

    @cached_property
    def wrapped(self) -> Any:
        options = self.options
        model = load_author(options.model, dtype=options.dtype, trust_remote_code=options.trust_remote_code)
        return harness.wrap(
            bare(model), self.tokenizer, batch_size=options.batch_size, max_length=self.room, bos=options.bos
        )

    def check(self, name: str, task: Any, shots: int | None) -> None:
        """Refuse what lm-eval would stumble over, before weights load."""
        if self.options.data is not None and _count(task, shots) and not harness.has_examples(task):
            wrong = f"{name} shows {_count(task, shots)} examples, and there is no train file beside the questions"
            raise Mistake(self.options.data, wrong, "add one, or --num_fewshot=0")
        if self.options.num_fewshot and not _count(task, shots):
            self.say(f"{name} is defined with 0 examples, which --num_fewshot does not change")
        if task.OUTPUT_TYPE == "generate_until" and self._new_tokens(task) >= self.room:
            wrong = (
                f"{name} wants {self._new_tokens(task)} tokens of an answer, and the model has {self.room} positions"
            )
            raise Mistake("max_new_tokens", wrong, "write fewer")

    def of(self, name: str, task: Any, shots: int | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The entry of a task in tasks.json, and a line for each document and filter."""
        options = self.options
        chosen = {key: getattr(options, key) for key in _CHOSEN} | {"num_fewshot": shots}
        found = {"model": self.model_hash, "task": _fingerprint(task, options.limit), "lm-eval": self.version}
        drawn = {**(task.config.generation_kwargs or {}), **options.generation}.get("do_sample", False)
        # lm-eval draws for a batch together, so that another size of it draws other answers.
        keeper = Keeper(self.out / name, chosen, found, options.overwrite, () if drawn else ("batch_size",))
        lines = keeper.kept(self.say, "evaluated anew")
        if lines is not None:
            return store.read_json(keeper.folder / RESULT), lines
        said = harness.evaluate(
            self.wrapped,
            task,
            options.seed,
            num_fewshot=shots,
            limit=options.limit,
            batch_size=options.batch_size,
            apply_chat_template=options.apply_chat_template,
            fewshot_as_multiturn=options.fewshot_as_multiturn,
            system_instruction=options.system_instruction,
            gen_kwargs=options.generation or None,
        )
        samples = said["samples"][name]
        result = {**entry(name, said), "cut": self._cut(task, samples)}
        lines = [as_line(sample) for sample in samples]
        keeper.write(lines, {RESULT: result})
        return result, lines

    def _new_tokens(self, task: Any) -> int:
        own = (task.config.generation_kwargs or {}).get("max_gen_toks", _NEW_TOKENS)
        return self.options.max_new_tokens or int(own)

    def _cut(self, task: Any, samples: Sequence[Mapping[str, Any]]) -> int:
        """How many requests are longer than what the model reads of them."""
        writes = task.OUTPUT_TYPE == "generate_until"
        room = self.room - self._new_tokens(task) if writes else self.room + 1
        first = {sample["doc_id"]: sample for sample in samples}  # the filters of a document share its requests
        texts = (
            str(arguments[0]) if writes else "".join(map(str, arguments))
            for sample in first.values()
            for arguments in sample["arguments"]
        )
        return sum(len(self.wrapped.tok_encode(text)) > room for text in texts)


def _count(task: Any, shots: int | None) -> int:
    """The number of examples: a task that has 0 of its own keeps them, as lm-eval has it."""
    own = task.config.num_fewshot
    return own or 0 if shots is None or own == 0 else shots


def _fingerprint(task: Any, limit: int | None) -> str:
    """A hash of a task's definition, questions and examples; not of where they lie."""
    config = dict(task.dump_config())
    metadata = {key: value for key, value in (config.pop("metadata", None) or {}).items() if key != "config_source"}
    config.pop("dataset_kwargs", None)
    questions = (document for _, document in task.doc_iterator(limit=limit))
    content = [config, metadata, list(questions), list(getattr(getattr(task, "sampler", None), "df", None) or [])]
    return of_bytes(json.dumps(content, default=str, sort_keys=True).encode("utf-8", "backslashreplace")).xxh3


def entry(name: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """A task's scores out of what `simple_evaluate` says."""
    metrics = said["results"][name]
    keys = [key for key in metrics if "," in key and "_stderr," not in key]
    return plain(
        {
            "version": said["versions"].get(name),
            "shots": said["n-shot"].get(name),
            "documents": said["n-samples"][name]["effective"],
            "of": said["n-samples"][name]["original"],
            "scores": {key: {"value": metrics[key], "stderr": metrics.get(_stderr(key))} for key in keys},
            "higher_is_better": said["higher_is_better"].get(name) or {},
        }
    )


def _stderr(key: str) -> str:
    metric, _, by = key.partition(",")
    return f"{metric}_stderr,{by}"


def as_line(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample as predictions.jsonl has it: a prompt that all its requests share stands there once."""
    arguments = sample["arguments"]
    prompts = [str(request[0]) for request in arguments]
    followed = [request[1] for request in arguments if len(request) > 1 and isinstance(request[1], str)]
    return plain(
        {
            "doc_id": sample["doc_id"],
            "filter": sample["filter"],
            "doc": sample["doc"],
            "target": sample["target"],
            "prompts": prompts if len(set(prompts)) > 1 else prompts[:1],
            "continuations": followed,
            "responses": sample["resps"],
            "filtered": sample["filtered_resps"],
            "scores": {metric: sample[metric] for metric in sample["metrics"]},
        }
    )


def plain(value: Any) -> Any:
    """`value` as JSON can hold it; a number that is not finite, and lm-eval's "N/A", are None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):  # numpy's and torch's
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    return None if value == "N/A" else str(value)


def _groups(loaded: harness.Loaded, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """lm-eval's own scores of its groups."""
    metrics = {name: _metrics(result) for name, result in results.items()}
    groups = {}
    for name, group in loaded.groups.items():
        said = group.aggregate(metrics)
        keys = [key for key in said if "," in key and "_stderr," not in key]
        members = [task.config.task for task in group.get_all_tasks()]
        scores = {key: {"value": said[key], "stderr": said.get(_stderr(key))} for key in keys}
        groups[name] = plain({"scores": scores, "members": members})
    return groups


def _metrics(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as lm-eval's groups read it."""
    scores = result["scores"]
    found = {key: score["value"] for key, score in scores.items()}
    errors = {_stderr(key): "N/A" if score["stderr"] is None else score["stderr"] for key, score in scores.items()}
    return {**found, **errors, "sample_len": result["documents"]}


def leaderboard(results: Mapping[str, Mapping[str, Any]], members: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The six scores of the Open LLM Leaderboard and their mean, in per cent; MMLU is the mean over its subjects."""
    parts = {
        name: 100 * fmean(results[task]["scores"][part.metric]["value"] for task in members[name])
        for name, part in PARTS.items()
    }
    return {"mean": fmean(parts.values()), "parts": parts}


def _measures(
    members: Mapping[str, Sequence[str]],
    found: Mapping[str, tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]],
    seed: int,
) -> Iterable[Measure]:
    """One measure for each asked name, metric and filter: over all documents, of a group those of all its tasks."""
    for name, tasks in members.items():
        values: dict[tuple[str, str], list[float]] = {}
        higher = {metric: better for task in tasks for metric, better in found[task][0]["higher_is_better"].items()}
        for line in (line for task in tasks for line in found[task][1]):
            for metric, value in line["scores"].items():
                if isinstance(value, bool | int | float):
                    values.setdefault((metric, line["filter"]), []).append(value)
        for (metric, by), numbers in values.items():
            scale = 100 if metric in _FRACTIONS else 1
            per_item = {seed: [float(scale * number) for number in numbers]}
            yield Measure(_title(name, metric, by), per_item, higher.get(metric) is not False)


def _title(name: str, metric: str, by: str) -> str:
    return f"{name} {metric}" if by == "none" else f"{name} {metric} ({by})"


def _print(report: Mapping[str, Any]) -> None:
    """Print a line for each score."""
    rows = []
    for name, result in report["tasks"].items():
        for key, score in result["scores"].items():
            rows.append([name, str(result["shots"]), str(result["documents"]), *_cells(key, score)])
    for name, group in report["groups"].items():
        for key, score in group["scores"].items():
            rows.append([name, "", str(len(group["members"])) + " tasks", *_cells(key, score)])
    if report[LEADERBOARD] is not None:
        rows.append([LEADERBOARD, "", "6 tasks", "mean", "", f"{report[LEADERBOARD]['mean']:.2f}", ""])
    print_rows(("task", "shots", "documents", "metric", "filter", "score", "stderr"), rows)


def _cells(key: str, score: Mapping[str, float | None]) -> list[str]:
    metric, _, by = key.partition(",")
    scale = 100 if metric in _FRACTIONS else 1
    numbers = ["" if number is None else f"{scale * number:.2f}" for number in (score["value"], score["stderr"])]
    return [metric, "" if by == "none" else by, *numbers]
