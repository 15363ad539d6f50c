"""What a suite is to do, as command lines: each row trained once per seed, and scored in every way."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillhouse.catalogue import NAMED, name_key
from stillhouse.mistakes import Mistake, unknown_name
from stillhouse.recipe import Recipe, check, parse
from stillhouse.recipe.document import read_document
from stillhouse.recipe.permissions import OfASuite
from stillhouse.recipe.section import Typed
from stillhouse.recipe.suite import SuiteOptions, SuiteRow, flat
from stillhouse.suite.jobs import Line, Scoring, Training

# Sections that sft does not ask; method: a recipe's settings of another one.
OF_A_TEACHER = (*NAMED, "teacher", "rollout")
# Options of evaluations by which there may be more scores, or the same by another way, but no others.
_HARMLESS = ("data", "data_folder", "seeds", "tasks", "k", "retries", "wait", "timeout", "requests", "attempts")
_NAMING_FILES = ("student", "teacher", "data", "vocabulary", "rollout")
_OTHER_ROW = re.compile(r"\{([^{}:,\"]+)\}")  # {SFT}: the folder of that row's run


def plan(options: SuiteOptions) -> list[Line]:
    """The whole suite, checked: every command would be taken as it is.

    Raises:
        Mistake: a row's recipe or a kind's options are wrong, or what is there is of other settings.
    """
    return _Planner(options).lines()


class _Planner:
    def __init__(self, options: SuiteOptions) -> None:
        self.options, self.out = options, Path(options.output)
        self.trained: dict[str, dict[int, Training]] = {}  # by row and seed, those that are planned already
        self.models = {row.name: row.model for row in options.lines if row.model is not None}
        self.checked: list[Any] = []  # what of recipes names files

    def lines(self) -> list[Line]:
        if self.options.launcher is not None:
            _look_for(self.options.launcher)
        rows = list(enumerate(self.options.lines, start=1))
        for kind in self.options.evaluate:
            self._check_kind(kind)
        for number, row in rows:
            self._in_row(number, row, self._train)
        return [self._in_row(number, row, self._line) for number, row in rows]

    def _in_row(self, number: int, row: SuiteRow, plan_it: Any) -> Any:
        try:
            return plan_it(row)
        except Mistake as mistake:
            raise Mistake(f"rows[{number}], {row.name}: {mistake.where}", mistake.wrong, mistake.mend) from None

    def _line(self, row: SuiteRow) -> Line:
        if row.model is not None:
            scorings = self._scorings(row, None)
            self._check_model(scorings[0])
            return Line(row, {}, {None: scorings})
        trainings = self.trained[row.name]
        return Line(row, {**trainings}, {seed: self._scorings(row, seed) for seed in trainings})

    def _train(self, row: SuiteRow) -> None:
        if row.model is None:
            planned = {seed: self._training(row, seed) for seed in self.options.seeds}
            self.trained[row.name] = planned

    def _training(self, row: SuiteRow, seed: int) -> Training:
        assert row.recipe is not None
        verb, changes = _asked(flat(self.options.set), read_document(row.recipe).values, row.changes)
        part = row.part(seed)
        changes |= {"seed": seed, "output": str(self.out / "runs"), "name": part}
        filled, sources = self._filled(changes, seed)
        parse(verb, [row.recipe, *_options(filled)], OfASuite("set", _typed(filled)))
        if self.options.trust_remote_code:
            sides = ("student",) if verb == "sft" else ("student", "teacher")
            changes |= {f"{side}.trust_remote_code": True for side in sides}
            filled, _ = self._filled(changes, seed)
        words = [row.recipe, *_options(filled)]
        recipe = rehearsed = parse(verb, words)
        if sources:
            rehearsed = parse(verb, [row.recipe, *_options(self._filled(changes, seed, rehearsed=True)[0])])
        training = Training(
            title=f"{row.name}, seed {seed}",
            command=(*_launched(self.options.launcher), verb, *words),
            log=self.out / "logs" / f"{part}.log",
            needs=tuple(dict.fromkeys(source.title for source in sources)),
            recipe=recipe,
            rehearsed=rehearsed,
            sources=tuple(sources),
            note=self.out / "learnt_from" / f"{part}.json",
        )
        if training.done:
            return training
        self._check_recipe(rehearsed, [key for key in changes if filled[key] != changes[key]])
        anew = self._anew(training)
        return replace(training, command=(*training.command, "--overwrite=true")) if anew else training

    def _check_recipe(self, recipe: Recipe, of_runs: Sequence[str]) -> None:
        """Look at all files that it names, once for rows that differ in nothing that has a file."""
        named = {key: value for key, value in recipe.as_dict().items() if key in _NAMING_FILES}
        asked = (named, recipe.method.get("projectors"))
        if asked in self.checked:
            return
        try:
            check(replace(recipe, overwrite=True))
        except Mistake as mistake:
            if mistake.where not in of_runs:  # a run that is yet to be
                raise
        self.checked.append(asked)

    def _anew(self, training: Training) -> bool:
        """Whether the run that is there is to be replaced.

        Raises:
            Mistake: it is, and `overwrite` does not allow it.
        """
        if training.changed is not None:
            key, before, now = training.changed
            wrong = f"is {now} here, but {training.folder} was trained with {before}"
            mend = "give another output, or --overwrite=true to train it anew"
        elif training.begun and (source := training.outdated) is not None:
            key, wrong = str(training.folder), f"learnt from another run of {source.title} than there is now"
            mend = "--overwrite=true trains it anew"
        elif training.begun and (found := training.changed_file) is not None:
            key, wrong = found[0], f"{found[1]} is not what {training.folder} was trained with"
            mend = "put it back, or --overwrite=true to train it anew"
        else:
            return False
        if not self.options.overwrite:
            raise Mistake(key, wrong, mend)
        return True

    def _filled(
        self, values: Mapping[str, Any], seed: int | None, *, rehearsed: bool = False
    ) -> tuple[dict[str, Any], list[Training]]:
        """`values` with {ROW} replaced by that row's model, and the trainings of those rows.

        A rehearsal takes the model that the other run begins with.
        """
        sources: list[Training] = []

        def folder(found: re.Match[str], key: str) -> str:
            name = found[1]
            if name in self.models:
                return self.models[name]
            if name not in self.trained:
                raise unknown_name(key, "row above this one", name, [*self.trained, *self.models])
            runs = self.trained[name]
            training = runs[next(iter(runs)) if seed is None else seed]
            sources.append(training)
            return training.rehearsed.student.model if rehearsed else str(training.folder)

        def fill(key: str, value: Any) -> Any:
            if isinstance(value, list):
                return [fill(key, item) for item in value]
            if not isinstance(value, str) or not _OTHER_ROW.search(value):
                return value
            return _OTHER_ROW.sub(lambda found: folder(found, key), value)  # and nobody typed that

        return {key: fill(key, value) for key, value in values.items()}, sources

    def _check_kind(self, kind: str) -> None:
        """The options of one way to score, and the files that they name."""
        written = self._written(kind)
        options = self._allowed(kind, {**written, "model": "model"})
        if kind == "code" and self.options.run_generated_code:
            options = replace(options, run_generated_code=True)
        try:
            check(options)
        except Mistake as mistake:
            of_a_run = isinstance(written.get(mistake.where), str) and _OTHER_ROW.search(written[mistake.where])
            if mistake.where != "model" and not of_a_run:
                keyed = mistake.where.isidentifier()
                where = f"evaluate.{kind}.{mistake.where}" if keyed else mistake.where
                raise Mistake(where, mistake.wrong, mistake.mend) from None

    def _written(self, kind: str) -> dict[str, Any]:
        """The options of one way to score, and the judge that was typed in the place of the file's."""
        written, judge = flat(self.options.evaluate[kind]), self.options.judge
        return {**written, "judge": Typed(judge)} if kind == "judge" and judge is not None else written

    def _allowed(self, kind: str, values: Mapping[str, Any]) -> Any:
        """The options of one way to score, read as of a file that nobody need have looked at."""
        verb = " ".join(_verb_of(kind))
        try:
            return parse(verb, _options(values), OfASuite(f"evaluate.{kind}", _typed(values)))
        except Mistake as mistake:
            place = mistake.where.removeprefix(verb).lstrip(": ")
            where = f"evaluate.{kind}: {place}" if place else f"evaluate.{kind}"
            raise Mistake(where, mistake.wrong, mistake.mend) from None

    def _scorings(self, row: SuiteRow, seed: int | None) -> list[Scoring]:
        training = None if seed is None else self.trained[row.name][seed]
        of_seed = "" if seed is None else f", seed {seed}"
        return [self._scoring(row, kind, training, seed, row.part(seed), f"{row.name}{of_seed}: {kind}")
                for kind in self.options.evaluate]  # fmt: skip

    def _scoring(
        self, row: SuiteRow, kind: str, training: Training | None, seed: int | None, part: str, title: str
    ) -> Scoring:
        chosen, sources = self._filled(self._written(kind), seed)
        out = self.out / "scores" / part / kind
        model = str(row.model) if training is None else str(training.folder)
        asked = {**chosen, "model": model, "out": str(out)}
        self._allowed(kind, asked)  # with what {ROW} stands for, and without what was typed
        words = _options(asked)
        words += ["--trust_remote_code=true"] * self.options.trust_remote_code
        words += [f"--key_variable={self.options.key_variable}"] * (
            kind == "judge" and self.options.key_variable is not None
        )
        words += ["--run_generated_code=true"] * (kind == "code" and self.options.run_generated_code)
        before = dict.fromkeys(job.title for job in (*([training] if training else []), *sources))
        scoring = Scoring(
            title=title,
            command=(sys.executable, "-m", "stillhouse", *_verb_of(kind), *words),
            log=self.out / "logs" / f"{part}-{kind}.log",
            needs=tuple(before),
            out=out,
            kind=kind,
            chosen={**chosen, "run_generated_code": kind == "code" and self.options.run_generated_code},
            files=_files(parse(" ".join(_verb_of(kind)), words)),
            model=model,
            training=training,
        )
        if self.options.overwrite and not scoring.done:
            return replace(scoring, command=(*scoring.command, "--overwrite=true"))
        _refuse_other_choice(scoring)
        return scoring

    def _check_model(self, scoring: Scoring) -> None:
        """Look for a model that no row trains; all else has been looked at."""
        verb = _verb_of(scoring.kind)
        try:
            check(parse(" ".join(verb), scoring.command[3 + len(verb) :]))
        except Mistake as mistake:
            if mistake.where != "teacher":  # which may be yet to be trained
                raise


def _asked(common: dict[str, Any], written: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The verb that trains a row, and what it changes of its recipe: what all rows do, and over it its own."""
    written = {name_key(key) if key in NAMED and isinstance(value, str) else key: value
               for key, value in written.items()}  # fmt: skip
    taught = any(key.partition(".")[0] == "teacher" for key in written)
    name = own.get("method.name") or (taught and common.get("method.name")) or written.get("method.name")
    if (str(name).lower() if name else "distill" if taught else "sft") != "sft":
        return "distill", {**common, **own}
    kept = {key: value for key, value in common.items() if key.partition(".")[0] not in OF_A_TEACHER}
    # The settings of another method go, too.
    removed = {section for section in (key.partition(".")[0] for key in written) if section in OF_A_TEACHER}
    return "sft", {**dict.fromkeys(sorted(removed)), **kept, **own}


def _refuse_other_choice(scoring: Scoring) -> None:
    """Scores of other options are somebody's, and `evaluate` would keep them: said before anything is trained."""
    made = scoring.made_by
    before, now = ({} if made is None else made["chosen"]), scoring.chosen
    # lm-eval draws for a batch together, and a task may draw where nobody says that it shall not.
    together = scoring.kind == "tasks" and now.get("temperature") != 0
    harmless = (*_HARMLESS, *(() if together else ("batch_size",)))
    for key in sorted(before.keys() | now.keys()) if made is not None else ():
        if key not in harmless and key != "run_generated_code" and before.get(key) != now.get(key):
            there, here = (_text(values[key]) if key in values else "not set" for values in (before, now))
            wrong = f"is {here}, but scores in {scoring.out} were made with {there}"
            raise Mistake(f"evaluate.{scoring.kind}.{key}", wrong, "give another output, or --overwrite=true")


def _files(options: Any) -> tuple[Path, ...]:
    """What an evaluation reads, where it is here."""
    sources = getattr(options, "sources", None)
    if isinstance(sources, Mapping):
        names = list(sources.values())
    elif sources is not None:
        names = [source.rows for source in sources]
    else:
        names = [options.data] if options.data is not None else []
    found = [
        path for name in names for path in ([Path(name)] if Path(name).is_file() else sorted(Path(name).rglob("*")))
    ]
    return tuple(path for path in found if path.is_file())


def _verb_of(kind: str) -> tuple[str, ...]:
    return ("evaluate",) if kind == "instruct" else ("evaluate", kind)


def _look_for(launcher: str) -> None:
    words = shlex.split(launcher)
    if not words or shutil.which(words[0]) is None:
        raise Mistake("--launcher", f"no program '{launcher}'", "give one such as torchrun --nproc_per_node=4")


def _launched(launcher: str | None) -> tuple[str, ...]:
    return (*(shlex.split(launcher) if launcher else (sys.executable,)), "-m", "stillhouse")


def _options(values: Mapping[str, Any]) -> list[str]:
    return [f"--{key}={_text(value)}" for key, value in values.items()]


def _typed(values: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(key for key, value in values.items() if isinstance(value, Typed))


def _text(value: Any) -> str:
    """A value as a command line says it."""
    return value if isinstance(value, str) else json.dumps(value)
