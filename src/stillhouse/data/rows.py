"""Rows from JSON Lines, JSON, Parquet or the Hub, each knowing where it stood."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from stillhouse.mistakes import Mistake, nearest, shorten

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w./-]+)?")


@dataclass(frozen=True)
class Row:
    """One record as it was read: its fields, and its origin ("train.jsonl:17") for every later complaint."""

    fields: Mapping[str, Any]
    origin: str


def read_rows(source: str | Path, *, split: str = "train", limit: int | None = None) -> list[Row]:
    """The rows of a file, of `split` in a folder, or of `split` of a data set on the Hub.

    Args:
        source: A .jsonl, .json (a list) or .parquet file; a folder that holds `<split>.jsonl` or the like; or a Hub
            name, "owner/name" or "owner/name:file", which is asked for only where no such path nor its parent folder
            exists.
        split: Which split of a folder or of a Hub data set.
        limit: Keep the first `limit` rows; None keeps all.

    Raises:
        Mistake: nothing is there, nothing is in it, or something in it is not a JSON object (at file:line).
    """
    if limit is not None and limit < 1:
        raise Mistake("limit", f"must be at least 1, got {limit}")
    rows = list(islice(_rows(source, split), limit))
    if not rows:
        raise Mistake(str(source), "holds no rows", "give a file with at least one")
    return rows


def _rows(source: str | Path, split: str) -> Iterator[Row]:
    path = Path(source)
    if path.is_dir():
        for file in files_of_split(path, split):
            yield from _rows(file, split)
    elif path.is_file():
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise Mistake(str(path), f"cannot read '{path.suffix}' files", f"use {', '.join(READERS)}")
        yield from reader(path)
    elif may_be_hub_name(str(source)):
        yield from _hub_rows(str(source), split)
    else:
        raise missing(path)


def may_be_hub_name(source: str) -> bool:
    """Whether a path that does not exist may be "owner/name"; beside an existing folder it is a misspelt path."""
    path = Path(source)
    names_a_file = path.suffix in READERS and ":" not in source
    return bool(HUB_NAME.fullmatch(source)) and not names_a_file and not path.parent.is_dir()


def missing(path: Path) -> Mistake:
    """The mistake of naming a path that is not there, with the nearest one that is."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        path, folder = folder, folder.parent
    if path.is_file():  # a/file.jsonl/b
        return Mistake(str(path), "is a file, not a folder")
    guess = nearest(path.name, (found.name for found in folder.iterdir()))
    mend = f"did you mean '{guess}'?" if guess else "give a file, a folder or a Hub name (owner/name)"
    return Mistake(str(path), "no such file or folder", mend)


def files_of_split(folder: Path, split: str) -> list[Path]:
    """`<split>.jsonl`, or `<split>-00000-of-00004.parquet` and its like, in `folder` or its `data/`."""
    for place in (folder, folder / "data"):
        files = [file for file in sorted(place.glob("*")) if file.is_file() and file.suffix.lower() in READERS]
        exact = [file for file in files if file.stem == split]
        if len(exact) > 1:
            names = " and ".join(file.name for file in exact)
            raise Mistake(str(place), f"holds {names}", "name the file")
        shards = [file for file in files if re.fullmatch(rf"{re.escape(split)}-\d+(-of-\d+)?", file.stem)]
        if exact or shards:
            return exact or shards
    held = sorted(file.stem for file in folder.glob("*") if file.suffix.lower() in READERS)
    mend = f"it holds {', '.join(held)}" if held else f"name a {', '.join(READERS)} file"
    raise Mistake(str(folder), f"no split '{split}' in this folder", mend)


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            origin = f"{path}:{number}"
            text = _decoded(line, origin, first=number == 1)
            if text.strip():
                yield _row(_parsed(text, origin), origin)


def _json_rows(path: Path) -> Iterator[Row]:
    raw = path.read_bytes()
    text = _decoded(raw, str(path), first=True)
    if not text.strip():
        return
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        mend = "is it one object a line? then name it .jsonl" if error.msg == "Extra data" else ""
        raise Mistake(f"{path}:{error.lineno}", f"broken JSON: {error.msg} at column {error.colno}", mend) from error
    except (ValueError, RecursionError) as error:
        raise Mistake(str(path), f"broken JSON: {shorten(str(error), 60)}") from error
    if not isinstance(records, list):
        raise Mistake(str(path), f"holds {_kind(records)}, not a list of rows", "a .json file is a list of objects")
    for number, record in enumerate(records):
        yield _row(record, f"{path}[{number}]")


def _parquet_rows(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    yield Row(record, f"{path}[{number}]")
                    number += 1
    except (ArrowException, OSError) as error:
        raise Mistake(str(path), f"is not a readable Parquet file: {shorten(str(error), 60)}") from error


def _hub_rows(name: str, split: str) -> Iterator[Row]:
    import datasets

    repository, _, file = name.partition(":")
    chosen: dict[str, Any] = {"split": "train", "data_files": file} if file else {"split": split}
    try:
        data = datasets.load_dataset(repository, **chosen)
    except (OSError, ValueError, RuntimeError) as error:
        wrong = f"no such path, nor a loadable '{file or split}' on the Hub: {shorten(str(error), 60)}"
        raise Mistake(name, wrong, "check the name, or give a local file") from error
    for number, record in enumerate(data):
        yield _row(record, f"{repository}/{file or split}[{number}]")


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
}


def _decoded(raw: bytes, origin: str, *, first: bool) -> str:
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise Mistake(origin, f"is not UTF-8: {error.reason} at byte {error.start}", "save it as UTF-8") from error


def _parsed(text: str, origin: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Mistake(origin, f"broken JSON: {error.msg} at column {error.colno}", "mend or remove the line") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; 100,000 brackets
        raise Mistake(origin, f"broken JSON: {shorten(str(error), 60)}", "mend or remove the line") from error


def _row(record: Any, origin: str) -> Row:
    if not isinstance(record, dict):
        raise Mistake(origin, f"holds {_kind(record)}, not an object", 'a row is {"instruction": ..., "output": ...}')
    return Row(record, origin)


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
