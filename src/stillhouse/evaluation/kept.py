"""Predictions on disk, one folder for each data set and seed, and whether they may be used again.

    <out>/<data set>/seed<seed>/predictions.jsonl  settings.json  manifest.json

`settings.json` says what the predictions were made with: `chosen` by the user (the model's path, sampling, limits ...)
and `found` there (hashes of the model's files, of the questions). They are used again only if both are the same. Other
findings mean that they are of something that is no longer there, and they are made anew. Another choice means that
somebody may still want them, and replacing them takes `overwrite`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stillhouse import store
from stillhouse.evaluation.predictions import Prediction, Questions
from stillhouse.mistakes import Mistake, shorten
from stillhouse.store.digests import of_bytes
from stillhouse.store.records import dumps

PREDICTIONS, SETTINGS = "predictions.jsonl", "settings.json"


@dataclass(frozen=True)
class Keeper:
    """Where the predictions of one data set and seed are kept, and what they are made with.

    Attributes:
        folder: of these predictions alone.
        chosen: the settings that they depend on.
        found: what they depend on besides.
        overwrite: whether predictions of other settings may be replaced.
    """

    folder: Path
    chosen: dict[str, Any]
    found: dict[str, str]
    overwrite: bool

    def read(self) -> tuple[list[Prediction] | None, str]:
        """The predictions, if they are there, whole, and made with the same; else None and why not ("" if absent).

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
        if made_with["found"].get("model") == self.found["model"]:
            before["model"] = now["model"]  # the same files by another path
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
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
        return [Prediction.from_line(line) for line in lines], ""

    def write(self, predictions: list[Prediction]) -> None:
        """Keep `predictions`, all or none."""
        with store.write_folder(self.folder) as folder:
            store.write_jsonl(folder / PREDICTIONS, [prediction.as_line() for prediction in predictions])
            store.write_json(folder / SETTINGS, {"chosen": self.chosen, "found": self.found})


def _short(value: object) -> str:
    return shorten(str(value), 30)


def hash_of(questions: Questions) -> str:
    """A hash of all that a prediction and its scores depend on: token ids, references, stop tokens."""
    return of_bytes(dumps(asdict(questions))).xxh3
