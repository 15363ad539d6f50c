"""Small real things for tests: a byte-level BPE, model folders with weights, and rows of arithmetic."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stillhouse.catalogue import METHODS

WORDS = ("What is", "plus", "times", "The answer is", "### Instruction:\n", "\n\n### Response:\n", "please")


def rows(count: int) -> list[dict[str, str]]:
    """Instructions of different lengths, with their answers."""
    made = []
    for i in range(count):
        a, b = i % 7, (3 * i) % 11
        ask = f"What is {a} plus {b}" + ", please" * (i % 3)
        made.append({"instruction": ask, "output": f"The answer is {a + b}" + "." * (i % 4)})
    return made


def write_rows(path: Path, count: int) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(count)))
    return str(path)


def write_world(folder: Path, dev: int = 4, *, sharp: float = 20.0) -> Path:
    """What training needs: a student in `small`, a teacher in `large`, 24 rows to learn and `dev` to measure by.

    The teacher in `foreign` has another tokenizer.
    """
    write_model(folder / "small", 1)
    write_model(folder / "large", 2, hidden=24, layers=2, sharp=sharp)
    write_model(folder / "foreign", 3, hidden=24, entries=280, sharp=sharp)
    write_rows(folder / "train.jsonl", 24)
    write_rows(folder / "dev.jsonl", dev)
    return folder


def write_untied(folder: Path) -> Path:
    """To a world of `write_world` the teacher `untied`: as `large`, but with a head of its own."""
    model = LlamaForCausalLM.from_pretrained(folder / "large")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(1.5 * model.lm_head.weight.detach())
    model.save_pretrained(folder / "untied")
    tokenizer().save_pretrained(folder / "untied")
    return folder


def rollout(method: str) -> list[str]:
    """The options by which a method whose student writes is quick, and asks for no dev rows; none for the others."""
    own = METHODS[method].rollout
    if own is None:
        return []
    mixed = ["--rollout.source=mixed", "--rollout.share=0.7", "--rollout.replay=true"]
    return ["--rollout.max_new_tokens=6", *(mixed if own["source"] == "adaptive" else [])]


def tokenizer(entries: int = 300, texts: Sequence[str] | None = None) -> PreTrainedTokenizerFast:
    """Trained on `texts`; by default on rows of its own."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=entries, special_tokens=["<eos>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    own = [*(f"{row['instruction']} {row['output']}" for row in rows(50)), *WORDS]
    bpe.train_from_iterator(own if texts is None else texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<pad>")


def write_model(
    folder: Path,
    seed: int,
    *,
    hidden: int = 16,
    layers: int = 1,
    padded: int = 0,
    entries: int = 300,
    sharp: float = 1.0,
    texts: Sequence[str] | None = None,
) -> str:
    """A Llama-architecture model with random weights and the toy tokenizer, as a folder.

    Its predictions are almost uniform, but for `sharp`, which multiplies embeddings and head.
    """
    made = tokenizer(entries, texts)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(made) + padded,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=made.get_vocab()["<eos>"],
        pad_token_id=made.get_vocab()["<pad>"],
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(sharp)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return str(folder)
