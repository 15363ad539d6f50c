"""What `evaluate` and its kinds may be asked: typed options with meanings, defaults and bounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stillhouse.catalogue.instructions import GROUPS, SETS, InstructionSet
from stillhouse.mistakes import Mistake
from stillhouse.recipe.schema import (
    NOT_NEGATIVE,
    ONE_OR_MORE,
    PROBABILITY,
    Dtype,
    Template,
    check_lengths,
    check_seeds,
)
from stillhouse.recipe.section import Bounds, Section, setting


@dataclass(frozen=True, kw_only=True)
class OfModel(Section):
    """What everything that is asked of a model has in common."""

    model: str = setting("a model folder or a name on the Hub")
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

    def validate(self) -> None:
        check_lengths(self, self.max_prompt_length, self.max_length)


SPLITS = ("train", "valid", "validation", "dev", "eval", "test")
HELD_OUT = ("test.jsonl", "valid.jsonl")  # the files of a named set's folder, the first that is there


@dataclass(frozen=True)
class Source:
    """One data set that is to be answered.

    Attributes:
        name: that its scores go by.
        rows: a file, a folder or a name on the Hub.
        known: the set of the catalogue that it is; None for the user's own file.
    """

    name: str
    rows: str
    known: InstructionSet | None = None

    @property
    def on_the_hub(self) -> bool:
        """Whether a set of the catalogue is to come from the Hub."""
        return self.known is not None and self.rows == self.known.hub


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Answering):
    """Rows to answer and score."""

    data: list[str] = setting(f"files of rows; or names: {', '.join((*SETS, *GROUPS))}")
    data_folder: str = setting("where the folders of named data sets are; the Hub has what is not there", "data")
    protocol: Literal["plain", "dskd"] = setting(
        "dskd: no 6-gram twice and prompts cut at their end, as the papers sample", "plain"
    )
    cut: Literal["marker", "end"] = setting("a long prompt loses text before its marker, or its end", "marker")
    out: str | None = setting("the folder of the scores; null: the model's folder/evaluation", None)
    seeds: list[int] = setting("answer once per seed; mean and deviation are over them", [10, 20, 30, 40, 50],
                               NOT_NEGATIVE)  # fmt: skip

    def validate(self) -> None:
        super().validate()
        check_seeds(self, self.seeds)
        if not self.data:
            raise Mistake("data", "names no file", "write data: [rows.jsonl]")
        if self.protocol == "dskd":
            self._settle({"temperature": (1.0,), "top_p": (1.0,), "no_repeat_ngram_size": (0, 6)})
            object.__setattr__(self, "no_repeat_ngram_size", 6)
            object.__setattr__(self, "cut", "end")

    def _settle(self, allowed: dict[str, tuple[float, ...]]) -> None:
        for key, values in allowed.items():
            if getattr(self, key) not in values:
                wrong = f"is {getattr(self, key)}, but protocol dskd has {values[-1]:g}"
                raise Mistake(key, wrong, "remove it, or write protocol: plain")

    @property
    def sources(self) -> list[Source]:
        """Every data set once, groups by their members.

        Raises:
            Mistake: two have one name.
        """
        found: dict[str, Source] = {}
        for source in self._named():
            if source.name in found:
                wrong = f"is called '{source.name}' as {found[source.name].rows} is"
                raise Mistake(source.rows, wrong, "evaluate them apart, each with its own --out")
            found[source.name] = source
        return list(found.values())

    def _named(self) -> Iterator[Source]:
        for word in self.data:
            if Path(word).exists() or word not in {**SETS, **GROUPS}:
                yield Source(data_name(word), word)
            else:
                for name in GROUPS.get(word, (word,)):
                    yield Source(name, self._place(SETS[name]), SETS[name])

    def _place(self, known: InstructionSet) -> str:
        """Its file below `data_folder`, or its name on the Hub."""
        files = (Path(self.data_folder, name, file) for name in known.folders for file in HELD_OUT)
        return next((str(file) for file in files if file.is_file()), known.hub)


def data_name(path: str) -> str:
    """The name of a data set: its file's, or its folder's where the file is named after a split (dolly/test.jsonl)."""
    parts = Path(path).absolute()
    return parts.parent.name if parts.stem in SPLITS and parts.parent.name else parts.stem
