"""What `stillhouse inspect` may be asked, alone or by a recipe whose tokenizers, rows and alignment are looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from stillhouse.catalogue import ALIGNERS, VOCABULARIES, find, settle
from stillhouse.catalogue.correspondence import alignment_of, vocabulary_of
from stillhouse.mistakes import Mistake
from stillhouse.recipe.schema import Recipe, Template
from stillhouse.recipe.section import Bounds, Section, setting

_ONE_OR_MORE = Bounds(low=1)
_NO_MAP = (None, "overlap", "cdm")


@dataclass(frozen=True, kw_only=True)
class InspectOptions(Section):
    """Whose tokens are shown, of which text, and how they are aligned."""

    recipe: str | None = setting("a recipe that says everything which is not said here", None)
    student: str | None = setting("a folder with a tokenizer, or a name on the Hub", None)
    teacher: str | None = setting("the same of the teacher; null: the student's tokens and mask alone", None)
    text: str | None = setting("a response to look at, instead of rows", None, verbatim=True)
    prompt: str = setting("what the text answers", "", verbatim=True)
    data: str | None = setting("rows: .jsonl, .json, .parquet or a name on the Hub; all are counted", None)
    split: str = setting("of a folder or a Hub data set in `data`", "train")
    rows: int = setting("how many rows are shown: the first ones", 3, _ONE_OR_MORE)
    limit: int | None = setting("count the first so many rows alone", None, _ONE_OR_MORE)
    template: Template = setting("how a row becomes a prompt", "alpaca")
    teacher_template: Template | None = setting("how it becomes the teacher's; null: the same", None)
    max_length: int = setting("tokens of prompt and response", 512, Bounds(low=2))
    max_prompt_length: int = setting("tokens of the prompt", 256, _ONE_OR_MORE)
    cut: Literal["marker", "end"] = setting("a long prompt loses text before its marker, or its end", "marker")
    bos: bool | None = setting("begin with the student's BOS token; null: as its tokenizer does", None)
    scored: Literal["response", "all"] = setting("the tokens that are learnt", "response")
    alignment: dict = setting("which positions correspond: name and settings", {"name": "span"})
    vocabulary: dict | None = setting("which tokens correspond: name and settings; null: none", {"name": "overlap"})
    show_map: bool = setting("under each teacher token the student token that the vocabulary sends it to", False)
    out: str | None = setting("the .html file that is written too", None)
    trust_remote_code: bool = setting("run Python code from a tokenizer's folder; command line only", False)

    def validate(self) -> None:
        if self.student is None:
            raise Mistake("student", "is missing", "give a folder with a tokenizer, or name a recipe")
        if self.text is None and self.data is None:
            raise Mistake("text", "is missing", "give --text='a response', or --data=rows.jsonl")
        if self.text is not None and self.data is not None:
            raise Mistake("text", "is given beside rows (data)", "keep one of them")
        for key, text in (("text", self.text), ("prompt", self.prompt)):
            _check_text(key, text)
        if self.prompt and self.text is None:
            raise Mistake("prompt", "is of a text, and rows have their own", "remove it")
        if self.max_prompt_length >= self.max_length:
            wrong = f"must be below max_length, which is {self.max_length}, got {self.max_prompt_length}"
            raise Mistake("max_prompt_length", wrong, "leave room for the response")
        if self.out is not None and not self.out.lower().endswith((".html", ".htm")):
            raise Mistake("out", f"'{self.out}' is not the name of an HTML file", "end it with .html")
        settle_axes(self)
        self._check_pair()

    def _check_pair(self) -> None:
        vocabulary = None if self.vocabulary is None else self.vocabulary["name"]
        if self.teacher is None and (self.show_map or self.teacher_template is not None):
            key = "show_map" if self.show_map else "teacher_template"
            raise Mistake(key, "is of a teacher, and none is named", "give --teacher, or remove it")
        if self.show_map and vocabulary is None:
            raise Mistake("show_map", "shows a vocabulary map, and there is none", "give --vocabulary=min_edit")
        if self.alignment["name"] == "dtw_matched" and vocabulary in _NO_MAP:
            raise Mistake("alignment.name", "dtw_matched goes by a map of tokens", "give --vocabulary=min_edit")


def settle_axes(options: Section) -> None:
    """Check what `options` say of `alignment` and `vocabulary`, and lay it over the defaults of its entry.

    Raises:
        Mistake: no such entry or setting.
    """
    for axis, table, usual in (("alignment", ALIGNERS, "span"), ("vocabulary", VOCABULARIES, "overlap")):
        given = getattr(options, axis)
        if given is not None:
            entry = find(axis, table, given.get("name", usual), f"{axis}.name")
            settings = {key: value for key, value in given.items() if key != "name"}
            object.__setattr__(options, axis, {"name": entry.name, **settle(entry, settings, axis)})


def from_recipe(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says, by the keys of `InspectOptions`.

    Raises:
        Mistake: the recipe's aligner asks for a map of tokens, and there is none.
    """
    data, student, teacher = recipe.data, recipe.student, recipe.teacher
    said: dict[str, Any] = {
        "student": student.tokenizer or student.model,
        "data": data.train,
        "split": data.train_split,
        "limit": data.limit,
        **{key: getattr(data, key) for key in ("template", "max_length", "max_prompt_length", "cut", "bos", "scored")},
    }
    if teacher is not None:
        said |= {"teacher": teacher.tokenizer or teacher.model, "teacher_template": teacher.template}
        said["alignment"] = alignment_of(recipe.entry, recipe.alignment)
        said["vocabulary"] = vocabulary_of(recipe.entry, recipe.vocabulary, said["alignment"])
    return said


def _check_text(key: str, text: str | None) -> None:
    if key == "text" and text is not None and not text.strip():
        raise Mistake(key, "is empty", "give a response, such as --text='It is four.'")
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:  # an argument that is not UTF-8 reaches Python as lone surrogates
        raise Mistake(key, f"holds a broken character at {error.start}", "give it as UTF-8") from None
