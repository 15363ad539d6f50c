"""A thing lives where it belongs: no drawer for odds and ends, one home for the device, no machine's own paths."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

import pytest

from tests.habits.tree import ROOT, Source, files, sources

DRAWERS = {"utils", "util", "helpers", "helper", "misc", "common", "tools"}
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".cfg", ".ini", ".sh", ""}

# What is true on one machine only: its folders, and where its packages come from.
FOREIGN = re.compile(
    r"(?<![\w.\-/$}<>])/(?:root|home|Users|work|workspace|opt|mnt|tmp)/\w"
    r"|--(?:extra-)?index[-]url|--find[-]links|PIP_(?:EXTRA_)?INDEX[_]URL|\bpypi\.org/simple|pythonhosted\.org"
)


def drawers(paths: Iterable[str]) -> list[str]:
    """Files and folders named for what they are not about."""
    return [path for path in paths if any(part.partition(".")[0] in DRAWERS for part in PurePosixPath(path).parts)]


def device_names(tree: Iterable[Source]) -> list[str]:
    """Every file that spells the accelerator's name, in a string or as `torch.cuda`."""
    return [
        source.path
        for source in tree
        if any(
            (isinstance(node, ast.Attribute) and node.attr == "cuda")
            or (isinstance(node, ast.Constant) and re.fullmatch(r"cuda(:\d+)?", str(node.value)))
            for node in ast.walk(source.tree)
        )
    ]


def foreign(texts: Mapping[str, str]) -> list[str]:
    """Each line that holds a path of one machine or the address of a package index."""
    return [
        f"{path}:{number}: {found[0]}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if (found := FOREIGN.search(line))
    ]


def broken_links(texts: Mapping[str, str], there: Iterable[str]) -> list[str]:
    """Each relative link or picture of a Markdown text that leads to no file or folder."""
    files_there = set(there)
    known = files_there | {str(parent) for path in files_there for parent in PurePosixPath(path).parents}
    wrong = []
    for path, text in texts.items():
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target and not target.startswith("mailto:"):
                found = str(PurePosixPath(path).parent / target).rstrip("/")
                if found not in known:
                    wrong.append(f"{path}: {target}")
    return wrong


def read(suffixes: set[str]) -> dict[str, str]:
    """The text files of the project with these suffixes."""
    paths = (path for path in files() if PurePosixPath(path).suffix in suffixes)
    return {path: (ROOT / path).read_text(encoding="utf-8") for path in paths}


def test_no_file_is_a_drawer():
    assert drawers(files()) == []


def test_one_file_at_most_names_the_accelerator():
    named = device_names(sources("src"))
    assert len(named) <= 1, named


def test_no_path_of_one_machine_and_no_index_address():
    here = "tests/habits/test_places.py"  # plants them
    assert foreign({path: text for path, text in read(TEXT).items() if path != here}) == []


def test_links_between_documents_lead_somewhere():
    assert broken_links(read({".md"}), files()) == []


def test_planted_drawers_are_found():
    assert drawers(["src/a/utils.py", "src/utils/a.py", "tests/helpers.py"]) != []
    assert drawers(["src/a/utility.py", "src/commonality.py"]) == []


@pytest.mark.parametrize("planted", ["x = 'cuda'", "x = 'cuda:1'", "torch.cuda.synchronize()", "model.cuda()"])
def test_a_planted_accelerator_is_found(planted: str):
    assert device_names([Source("src/a.py", planted), Source("src/b.py", "x = 'cpu'  # not cuda")]) == ["src/a.py"]


@pytest.mark.parametrize(
    ("line", "is_foreign"),
    [
        ("see /home/ada/models", True),
        ("PATH = '/tmp/x'", True),
        ("pip install --extra-index-url x", True),
        ("default ../shared beside the repository", False),
        ("https://example.org/home/page", False),
        ("outputs/demo/work/x", False),
        ("$HOME/tmp/x", False),
    ],
)
def test_a_planted_foreign_path_is_found(line: str, is_foreign: bool):
    assert bool(foreign({"README.md": f"fine\n{line}\n"})) is is_foreign


def test_a_planted_broken_link_is_found():
    text = "[a](docs/a.md) [b](b.md#part) ![c](docs/c.png) [d](https://x.org/d) [e](src/) [f](../README.md)"
    there = ["README.md", "docs/a.md", "src/x.py"]
    wrong = [f"README.md: {target}" for target in ("b.md", "docs/c.png", "../README.md")]
    assert broken_links({"README.md": text}, there) == wrong
