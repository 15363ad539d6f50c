"""The data sets that the papers score answers on: where each is found, and what of it they use.

Every line of these tables is as the DSKD line of work has it (arXiv:2406.17328; MiniLLM, arXiv:2306.08543, made the
files). A set is looked for in a folder of JSON Lines first, under any of its names there, and on the Hub then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class InstructionSet:
    """One data set.

    Attributes:
        title: as tables call it.
        folders: names that its folder goes by.
        hub: where the Hub has it, "owner/name" or "owner/name:file".
        limit: the first so many rows are used; None: all.
        least_words: rows whose reference has fewer words are left out.
        asks: the instruction of every row, on the Hub; "": rows have their own, as every row of ours.
        fields: there, the names of the input and of the output.
    """

    title: str
    folders: tuple[str, ...]
    hub: str
    limit: int | None = None
    least_words: int = 0
    asks: str = ""
    fields: tuple[str, str] = ("input", "output")


SETS: Mapping[str, InstructionSet] = {
    "dolly": InstructionSet("Dolly", ("dolly",), "MiniLLM/dolly:valid.jsonl"),
    "self-inst": InstructionSet("SelfInst", ("self-inst", "self_instruct"), "MiniLLM/self-inst:valid.jsonl"),
    "vicuna": InstructionSet("VicunaEval", ("vicuna",), "MiniLLM/Vicuna:valid.jsonl"),
    "s-ni": InstructionSet(
        "S-NI", ("sinst/11_", "sinst", "s-ni"), "MiniLLM/sinst:11_/valid.jsonl", least_words=11
    ),
    "un-ni": InstructionSet(
        "UnNI", ("uinst/11_", "uinst", "un-ni"), "MiniLLM/uinst:11_/valid.jsonl", limit=10_000, least_words=11
    ),
    "dialogsum": InstructionSet(
        "DialogSum",
        ("dialogsum",),
        "knkarthick/dialogsum",
        limit=1_500,
        asks="Summarize the following dialogue.",
        fields=("dialogue", "summary"),
    ),
}  # fmt: skip

# What a paper's table is made of.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "dskd": ("dolly", "self-inst", "vicuna", "s-ni", "un-ni"),
    "mcw": ("dialogsum", "self-inst", "dolly", "vicuna", "s-ni"),
    "instruct": tuple(SETS),
}
