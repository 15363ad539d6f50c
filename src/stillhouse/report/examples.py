"""What models wrote, beside each other: the first prompts of a data set, not chosen ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillhouse import store
from stillhouse.mistakes import shorten
from stillhouse.report.groups import Group, Section
from stillhouse.report.tables import Table

_LONGEST_TEXT = 300


def example_table(section: Section, data: str, count: int = 8) -> Table | None:
    """The answers of each group's first run to the first `count` prompts that all have; None where there are none."""
    answers = {group.label: found for group in section.groups if (found := _answers(group, data))}
    if not answers:
        return None
    first = next(iter(answers.values()))
    prompts = [prompt for prompt in first if all(prompt in others for others in answers.values())][:count]
    rows = []
    for prompt in prompts:
        written = [_shown(of[prompt].get("prediction")) for of in answers.values()]
        rows.append([_shown(prompt), _shown(_reference(first[prompt])), *written])
    caption = f"The first {len(prompts)} prompts of {data}, with the answers of each method's first run."
    return Table(caption, ("prompt", "reference", *answers), rows, names=2 + len(answers))


def _answers(group: Group, data: str) -> Mapping[str, Mapping[str, Any]]:
    """A group's predictions on `data` by their prompts."""
    if Path(data).name != data:  # a name from a stranger's file leads nowhere else
        return {}
    files = sorted((group.runs[0].folder / "evaluation" / data).glob("seed*/predictions.jsonl"))
    lines = store.read_jsonl(files[0], require_hash=False) if files else []
    return {line["prompt"]: line for line in lines if isinstance(line, dict) and isinstance(line.get("prompt"), str)}


def _reference(line: Mapping[str, Any]) -> object:
    references = line.get("references")
    return references[0] if isinstance(references, list) and references else "-"


def _shown(text: object) -> str:
    return shorten(" ".join(str(text).split()), _LONGEST_TEXT)
