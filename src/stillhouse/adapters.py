"""LoRA over a loaded model: put on, trained, saved, read back, and merged. Everything that asks peft for something.

peft itself is imported where it is needed: a run without adapters does not wait for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.mistakes import Mistake, shorten
from stillhouse.model_folders import ADAPTER_WEIGHTS

# What peft says of GPT-2's transposed layers, which it then handles; of a name that transformers has renamed; and of
# tied heads, which `merged` unties.
_EXPECTED = ("fan_in_fan_out is set to False", "`is_gradient_checkpointing`", ".*tie_word_embeddings")


def is_adapted(model: nn.Module) -> bool:
    """Whether `model` is peft's wrapper around a causal language model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def bare(model: Any) -> PreTrainedModel:
    """The causal language model that `model` is, or wraps: with adapters, its layers are adapted in place."""
    return model.get_base_model() if is_adapted(model) else model


def put_new(model: PreTrainedModel, settings: Mapping[str, Any], base: str) -> PreTrainedModel:
    """`model`, frozen, with a new trainable adapter that changes nothing yet.

    Args:
        model: changed in place.
        settings: keys of `peft.LoraConfig`. Without `target_modules`, those that peft adapts in this architecture, and
            where it knows none, every linear layer but the head.
        base: what the saved adapter will say that it belongs on.

    Returns:
        A `peft.PeftModel`, which answers to everything that `model` does.

    Raises:
        Mistake: peft refuses the settings, or none of its layers is in the model.
    """
    from peft import LoraConfig, get_peft_model
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    chosen = dict(settings)
    if chosen.get("target_modules") is None and model.config.model_type not in KNOWN:
        chosen["target_modules"] = "all-linear"
    try:
        with _quiet():
            adapted: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **chosen))
    except (ValueError, TypeError, NotImplementedError, RuntimeError, ImportError) as error:
        raise Mistake("student.lora", shorten(str(error).partition(". ")[0], 110), _layers(model)) from error
    return _settled(adapted, base)


def put_saved(model: PreTrainedModel, folder: str, *, trainable: bool = False) -> PreTrainedModel:
    """`model` with the adapter in `folder` on it, unmerged; only the adapter is trainable, if anything.

    Raises:
        Mistake: the adapter is of another model, or not whole.
    """
    from peft import PeftModel

    device = str(next(model.parameters()).device)
    base = located(str(model.name_or_path))
    try:
        with _quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # said below, as a Mistake
            adapted: Any = PeftModel.from_pretrained(model, folder, is_trainable=trainable, torch_device=device)
        with safe_open(Path(folder) / ADAPTER_WEIGHTS, "pt") as file:
            there = set(file.keys())
    except (ValueError, TypeError, KeyError, OSError, RuntimeError, SafetensorError) as error:
        wrong = f"this adapter does not go on '{base}': {shorten(str(error), 80)}"
        raise Mistake(folder, wrong, "is it of another model?") from error
    if missing := sorted(set(state_of(adapted)) - there):
        raise Mistake(folder, f"weights of the adapter are missing: {missing[0]}", "is the folder whole?")
    return _settled(adapted, base)


def _settled(adapted: Any, base: str) -> PreTrainedModel:
    """`adapted` with what it writes into adapter_config.json: where its base is, and names in one order every time."""
    config = adapted.peft_config["default"]
    config.base_model_name_or_path = base
    for key in ("target_modules", "exclude_modules"):
        if isinstance(names := getattr(config, key), set):
            setattr(config, key, sorted(names))
    return adapted


def located(name: str) -> str:
    """How a saved adapter names its base: a folder by its absolute path, a Hub name as it is."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The plain model that an adapted one is equal to, its adapter's product added to its weights.

    A head that was tied to the embeddings, and adapted apart from them, is untied.
    """
    adapted: Any = model
    causal = bare(model)
    head: Any = causal.get_output_embeddings()
    layer = getattr(head, "base_layer", None)
    embeddings: Any = causal.get_input_embeddings()
    if layer is not None and layer.weight is getattr(embeddings, "base_layer", embeddings).weight:
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    with _quiet():
        plain: PreTrainedModel = adapted.merge_and_unload()
    if plain.config.tie_word_embeddings:
        ours: Any = plain.get_output_embeddings()
        theirs: Any = plain.get_input_embeddings()
        plain.config.tie_word_embeddings = ours.weight.data_ptr() == theirs.weight.data_ptr()
    if hasattr(plain, "peft_config"):
        del plain.peft_config  # what is left of peft's mark would make `save_pretrained` look for an adapter
    return plain.requires_grad_(True)


def state_of(model: nn.Module, whole: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The adapter's weights, and those of modules that are trained whole, by the names of a saved adapter."""
    from peft import get_peft_model_state_dict

    # Left to "auto", peft would ask the Hub how many embeddings the base has; nothing here ever adds any.
    adapted: Any = model
    state = None if whole is None else dict(whole)
    return get_peft_model_state_dict(adapted, state_dict=state, save_embedding_layers=False)


def save(model: nn.Module, folder: Path, whole: Mapping[str, Tensor] | None = None) -> None:
    """Write adapter_config.json and adapter_model.safetensors into `folder`, as `peft.PeftModel.from_pretrained` reads.

    Args:
        model: an adapted one.
        folder: is there already.
        whole: the model's state where its modules hold shards of it.
    """
    adapted: Any = model
    state = None if whole is None else dict(whole)
    adapted.save_pretrained(str(folder), save_embedding_layers=False, state_dict=state)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty form


def restore(model: nn.Module, folder: Path) -> None:
    """Read what `save` wrote back into the adapter that is there.

    Raises:
        Mistake: the folder lacks a weight, or has one that the adapter does not know.
    """
    model.load_state_dict(saved_state(model, folder), strict=False)


def saved_state(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """What `save` wrote, by the names that `model.state_dict()` has for it.

    Raises:
        Mistake: the folder lacks a weight, or has one that the adapter does not know.
    """
    saved, inside = load_file(folder / ADAPTER_WEIGHTS), list(model.state_dict())
    # peft renames what it saves; numbers in the place of weights tell which name became which.
    numbers = {name: torch.tensor(number) for number, name in enumerate(inside)}
    renamed = {name: inside[int(number)] for name, number in state_of(model, numbers).items()}
    if odd := sorted(saved.keys() ^ renamed.keys()):
        wrong = f"its weights are not this adapter's ('{odd[0]}')"
        raise Mistake(str(folder), wrong, "resume with the recipe that made it")
    return {renamed[name]: value for name, value in saved.items()}


def _layers(model: PreTrainedModel) -> str:
    """The mend of layers that are not there: the names of those that are."""
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        and module is not model.get_output_embeddings()
    }
    return f"its layers: {shorten(', '.join(sorted(linear)), 90)}"


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        for message in _EXPECTED:
            warnings.filterwarnings("ignore", message=message)
        yield


def trained(model: nn.Module) -> int:
    """How many parameters training moves."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
