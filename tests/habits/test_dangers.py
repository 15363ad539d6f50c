"""Files from strangers cannot act: nothing in the package unpickles, evaluates, runs a shell or trusts remote code."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

import pytest

from tests.habits.tree import Source, dotted, sources

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp",
    "torch.load", "torch.save", "torch.hub.load",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader",
}  # fmt: skip
SETTINGS = {
    "weights_only": False,
    "safe_serialization": False,
    "use_safetensors": False,
    "trust_remote_code": True,
    "allow_pickle": True,
    "shell": True,
}


def dangers(source: Source) -> list[str]:
    """Each use of what the package does without, one line each."""
    names = dict(_imported(source.tree))
    wrong = [f"{source.place(node)}: {thing}" for node, thing in _settings(source.tree)]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            wrong.extend(f"{source.place(node)}: {a.name}" for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            wrong.append(f"{source.place(node)}: {node.module}")
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            first, _, rest = dotted(node).partition(".")
            spelt = names.get(first, first) + (f".{rest}" if rest else "")
            if spelt in CALLS:
                wrong.append(f"{source.place(node)}: {spelt}")
    return wrong


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Local names and what they stand for, so that `from torch import load as read` hides nothing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.asname, alias.name) for alias in node.names if alias.asname)


def _settings(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Dangerous settings as a keyword, as a key of a dictionary, as a default, and as an assignment."""
    for node in ast.walk(tree):
        pairs: Iterable[tuple[str | None, ast.AST | None]] = ()
        if isinstance(node, ast.Call):
            pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
        elif isinstance(node, ast.Dict):
            keys = (key.value if isinstance(key, ast.Constant) else None for key in node.keys)
            pairs = [(str(key), value) for key, value in zip(keys, node.values, strict=True)]
        elif isinstance(node, ast.arguments):
            positional = [*node.posonlyargs, *node.args]
            defaults = [None] * (len(positional) - len(node.defaults)) + node.defaults
            named = zip([*positional, *node.kwonlyargs], [*defaults, *node.kw_defaults], strict=True)
            pairs = [(argument.arg, default) for argument, default in named]
        elif isinstance(node, ast.Assign):
            pairs = [(dotted(target).rpartition(".")[2], node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign):
            pairs = [(dotted(node.target).rpartition(".")[2], node.value)]
        for name, value in pairs:
            if name in SETTINGS and isinstance(value, ast.Constant) and value.value is SETTINGS[name]:
                yield value, f"{name}={value.value}"


def test_nothing_in_the_package_is_dangerous():
    assert [line for source in sources("src") for line in dangers(source)] == []


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "import os, pickle",
        "from pickle import loads",
        "def f():\n    import dill.source",
        "eval('1')",
        "exec(text)",
        "run = eval",
        "torch.load(path, weights_only=True)",
        "import torch as t\nt.load(path)",
        "from torch import load as read\nread(path)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "read(path, weights_only=False)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "options = {'trust_remote_code': True}",
        "def load(path, trust_remote_code=True): ...",
        "def load(path, *, trust_remote_code: bool = True): ...",
        "class Model:\n    trust_remote_code: bool = True",
        "np.load(path, allow_pickle=True)",
        "model.save_pretrained(path, safe_serialization=False)",
    ],
)
def test_a_planted_danger_is_found(planted: str):
    assert dangers(Source("src/a.py", planted))


@pytest.mark.parametrize(
    "harmless",
    [
        "model.eval()",
        "class Data:\n    eval: str",
        "re.compile('a')",
        "yaml.safe_load(text)",
        "np.load(path)",
        "def load(path, trust_remote_code: bool = False): ...",
        "AutoModel.from_pretrained(path, trust_remote_code=wanted, weights_only=True)",
        "subprocess.run([command], shell=False)",
    ],
)
def test_harmless_code_is_left_alone(harmless: str):
    assert dangers(Source("src/a.py", harmless)) == []
