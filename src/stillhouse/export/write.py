"""`stillhouse export`: a folder that `AutoModelForCausalLM.from_pretrained` reads and that has no trace of training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from stillhouse import store
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.export.card import model_card
from stillhouse.mistakes import Mistake
from stillhouse.model_folders import base_of, find, remark
from stillhouse.models import DTYPES, load_causal_lm, load_config, quiet_loading
from stillhouse.recipe import ExportOptions
from stillhouse.store.records import MANIFEST


def export(options: ExportOptions) -> Path:
    """Write the model of `options` as weights in safetensors, configuration, tokenizer and README.md, all or nothing.

    Returns:
        The folder.

    Raises:
        Mistake: no such model, a folder that does not verify, an `out` that is there already, or a `dtype` that cannot
            hold the weights.
    """
    out = Path(options.out)
    if out.exists() and not options.overwrite:
        raise Mistake("out", f"'{out}' is there already", "give another --out, or --overwrite=true")
    quiet_loading()
    if said := remark(options.model):
        print(said, file=sys.stderr)
    path = find(options.model)
    if (Path(path) / MANIFEST).is_file():
        store.verify_folder(path)
    tokenizer = load_tokenizer(path, trust_remote_code=options.trust_remote_code)
    model = _standing_alone(path, options)
    card = model_card(path, out.name, dtype=str(model.dtype).removeprefix("torch."))
    with store.write_folder(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{out}: {type(model).__name__}, {millions:.2f} M parameters in {model.dtype}".replace("torch.", ""))
    return out


def _standing_alone(path: str, options: ExportOptions) -> PreTrainedModel:
    """The plain model in the dtype asked for; an adapter is merged in fp32, so that rounding happens once."""
    base, remote = base_of(path), options.trust_remote_code
    dtype = options.dtype if base is None else "float32"
    model = load_causal_lm(path, dtype=dtype, trust_remote_code=remote, adapter="merge")
    if base is None:
        return model
    wanted = DTYPES.get(options.dtype) or load_config(base, trust_remote_code=remote).dtype or torch.float32
    cast: Any = model  # transformers' decorated `to` has no type that a checker follows
    cast.to(wanted)
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise Mistake("dtype", f"{options.dtype} cannot hold the merged weights", "write bfloat16 or float32")
    return model
