"""The section `student.lora`: peft.LoraConfig's own names, checked without importing peft.

As for `training`, names, types and choices are read from the source of the installed peft.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from stillhouse.mistakes import Mistake, unknown_name
from stillhouse.recipe.section import Bounds, typed

SECTION = "student.lora"

# The settings of the papers (ToDi, DSKD): rank 256, alpha 8, dropout 0.1, on the layers that peft takes by itself.
DEFAULTS: dict[str, Any] = {"r": 256, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": None}

_OURS = "Stillhouse writes it; leave it out"
_DATA = "it needs data or objects that no recipe can hold; leave it out"

# Keys of LoraConfig that make no sense here -> what to do instead.
RESERVED: dict[str, str] = {
    "task_type": _OURS,
    "peft_type": _OURS,
    "inference_mode": _OURS,
    "auto_mapping": _OURS,
    "peft_version": _OURS,
    "base_model_name_or_path": "write it as student.model",
    "revision": "write it as student.model: a folder of that revision",
    "layer_replication": "it makes another model; save that one, and write it as student.model",
    "megatron_config": _DATA,
    "megatron_core": _DATA,
    "runtime_config": _DATA,
    "loftq_config": _DATA,
    "eva_config": _DATA,
    "corda_config": _DATA,
    "lora_ga_config": _DATA,
    "velora_config": _DATA,
    "monteclora_config": _DATA,
    "kasa_config": _DATA,
    "arrow_config": _DATA,
    "use_bdlora": _DATA,
    "alora_invocation_tokens": "it answers differently from what was trained; leave it out",
    "use_qalora": "only for GPTQ models, which are not read; leave it out",
    "qalora_group_size": "only for GPTQ models, which are not read; leave it out",
}
# Beginnings that a checkpoint can be loaded on again: those left out need data, or change the base by chance.
BEGINNINGS = ("gaussian", "olora", "orthogonal", "pissa")

# What other programs call them.
SYNONYMS = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "modules": "target_modules"}

_BOUNDS: dict[str, Bounds] = {
    "r": Bounds(low=1),
    "lora_alpha": Bounds(above=0),
    "lora_dropout": Bounds(low=0, below=1),
    "layers_to_transform": Bounds(low=0),
}
_SIMPLE: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "dict": dict, "None": None}


@functools.cache
def arguments() -> dict[str, Any]:
    """Every key that a recipe may set, with its type: the fields of LoraConfig that YAML can hold, less RESERVED."""
    found = importlib.util.find_spec("peft")
    folder = Path((found.submodule_search_locations or [""])[0]) if found else Path()
    tree = ast.parse((folder / "tuners" / "lora" / "config.py").read_text(encoding="utf-8"))
    (config,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "LoraConfig")
    fields = {
        node.target.id: _type(node.annotation)
        for node in config.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return {name: kind for name, kind in fields.items() if kind is not None and name not in RESERVED}


def _type(annotation: ast.expr) -> Any:
    """The type that an annotation spells, or None where a part of it is a class of peft's own."""
    if isinstance(annotation, ast.BinOp):
        return _union([annotation.left, annotation.right])
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return type(None)
    if isinstance(annotation, ast.Subscript):
        outer, inner = ast.unparse(annotation.value), annotation.slice
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        if outer == "Literal":
            return Literal[tuple(ast.literal_eval(part) for part in parts)]
        if outer == "list":
            return list[_SIMPLE[ast.unparse(inner)]] if ast.unparse(inner) in _SIMPLE else None
        if outer == "dict":
            return dict
        return _union([*parts, *([ast.Constant(None)] if outer == "Optional" else [])])
    return _SIMPLE.get(ast.unparse(annotation))


def _union(parts: list[ast.expr]) -> Any:
    kinds = [_type(part) for part in parts]
    return None if None in kinds else functools.reduce(operator.or_, kinds)


def settle(given: Mapping[str, Any]) -> dict[str, Any]:
    """The whole section: the given values, checked, over the defaults.

    Raises:
        Mistake: an unknown, reserved or wrong value, or values that do not go together.
    """
    settled = DEFAULTS | {name: _checked(name, value) for name, value in given.items()}
    targets = settled["target_modules"]
    if isinstance(targets, str) and settled.get("layers_to_transform") is not None:
        mend = "name the layers in a list, or leave layers_to_transform out"
        raise Mistake(f"{SECTION}.target_modules", "is one text beside layers_to_transform", mend)
    if targets == []:
        raise Mistake(f"{SECTION}.target_modules", "names no layer", "null takes those that peft adapts by itself")
    if isinstance(targets, list) and "lm_head" in targets:
        _check_head(settled)
    return settled


def _check_head(settled: Mapping[str, Any]) -> None:
    """An adapted head is computed as one weight, which DoRA and dropout are not."""
    mend = "leave lm_head out of target_modules, or name it in modules_to_save"
    if settled.get("use_dora"):
        raise Mistake(f"{SECTION}.target_modules", "names lm_head, which cannot have DoRA", mend)
    if settled["lora_dropout"]:
        mend = f"set lora_dropout: 0, or {mend}"
        raise Mistake(f"{SECTION}.target_modules", "names lm_head, which cannot have dropout", mend)


def _checked(name: str, value: Any) -> Any:
    where = f"{SECTION}.{name}"
    if name in RESERVED:
        raise Mistake(where, "is not set here", RESERVED[name])
    if name not in arguments():
        raise unknown_name(where, "key", name, arguments())
    if name == "init_lora_weights":
        if isinstance(value, bool) or value in BEGINNINGS:
            return value
        raise unknown_name(where, "beginning", str(value), ("true", "false", *BEGINNINGS))
    value = typed(arguments()[name], value, where)
    _BOUNDS.get(name, Bounds()).check(value, where)
    return value
