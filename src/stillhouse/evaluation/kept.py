"""What a model wrote, on disk, one folder for each data set and seed, and whether it may be used again.

    <out>/<data set>/seed<seed>/predictions.jsonl  settings.json  manifest.json

`settings.json` says what the predictions were made with: `chosen` by the user (the model's path, sampling, limits ...)
and `found` there (hashes of the model's files, of the questions). They are used again only if both are the same. Other
findings mean that they are of something that is no longer there, and they are made anew. Another choice means that
somebody may still want them, and replacing them takes `overwrite`. What is `noted` alone, such as the size of a batch,
makes no others where every answer is drawn by itself: a run that was stopped goes on with another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse import store
from stillhouse.mistakes import Mistake, shorten
from stillhouse.store.records import MANIFEST

PREDICTIONS, SETTINGS = "predictions.jsonl", "settings.json"


@dataclass(frozen=True)
class Keeper:
    """Where the predictions of one data set and seed are kept, and what they are made with.

    Attributes:
        folder: of these predictions alone.
        chosen: the settings that they depend on.
        found: what they depend on besides.
        overwrite: whether predictions of other settings may be replaced.
        noted: keys of `chosen` that change the last digits of a logit and no more: they are not compared.
    """

    folder: Path
    chosen: dict[str, Any]
    found: dict[str, str]
    overwrite: bool
    noted: tuple[str, ...] = ("batch_size",)

    def read(self) -> tuple[list[dict[str, Any]] | None, str]:
        """A line for each prediction, if all are there and made with the same; else None and why not ("" if absent).

        Raises:
            Mistake: they were made with other settings and may not be replaced.
        """
        if not self.folder.exists():
            return None, ""
        try:
            store.verify_folder(self.folder)
            made_with = store.read_json(self.folder / SETTINGS)
            lines = store.read_jsonl(self.folder / PREDICTIONS)
        except store.Corrupt as error:
            return None, str(error)
        before, now = made_with["chosen"], dict(self.chosen)
        for key in self.found.keys() & now.keys():
            if made_with["found"].get(key) == self.found[key]:
                before[key] = now[key]  # the same files by another path
        compared = sorted((before.keys() | now.keys()) - {*self.noted})
        changed = [key for key in compared if before.get(key) != now.get(key)]
        if changed and not self.overwrite:
            key = changed[0]
            raise Mistake(
                str(self.folder),
                f"was made with {key}={_short(before.get(key))}, now {_short(now.get(key))}",
                "give another --out, or --overwrite=true to replace it",
            )
        changed += [key for key, value in self.found.items() if made_with["found"].get(key) != value]
        if changed:
            return None, f"{self.folder} was made with another {changed[0]}"
        return lines, ""

    def kept(self, say: Callable[[str], None], anew: str) -> list[dict[str, Any]] | None:
        """The lines that may be used again; else None, and `say` is told why, and what is done ("answered anew").

        Raises:
            Mistake: they were made with other settings and may not be replaced.
        """
        lines, why_not = self.read()
        if why_not:
            say(f"{why_not}: {anew}")
        return lines

    def write(self, lines: list[dict[str, Any]], beside: Mapping[str, Any] | None = None) -> None:
        """Keep `lines`, and `beside` them what further JSON files hold, by their names; all or none."""
        with store.write_folder(self.folder) as folder:
            store.write_jsonl(folder / PREDICTIONS, lines)
            for name, content in (beside or {}).items():
                store.write_json(folder / name, content)
            store.write_json(folder / SETTINGS, {"chosen": self.chosen, "found": self.found})


def _short(value: object) -> str:
    return shorten(str(value), 30)


def out_folder(model: str, out: str | None) -> Path:
    """Where scores go: beside a checkpoint, whose manifest knows all that belongs into it; else in the model's folder.

    Raises:
        Mistake: `out` is not given, and `model` is no folder.
    """
    if out is not None:
        return Path(out)
    folder = Path(model)
    if not folder.is_dir():
        raise Mistake("out", f"is not given, and '{model}' is not a folder", "write --out=a folder")
    return (folder.parent if (folder / MANIFEST).is_file() else folder) / "evaluation"
