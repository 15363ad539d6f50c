"""What can be known of a run before anything heavy is imported: that its files are there and say what they should."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillhouse.catalogue.sources import REJECTED
from stillhouse.mistakes import Mistake
from stillhouse.model_folders import ADAPTER_CONFIG, base_of, find, method_weights
from stillhouse.recipe.code import CodeOptions
from stillhouse.recipe.data_sets import DataSets
from stillhouse.recipe.evaluating import AgreementOptions, EvaluateOptions, JudgeOptions, TasksOptions
from stillhouse.recipe.inspection import InspectOptions
from stillhouse.recipe.options import ExportOptions, GenerateOptions, ReportOptions, VocabMapOptions
from stillhouse.recipe.runs import FINISHED
from stillhouse.recipe.schema import Recipe
from stillhouse.recipe.section import Section

# A file up to this size is read whole, in well under a second a piece; of a larger one, the first rows.
READ_WHOLE_BYTES = 64 * 2**20
FIRST_ROWS = 10_000

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def check(options: Section) -> None:
    """Look at every file and folder that `options` names.

    Raises:
        Mistake: one is missing or malformed, or the run's folder holds a finished run. `where` is the dotted key of the
            option, or the file and line of a row.
    """
    try:
        _check(options)
    except OSError as error:
        raise Mistake(str(error.filename), f"cannot be read: {error.strerror}") from None


def _check(options: Section) -> None:
    if isinstance(options, Recipe):
        _check_recipe(options)
    elif isinstance(options, GenerateOptions):
        _check_model("model", options.model)
        _check_rows("data", options.data, options.limit, answered=False)
        if Path(options.out).exists() and not options.overwrite:
            raise Mistake("out", f"'{options.out}' is there already", "give another --out, or --overwrite=true")
    elif isinstance(options, ExportOptions):
        _check_model("model", options.model)
        if Path(options.out).exists() and not options.overwrite:
            raise Mistake("out", f"'{options.out}' is there already", "give another --out, or --overwrite=true")
    elif isinstance(options, EvaluateOptions):
        _check_sources(options)
        _check_model("model", options.model)  # last: a suite asks this before its models are there
    elif isinstance(options, AgreementOptions):
        _check_map(options.vocabulary)
        _check_sources(options)
        _check_model("teacher", options.teacher)
        _check_model("model", options.model)
    elif isinstance(options, TasksOptions):
        if options.data is not None:
            _check_file("data", options.data)
        _check_model("model", options.model)
    elif isinstance(options, JudgeOptions):
        _check_file("data", options.data)
        _check_questions(options)
        _check_model("model", options.model)
    elif isinstance(options, CodeOptions):
        _check_problems(options)
        _check_model("model", options.model)
    elif isinstance(options, VocabMapOptions):
        _check_folder("teacher", options.teacher)
        _check_folder("student", options.student)
        if Path(options.out).exists() and not options.overwrite:
            raise Mistake("out", f"'{options.out}' is there already", "give another --out, or --overwrite=true")
    elif isinstance(options, InspectOptions):
        _check_inspected(options)
    elif isinstance(options, ReportOptions):
        for run in options.runs:
            if not Path(run).is_dir():
                raise Mistake("runs", f"no folder '{run}'", _nearby(Path(run)))


def _check_sources(options: DataSets) -> None:
    for source in options.sources:
        if not source.on_the_hub:
            _check_rows("data", source.rows, options.limit, answered=True, split="test")


def _check_recipe(recipe: Recipe) -> None:
    if (recipe.folder / FINISHED).exists() and not recipe.overwrite:
        mend = "give another --name, or --overwrite=true to replace it"
        raise Mistake(str(recipe.folder), "holds a finished run", mend)
    student = recipe.student
    _check_model("student.model", student.model, weights=not student.from_scratch)
    check_adapter(recipe)
    if student.tokenizer is not None:
        _check_folder("student.tokenizer", student.tokenizer)
    if recipe.teacher is not None:
        _check_model("teacher.model", recipe.teacher.model)
    _check_map(recipe.vocabulary)
    if recipe.method.get("projectors", "none") != "none":
        method_weights(recipe.method["projectors"], "method.projectors")
    data = recipe.data
    _check_rows("data.train", data.train, data.limit, answered=True, split=data.train_split)
    if data.corpus is not None:
        _check_rows("data.corpus", data.corpus, None, answered=False)
    written = (recipe.rollout or {}).get("written", "none")
    if written == REJECTED:
        _check_rows("data.train", data.train, data.limit, answered=True, split=data.train_split, paired=True)
    elif written != "none":
        _check_rows("rollout.written", written, None, answered=True)
    if data.eval is not None:
        _check_rows("data.eval", data.eval, data.eval_limit, answered=True, split=data.eval_split)


def _check_inspected(options: InspectOptions) -> None:
    for key, name in (("student", options.student), ("teacher", options.teacher)):
        if name is not None:
            _check_folder(key, name)
    if options.teacher is not None:
        _check_map(options.vocabulary)
    if options.data is not None:
        _check_rows("data", options.data, options.limit, answered=True, split=options.split)


def _check_map(vocabulary: Mapping[str, Any] | None) -> None:
    """A map that a file holds."""
    path = Path((vocabulary or {}).get("path", "."))
    if not path.exists():
        raise Mistake("vocabulary.path", f"no file '{path}'", _nearby(path))


def check_adapter(recipe: Recipe) -> None:
    """Compare what the recipe asks of an adapter with the student's folder.

    Raises:
        Mistake: a second adapter is asked for, or a quantised model without one.
    """
    student = recipe.student
    adapted = not student.from_scratch and base_of(find(student.model)) is not None
    if adapted and student.lora is not None:
        wrong = f"'{student.model}' is an adapter, which goes on with its own settings"
        raise Mistake("student.lora", wrong, "write null, or merge the adapter first: stillhouse export")
    if student.quantize is not None and student.lora is None and not adapted:
        raise Mistake("student.quantize", "quantised weights cannot be trained", "add student.lora: {}")


def _check_rows(
    key: str, source: str, limit: int | None, *, answered: bool, split: str = "train", paired: bool = False
) -> None:
    from stillhouse.data.conversation import read, rejected
    from stillhouse.data.rows import may_be_hub_name, read_rows

    path = Path(source)
    if not path.exists():
        if may_be_hub_name(source):
            return  # asked for when the run begins
        raise Mistake(key, f"no file '{source}'", _nearby(path))
    if path.is_file() and path.stat().st_size > READ_WHOLE_BYTES:
        limit = min(limit or FIRST_ROWS, FIRST_ROWS)
    for row in read_rows(source, split=split, limit=limit):
        conversation = read(rejected(row) if paired else row)
        if answered and not conversation.text:
            conversation.require_response()


def _check_file(key: str, name: str) -> None:
    """Refuse what is no file of rows that another reader than `data` takes."""
    from stillhouse.data.rows import READERS, read_rows

    path = Path(name)
    if not path.is_file():
        raise Mistake(key, f"no file '{name}'", _nearby(path))
    if path.suffix.lower() not in READERS:
        raise Mistake(key, f"cannot read '{path.suffix}' files", f"use {', '.join(READERS)}")
    read_rows(path, limit=FIRST_ROWS)


def _check_questions(options: JudgeOptions) -> None:
    from stillhouse.data.questions import read_questions

    read_questions(options.data, limit=options.limit)


def _check_problems(options: CodeOptions) -> None:
    from stillhouse import sandbox
    from stillhouse.data.problems import read_problems

    for source in options.sources.values():
        if not Path(source).exists():
            raise Mistake("data", f"no file '{source}'", _nearby(Path(source)))
        read_problems(source, limit=options.limit, shots=options.shots)
    if options.run_generated_code:
        sandbox.choose(options.sandbox)


def _check_folder(key: str, name: str) -> Path | None:
    """The folder that `name` is, or None for a name on the Hub."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise Mistake(key, f"'{name}' is a file", "name the folder that holds config.json")
    if not _may_be_on_the_hub(name):
        raise Mistake(key, f"no folder '{name}'", _nearby(folder))
    return None


def _may_be_on_the_hub(name: str) -> bool:
    """Whether a path that is not there may be a Hub name: beside an existing folder it is a misspelt path."""
    parent = Path(name).parent
    return bool(_HUB_NAME.fullmatch(name)) and (parent == Path() or not parent.is_dir())


def _check_model(key: str, name: str, *, weights: bool = True) -> None:
    folder = _check_folder(key, name)
    if folder is None:
        return
    folder = Path(find(name, key))
    base = base_of(str(folder))
    if base is not None:
        _check_model(str(folder / ADAPTER_CONFIG), base)
        return
    config = folder / "config.json"
    if not config.is_file():
        inside = sorted(found.parent for kind in ("config.json", ADAPTER_CONFIG) for found in folder.glob(f"*/{kind}"))
        mend = f"did you mean '{inside[-1]}'?" if inside else "name the folder that a model was saved in"
        raise Mistake(key, f"'{name}' holds no config.json", mend)
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise Mistake(str(config), f"cannot be read: {error}") from None
    if not isinstance(content, dict) or "model_type" not in content:
        raise Mistake(str(config), "names no 'model_type'", "is it a model's config.json?")
    if weights and not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin"))
        wrong = "holds pickled weights (*.bin), which are not read" if pickled else "holds no weights (*.safetensors)"
        trains = key == "student.model"
        mend = "student.from_scratch: true begins with random ones" if trains else "name the folder of a trained model"
        raise Mistake(key, f"'{name}' {wrong}", "save them as safetensors" if pickled else mend)


def _nearby(path: Path) -> str:
    """The mend of a path that does not exist: the nearest name in the deepest folder of it that does."""
    folder, name = path.parent, path.name
    while not folder.is_dir() and folder != folder.parent:
        folder, name = folder.parent, folder.name
    names = [found.name for found in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{folder / near[0]}'?" if near else "paths begin where the command is run"
