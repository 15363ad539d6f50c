"""`stillhouse evaluate agreement`: both models read every data file once, and one table says how near they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse import store
from stillhouse.evaluation.agreement.figures import Line, entry_of, measures_of
from stillhouse.evaluation.agreement.held_out import HeldOut
from stillhouse.evaluation.agreement.pair import Pair
from stillhouse.evaluation.agreement.reading import Reading
from stillhouse.evaluation.agreement.rows import Reader
from stillhouse.evaluation.agreement.table import print_table
from stillhouse.evaluation.kept import Keeper, out_folder
from stillhouse.evaluation.measures import write_measures
from stillhouse.evaluation.terminal import speaker
from stillhouse.head import probe
from stillhouse.mistakes import Mistake
from stillhouse.model_folders import remark
from stillhouse.models import last_hidden
from stillhouse.rollout.author import identify, load_author
from stillhouse.store.digests import of_bytes

if TYPE_CHECKING:
    from stillhouse.recipe import AgreementOptions

AGREEMENT = "agreement.json"
_CHOSEN = (
    "model", "teacher", "template", "teacher_template", "limit", "max_length", "max_prompt_length", "cut", "bos",
    "dtype", "teacher_dtype", "temperature", "top_k", "bins", "alignment", "vocabulary",
)  # fmt: skip


def agreement(options: AgreementOptions) -> tuple[Path, dict[str, Any]]:
    """Measure every data file, keep a line for each example, and print a table.

    Lines that are there already, whole and made with the same, are not made again.

    Returns:
        The folder of the results, and what agreement.json there holds: {model, teacher, settings, data: {name: ...}};
        see docs/evaluation.md.

    Raises:
        Mistake: a file, a row, a model or an option is wrong, predictions are not finite, nothing corresponds, or
            there are results of other settings.
    """
    say = speaker()
    out = out_folder(options.model, options.out) / "agreement"
    pair = Pair.of(options)
    for line in (remark(options.model), remark(options.teacher), *pair.remarks):
        if line is not None:
            say(line)
    files = {source.name: HeldOut.read(source, pair, options) for source in options.sources}
    found = {"model": _identity(options, options.model), "teacher": _identity(options, options.teacher)}
    if pair.map is not None:
        found["map"] = of_bytes(pair.map.tobytes()).xxh3
    measuring = _Measuring(options, pair, found, out, say)
    lines = {name: measuring.of(name, held) for name, held in files.items()}
    report: dict[str, Any] = {
        "model": options.model,
        "teacher": options.teacher,
        "settings": {key: getattr(options, key) for key in _CHOSEN if key not in ("model", "teacher")},
        "data": {
            name: {**entry_of(every, options.bins), "left_out": files[name].left_out} for name, every in lines.items()
        },
    }
    measures = {name: measures_of(name, every, options.top_k) for name, every in lines.items()}
    store.write_json(out / AGREEMENT, report)
    write_measures(out, [measure for every in measures.values() for measure in every])
    print_table(report["data"], options.top_k)
    for name, every in lines.items():
        if missing := sum(not line["compared"] for line in every):
            say(f"{name}: {missing} examples have no position in common, so {name} has no measures for paired tests")
    say(f"figures, tables and a line for each example are in {out}")
    return out, report


def _identity(options: AgreementOptions, model: str) -> str:
    return identify(model, trust_remote_code=options.trust_remote_code)


@dataclass
class _Measuring:
    """Lines that are on disk, and new ones for the rest; the models are loaded for new ones only."""

    options: AgreementOptions
    pair: Pair
    found: dict[str, str]
    out: Path
    say: Callable[[str], None]

    @cached_property
    def readers(self) -> tuple[Reader, Reader]:
        """Student and teacher."""
        options, pair = self.options, self.pair
        loaded = []
        for name, dtype in ((options.model, options.dtype), (options.teacher, options.teacher_dtype)):
            model = load_author(name, dtype=dtype, trust_remote_code=options.trust_remote_code)
            probe(model, last_hidden)
            loaded.append(model)
        return Reader(loaded[0], len(pair.student)), Reader(loaded[1], len(pair.teacher))

    def of(self, name: str, held: HeldOut) -> list[Line]:
        """The lines of data set `name`."""
        chosen = {key: getattr(self.options, key) for key in _CHOSEN}
        keeper = Keeper(self.out / name, chosen, {**self.found, "data": held.hash}, self.options.overwrite)
        lines = keeper.kept(self.say, "measured anew")
        if lines is not None:
            return lines
        for line in held.said:
            self.say(line)
        options = self.options
        reading = Reading(self.pair, self.readers, options.temperature, options.top_k, options.bins)
        lines = list(reading.lines(held, options.batch_size, name))
        if not any(line["compared"] for line in lines):
            wrong = "no position of the student's corresponds to one of the teacher's"
            raise Mistake(name, wrong, "do both templates write the responses as they are?")
        keeper.write(lines)
        return lines
