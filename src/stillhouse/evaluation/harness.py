"""lm-evaluation-harness as a library: its tasks by name, one `simple_evaluate` for each, and silence meanwhile.

It is imported here only, and only when asked for: it takes seconds, and few installations have it. What its tasks,
prompts, filters and metrics are is its own matter. Its index of 14,000 files takes half a minute to build, so that
single tasks are looked for by their lines of text, and read from their own folders.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from stillhouse import store
from stillhouse.mistakes import Mistake, shorten, unknown_name
from stillhouse.recipe.scorers import lm_eval_version

_NAMED = re.compile(r"^(task|group|tag):[ \t]+[\"']?([\w.:-]+)[\"']?[ \t]*$", re.MULTILINE)
_TAGS = re.compile(r"^tag:[ \t]*\n((?:[ \t]*-[ \t]*[\"']?[\w.:-]+[\"']?[ \t]*\n?)+)", re.MULTILINE)
_LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_BESIDE = "train"  # the name of the file, beside that of the questions, that examples come from


@dataclass(frozen=True)
class Loaded:
    """Tasks with their data in memory.

    Attributes:
        tasks: lm-eval's, by name.
        groups: lm-eval's, by name, those inside others included.
        members: the tasks that each asked name stands for.
    """

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    members: Mapping[str, list[str]]


def require() -> str:
    """The version of lm-eval.

    Raises:
        Mistake: it is not installed.
    """
    try:
        with quiet():
            import_module("lm_eval.evaluator")
            return str(lm_eval_version())
    except ImportError:
        raise Mistake("evaluate tasks", "needs lm-eval", "pip install 'stillhouse[eval]'") from None


@contextmanager
def quiet() -> Iterator[None]:
    """What lm-eval prints, logs and warns of is dropped; its progress bars are left where somebody watches them."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    bars = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), bars:
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def load(names: Sequence[str], data: str | None, folder: Path) -> Loaded:
    """The tasks that `names` stand for, with their data.

    Args:
        names: of tasks, groups or tags.
        data: a file with the rows of the one task that is named; None: each task's own, from the Hub.
        folder: where the task file goes that is made for `data`.

    Raises:
        Mistake: no such task, its data cannot be had or are not of its shape, or nothing here can evaluate it.
    """
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    members: dict[str, list[str]] = {}
    manager = _manager(names) if data is None else _manager_of(names[0], data, folder)
    for name in names:
        found = _loaded(manager, name, data)
        members[name] = list(found["tasks"])
        if twice := members[name] and sorted(tasks.keys() & found["tasks"].keys()):
            raise Mistake("tasks", f"{twice[0]} is asked for twice, by {name} too", "name it, or its group")
        tasks |= found["tasks"]
        groups |= found.get("groups", {})
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise _unsafe(name)
        if getattr(task, "MULTIMODAL", False):
            raise Mistake("tasks", f"{name} asks about images or sounds", "name tasks of text")
    return Loaded(tasks, groups, members)


def _loaded(manager: Any, name: str, data: str | None) -> Any:
    import_module("datasets").logging.set_verbosity_error()
    try:
        with quiet():
            return manager.load([name])
    except Exception as error:  # of the Hub, the file system, a template, another's code
        why = shorten(" ".join(f"{type(error).__name__}: {error}".split()), 70)
        if data is not None:
            raise Mistake(data, f"is not what {name} asks: {why}", "give rows of the shape of its data set") from error
        mend = "is there a network? a file of its rows is given by --data"
        raise Mistake("tasks", f"{name} or its data do not load: {why}", mend) from error


def _manager(names: Sequence[str]) -> Any:
    """lm-eval's index, at least of `names`."""
    tasks = import_module("lm_eval.tasks")
    root = Path(str(tasks.__file__)).parent
    homes = _homes(root)
    for name in names:
        _definition(name, homes)
    with quiet():
        if all(homes[name] is not None for name in names):
            folders = sorted({str(Path(str(homes[name])).parent) for name in names})
            return tasks.TaskManager(include_defaults=False, include_path=folders)
        return tasks.TaskManager()


def _definition(name: str, homes: Mapping[str, Path | None]) -> Mapping[str, Any]:
    """What lm-eval's own file says of task `name`; nothing of groups and tags.

    Raises:
        Mistake: there is no such task, or it would run what a model wrote: said before its data are asked for.
    """
    if name not in homes:
        raise unknown_name("tasks", "task", name, homes)
    home = homes[name]
    if home is None:
        return {}
    own = import_module("lm_eval.tasks._yaml_loader").load_yaml(home, resolve_func=False)
    if own.get("unsafe_code"):
        raise _unsafe(name)
    return own


def _unsafe(name: str) -> Mistake:
    return Mistake("tasks", f"{name} runs the code that a model wrote", "see stillhouse evaluate code")


@cache
def _homes(root: Path) -> dict[str, Path | None]:
    """Where each task of lm-eval is written; None for groups and tags, whose members may be written anywhere."""
    homes: dict[str, Path | None] = {}
    for path in sorted(root.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        for kind, name in _NAMED.findall(text):
            if kind != "task":
                homes[name] = None
            elif not re.search(r"^group:", text, re.MULTILINE):
                homes.setdefault(name, path)
        for block in _TAGS.findall(text):
            homes |= dict.fromkeys(re.findall(r"[\w.:-]*\w[\w.:-]*", block))
    return homes


def _manager_of(name: str, data: str, folder: Path) -> Any:
    """lm-eval's index of one task file: its own definition of task `name`, with rows of the file `data`."""
    tasks = import_module("lm_eval.tasks")
    homes = _homes(Path(str(tasks.__file__)).parent)
    own, home = _definition(name, homes), homes[name]
    if home is None:
        raise Mistake("data", f"is of one task, and {name} names several", "name one of them")
    asked = own.get("test_split") or own.get("validation_split") or "test"
    shown = own.get("fewshot_split") or own.get("training_split") or own.get("validation_split")
    path = Path(data).absolute()
    files = {asked: str(path)}
    beside = path.with_name(f"{_BESIDE}{path.suffix}")
    lines = [f"include: {_quoted(str(home))}", f"task: {name}", f"dataset_path: {_LOADERS[path.suffix.lower()]}",
             "dataset_name: null"]  # fmt: skip
    if beside.is_file() and shown and shown != asked:
        files[shown] = str(beside)
    told = {key: own.get(key) for key in ("training_split", "validation_split", "test_split")}
    told["fewshot_split"] = shown
    lines += [f"{key}: {split if split in files else 'null'}" for key, split in told.items()]
    lines += ["dataset_kwargs:", "  data_files:", *(f"    {split}: {_quoted(file)}" for split, file in files.items())]
    store.write_text(folder / f"{name}.yaml", "\n".join(lines) + "\n")
    with quiet():
        return tasks.TaskManager(include_defaults=False, include_path=str(folder))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def has_examples(task: Any) -> bool:
    """Whether there are other documents than the questions for examples before them."""
    given = task.config.fewshot_config
    return bool(task.has_training_docs() or task.config.fewshot_split or getattr(given, "samples", None))


def wrap(model: Any, tokenizer: Any, *, batch_size: int, max_length: int | None, bos: bool | None) -> Any:
    """lm-eval's `HFLM` around a model in memory."""
    with quiet():
        made = import_module("lm_eval.models.huggingface").HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_length=max_length,
            add_bos_token=bos,
        )
    return made


def evaluate(wrapped: Any, task: Any, seed: int | None, **settings: Any) -> dict[str, Any]:
    """What `simple_evaluate` says of one task, samples included.

    Args:
        wrapped: from `wrap`.
        task: from `load`.
        seed: of Python, numpy, torch and the examples; None: lm-eval's own.
        settings: further arguments of `simple_evaluate`.
    """
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    given = {} if seed is None else dict.fromkeys(seeds, seed)
    evaluator = import_module("lm_eval.evaluator")
    with quiet(), _without_survey(evaluator):
        bare = import_module("lm_eval.tasks").TaskManager(include_defaults=False)  # the task is at hand
        return evaluator.simple_evaluate(wrapped, tasks=[task], task_manager=bare, **given, **settings)


@contextmanager
def _without_survey(evaluator: Any) -> Iterator[None]:
    """`simple_evaluate` without its survey of the machine, which starts programs for seven seconds, each time.

    Nor does it ask git for the commit of the folder that it is called in, where git answers on stderr.
    """
    usual = {name: getattr(evaluator, name) for name in ("add_env_info", "get_git_commit_hash")}
    evaluator.add_env_info = lambda results: None
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        for name, function in usual.items():
            setattr(evaluator, name, function)
