"""Data sets as `evaluate` is told of them: files, or names of the catalogue, and where each of them is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stillhouse.catalogue.instructions import GROUPS, SETS, InstructionSet
from stillhouse.mistakes import Mistake
from stillhouse.recipe.schema import ONE_OR_MORE
from stillhouse.recipe.section import Section, setting

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
class DataSets(Section):
    """Rows with responses, by files or by the names that the papers' data sets have."""

    data: list[str] = setting(f"files of rows; or sets: {', '.join(SETS)}; or groups of them: {', '.join(GROUPS)}")
    data_folder: str = setting("where the folders of named data sets are; the Hub has what is not there", "data")
    limit: int | None = setting("use the first so many rows of each", None, ONE_OR_MORE)

    def validate(self) -> None:
        super().validate()
        if not self.data:
            raise Mistake("data", "names no file", "write data: [rows.jsonl]")

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
