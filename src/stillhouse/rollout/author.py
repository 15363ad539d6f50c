"""The model that writes: recognised, verified, loaded, and put where it runs fastest; or the server that has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from stillhouse import store
from stillhouse.mistakes import Mistake
from stillhouse.model_folders import base_of, decisive_files, find
from stillhouse.models import load_causal_lm, load_config, quiet_loading
from stillhouse.rollout.batches import Batches
from stillhouse.rollout.continuous import Continuous
from stillhouse.rollout.engine import Engine, Running
from stillhouse.rollout.server import Server
from stillhouse.store.digests import of_bytes, of_file
from stillhouse.store.records import MANIFEST, dumps


def identify(model: str, *, trust_remote_code: bool = False) -> str:
    """A short text that changes whenever the files of `model` do: a hash of them, or its commit on the Hub.

    Of a run it is the best checkpoint's; that of an adapter changes with its base as well.

    Raises:
        Mistake: no such model, or a folder with a manifest that does not verify.
    """
    folder = Path(find(model))
    base = base_of(str(folder))
    if base is not None:
        return of_bytes(dumps([_of_folder(folder), identify(base, trust_remote_code=trust_remote_code)])).xxh3
    if not folder.is_dir():
        return str(load_config(model, trust_remote_code=trust_remote_code)._commit_hash)
    return _of_folder(folder)


def _of_folder(folder: Path) -> str:
    if (folder / MANIFEST).is_file():
        store.verify_folder(folder)
        return of_file(folder / MANIFEST).xxh3
    return of_bytes(dumps({file.name: of_file(file).xxh3 for file in decisive_files(folder)})).xxh3


def load_author(
    model: str,
    *,
    dtype: str = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """`model` in evaluation mode on `device`, by default the accelerator, or the CPU where there is none; quietly.

    Raises:
        Mistake: it does not load, or `dtype` is unknown.
    """
    quiet_loading()
    loaded: Any = load_causal_lm(
        model, dtype=dtype, attn_implementation=attn_implementation, trust_remote_code=trust_remote_code
    )
    device = device or torch.accelerator.current_accelerator(check_available=True)
    return loaded if device is None else loaded.to(device)


def engine_of(model: PreTrainedModel, running: Running, batch_size: int) -> Engine:
    """What writes with a model in this process."""
    return Continuous(model, batch_size) if running == "continuous" else Batches(model, batch_size)


def server_of(address: str, model: str, batch_size: int, *, trust_remote_code: bool = False) -> Server:
    """The server at `address`, which must have `model`; of a run's folder, its best checkpoint.

    Raises:
        Mistake: there is none, it serves another model, or one of that name whose weights, which are here, are others.
    """
    vocabulary = load_config(model, trust_remote_code=trust_remote_code).get_text_config().vocab_size
    names = tuple(dict.fromkeys((model, find(model))))
    server = Server.at(address, batch_size=batch_size, vocabulary=vocabulary, names=names)
    root = Path(server.root)
    if server.root and root.is_dir() and identify(str(root)) != identify(model, trust_remote_code=trust_remote_code):
        raise Mistake(f"server: {address}", f"serves another model, '{root}'", "name that one, or serve yours")
    return server
