"""Causal language models from a folder or the Hub, and the one place that asks a backbone for hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from stillhouse import adapters
from stillhouse.data.collate import Packed
from stillhouse.head import Embedded, Head, Predictions
from stillhouse.mistakes import Mistake, shorten
from stillhouse.model_folders import base_of, find

PIECE = 512  # positions of a packed row that a CPU runs at a time
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_config(path: str, *, overrides: dict[str, Any] | None = None, trust_remote_code: bool = False) -> Any:
    """The configuration of the model at `path` (of an adapter: of its base), with `overrides`.

    Raises:
        Mistake: there is no readable configuration, or an override names no key of it.
    """
    path = find(path)
    path = base_of(path) or path
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        mend = "give a folder with config.json or a Hub name"
        raise Mistake(path, f"no model configuration: {shorten(str(error), 80)}", mend) from error
    for key, value in (overrides or {}).items():
        if not hasattr(config, key):
            raise Mistake(f"{path}: config.{key}", f"{type(config).__name__} has no such key", "see its config.json")
        setattr(config, key, value)
    return config


def load_causal_lm(
    path: str,
    *,
    dtype: str = "auto",
    from_scratch: bool = False,
    config: dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    seed: int | None = None,
    adapter: Literal["keep", "train", "merge"] = "keep",
    lora: Mapping[str, Any] | None = None,
    quantize: Literal["4bit", "8bit"] | None = None,
    dropout: float | None = None,
) -> PreTrainedModel:
    """A causal language model in evaluation mode.

    Args:
        path: A folder or a Hub name; of a run's folder, its best checkpoint. An adapter's folder stands for the adapter
            on its base.
        dtype: "auto" keeps the checkpoint's own (float32 from scratch), else a key of `DTYPES`.
        from_scratch: Random weights, drawn with `seed`, in the architecture that `path`'s config.json describes.
        config: Overrides of that configuration; only with `from_scratch`.
        seed: Of random weights, an adapter's included.
        adapter: Whether an adapter that `path` names stays one, stays one and is trainable, or is merged into its base.
        lora: Keys of `peft.LoraConfig`, for a new trainable adapter; the weights below it are frozen.
        quantize: How many bits the frozen weights below an adapter are kept in, by bitsandbytes.
        dropout: The rate of all dropout that the model has, an adapter's own apart; None leaves it.

    Returns:
        The model; with an adapter a `peft.PeftModel` around it, which answers to the same (`adapters.bare` unwraps it).

    Raises:
        Mistake: no such model, no weights in safetensors, or a weight that the architecture wants and the file lacks.
    """
    path = find(path)
    base = None if from_scratch else base_of(path)
    if lora is not None and base is not None:
        raise Mistake(path, "is an adapter already", "train that one, or merge it first: stillhouse export")
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if from_scratch:
        model = _from_scratch(path, dtype, config, options, seed)
    else:
        if quantize is not None:
            options["quantization_config"] = _bits(quantize, dtype)
        model = _saved(base or path, dtype, options)
    if dropout is not None:
        set_dropout(model, dropout)
    if seed is not None and lora is not None:
        set_seed(seed)
    if lora is not None:
        model = adapters.put_new(model, lora, adapters.located(path))
    elif base is not None:
        model = adapters.put_saved(model, path, trainable=adapter == "train")
        model = adapters.merged(model) if adapter == "merge" else model
    return model.eval()


def _from_scratch(
    path: str, dtype: str, config: dict[str, Any] | None, options: dict[str, Any], seed: int | None
) -> PreTrainedModel:
    settled = load_config(path, overrides=config, trust_remote_code=options["trust_remote_code"])
    if seed is not None:
        set_seed(seed)
    return AutoModelForCausalLM.from_config(settled, dtype=DTYPES.get(dtype, torch.float32), **options)


def _saved(path: str, dtype: str, options: dict[str, Any]) -> PreTrainedModel:
    load_config(path, trust_remote_code=options["trust_remote_code"])
    if Path(path).is_dir() and not any(Path(path).glob("*.safetensors")):
        mend = "save the model as safetensors, or set from_scratch: true"
        raise Mistake(path, "no *.safetensors in this folder", mend)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=DTYPES.get(dtype, "auto"), use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise Mistake(path, f"this model does not load: {shorten(str(error), 80)}", "is the folder whole?") from error
    model, report = loaded
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise Mistake(path, f"weights are missing: {missing}", "is this folder of another architecture?")
    return model


def set_dropout(model: PreTrainedModel, rate: float) -> None:
    """Give all dropout of `model` the probability `rate`, whatever its configuration calls it.

    Some architectures have modules, some pass a number of their own or of the configuration to a function. Whole layers
    that are left out (OPT's layerdrop) are another thing, and only ever switched off.
    """
    places = [vars(part) for part in [model.config, *_parts(model.config)]]
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = rate
        places.append(vars(module))
    for place in places:
        for name, value in place.items():
            named = "drop" in name.lower() and isinstance(value, float)
            if named and (rate == 0.0 or not name.lower().endswith(("layerdrop", "layer_drop", "drop_path"))):
                place[name] = rate


def _parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """The configurations within `config`, such as that of a text part."""
    for part in vars(config).values():
        if isinstance(part, PretrainedConfig):
            yield part
            yield from _parts(part)


def _bits(quantize: str, dtype: str) -> Any:
    """bitsandbytes' settings: QLoRA's for 4 bits (NF4, quantised twice)."""
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    computed = DTYPES.get(dtype, torch.bfloat16)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computed,
    )


def check_lora(path: str, lora: Mapping[str, Any], *, trust_remote_code: bool = False) -> None:
    """Put a new adapter on the architecture of `path` alone, without weights, so that a mistake shows at once.

    Raises:
        Mistake: peft refuses `lora`, its layers are not in the model, or its adapter on the head cannot be computed.
    """
    config = load_config(path, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        adapted = adapters.put_new(model, {**lora, "init_lora_weights": False}, path)
    Head.of(adapted)


def head_without_weights(
    path: str, vocabulary: int, *, overrides: dict[str, Any] | None = None, trust_remote_code: bool = False
) -> Head:
    """The head that the architecture of `path` has, on the meta device: its sizes, before anything is loaded."""
    config = load_config(path, overrides=overrides, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return Head.of(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code), vocabulary)


def backbone(model: PreTrainedModel) -> torch.nn.Module:
    """The part of `model` below its LM head, adapters in place; the head is applied to its last hidden state."""
    causal = adapters.bare(model)
    body = causal.base_model
    if body is causal:
        raise Mistake(type(model).__name__, "this architecture has no separate backbone", "use another architecture")
    return body


def last_hidden(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    packed: Packed | None = None,
    *,
    whole: bool = False,
) -> Tensor:
    """The last hidden state, the input of the LM head, at every position; 0 or anything on padding.

    On a CPU rows of unlike lengths are run in groups, which spares the work on padding and changes nothing else. An
    accelerator gets the whole batch: there a launch costs more than padding, and lengths would have to be waited for.
    For the like reason a CPU, whose attention does the work of the whole [T, T] mask, runs a packed row in pieces.
    A model in shards gets the whole batch on a CPU as well: all processes must run it equally often.

    Args:
        input_ids: [B, L], padded on the right; or [1, T], packed.
        attention_mask: [B, L], 1 on real tokens; None is for packed batches alone.
        packed: where the examples of a packed row are. Not every architecture keeps them apart, see
            `training.packing.check`.
        whole: run the batch as it is on a CPU as well, so that padding has the states that the model gives it.

    Returns:
        [B, L, d]
    """
    body, (_, longest) = backbone(model), input_ids.shape
    cuts = input_ids.is_cpu and not whole and not _in_shards(body)
    if packed is not None:
        parts = []
        for part, piece in _pieces(packed) if cuts else [(slice(None), packed)]:
            output = body(input_ids=input_ids[:, part], use_cache=False, **_apart(model, piece))
            parts.append(output.last_hidden_state)  # [1, t, d]
        return torch.cat(parts, dim=1)  # [1, T, d]
    assert attention_mask is not None, "a padded batch has an attention mask"
    lengths = attention_mask.sum(1).tolist() if cuts else []
    groups = like_lengths(lengths)
    if len(groups) <= 1:
        return body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state  # [B, L, d]
    parts = []
    for rows in groups:
        length = max(lengths[row] for row in rows)
        inputs = {"input_ids": input_ids[rows, :length], "attention_mask": attention_mask[rows, :length]}
        hidden = body(**inputs, use_cache=False).last_hidden_state  # [b, length, d]
        parts.append(torch.nn.functional.pad(hidden, (0, 0, 0, longest - length)))  # [b, L, d]
    order = torch.tensor([row for rows in groups for row in rows])
    return torch.cat(parts)[order.argsort()]  # [B, L, d]


@torch.no_grad()
def embedded(model: PreTrainedModel, predictions: Predictions, hidden: Tensor | None = None) -> Predictions:
    """`predictions` with the model's input embeddings of what they were made after and of what came next.

    The table is called, not read: in shards it is gathered in its own forward.

    Args:
        predictions: N of them, with the tokens that were read.
        hidden: [B, L, d], last hidden states of the whole batch, where their standard deviation is asked for.

    Raises:
        Mistake: the embeddings are not as wide as the hidden states, as in OPT-350m.
    """
    table: Any = model.get_input_embeddings()
    read, count = predictions.inputs, len(predictions)
    assert read is not None
    rows = table(torch.cat([read, predictions.labels, torch.zeros_like(read[:1])]))  # [2N + 1, d]
    if rows.shape[1] != predictions.hidden.shape[1]:
        raise Mistake(type(model).__name__, "its input embeddings are not as wide as its hidden states", "take dskd")
    deviation = None if hidden is None else hidden.float().std()
    found = Embedded(rows[:count], rows[count : 2 * count], rows[2 * count], deviation)
    return replace(predictions, embedded=found)


def _in_shards(body: torch.nn.Module) -> bool:
    """Whether parameters are cut over processes, by FSDP2 or by ZeRO-3, and gathered when a layer runs."""
    return any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in body.parameters())


def _pieces(packed: Packed) -> Iterator[tuple[slice, Packed]]:
    """A packed row cut between examples: neighbours go together while they have at most `PIECE` positions."""
    boundaries: list[int] = packed["boundaries"].tolist()
    first = 0
    for last in range(1, len(boundaries)):
        if last + 1 < len(boundaries) and boundaries[last + 1] - boundaries[first] <= PIECE:
            continue
        part = slice(boundaries[first], boundaries[last])
        piece: Packed = {
            **packed,
            "position_ids": packed["position_ids"][:, part],
            "boundaries": packed["boundaries"][first : last + 1] - part.start,
        }
        yield part, piece
        first = last


def _apart(model: PreTrainedModel, packed: Packed) -> dict[str, Any]:
    """What makes transformers' attention stay within the examples of a packed row.

    Position ids that start anew, and no mask, become a block-diagonal mask (eager, sdpa, flex). Flash attention would
    find the boundaries from them as well, but in every layer and waiting for the device each time, so it gets them.
    """
    given: dict[str, Any] = {"position_ids": packed["position_ids"]}
    if "flash" in str(model.config._attn_implementation):
        given |= {"cu_seq_lens_q": packed["boundaries"], "cu_seq_lens_k": packed["boundaries"]}
        given |= {"max_length_q": packed["longest"], "max_length_k": packed["longest"]}
    return given


def like_lengths(lengths: Sequence[int], cost: int = 256) -> list[list[int]]:
    """Indices of rows in groups of like length, where a further group spares at least `cost` padded positions."""
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])

    def split(start: int, stop: int) -> list[list[int]]:
        spared = [(lengths[rows[start]] - lengths[rows[cut]]) * (stop - cut) for cut in range(start + 1, stop)]
        if not spared or max(spared) < cost:
            return [rows[start:stop]]
        cut = start + 1 + spared.index(max(spared))
        return split(start, cut) + split(cut, stop)

    return split(0, len(rows)) if rows else []


def quiet_loading() -> None:
    """No progress bars nor advice of transformers' own on standard error."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def longest_input(config: Any) -> int | None:
    """How many positions the architecture has room for, or None where it names no limit."""
    text = config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "n_ctx"):
        limit = getattr(text, key, None)
        if isinstance(limit, int):
            return limit
    return None


def check_room(config: Any, tokens: int, max_length: int, *, model: str, length: str, who: str) -> None:
    """Compare a configuration with its tokenizer and with the length of the examples.

    Args:
        tokens: of the tokenizer.
        model: the key that names the model.
        length: the key of `max_length`.
        who: the model, as the mistake calls it.

    Raises:
        Mistake: too few embeddings or too few positions.
    """
    rows = config.get_text_config().vocab_size
    if rows < tokens:
        wrong = f"has {rows} embeddings for a tokenizer of {tokens} tokens"
        raise Mistake(model, wrong, "use the tokenizer that the model was trained with")
    positions = longest_input(config)
    if positions is not None and max_length > positions:
        wrong = f"{max_length} is more than the {positions} positions of {who}"
        raise Mistake(length, wrong, f"write {positions} or less")
