"""Parameter groups and learning rates of the DSKD line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from stillhouse.training.optimizer import dskd_groups, dskd_schedule


def test_cosine_of_every_group_equals_the_official_one(golden: Path) -> None:
    official = json.loads((golden / "cross_tokenizer" / "lr_cosine.json").read_text())
    first = official["lr_per_step"][0]
    optimizer = torch.optim.AdamW([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in first])
    schedule = dskd_schedule(optimizer, official["T_max"])
    for rates in official["lr_per_step"]:
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(rates, rel=1e-9)
        optimizer.step()
        schedule.step()


def test_gpt2_biases_and_norms_are_not_decayed_but_llama_norms_are() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_layer=1, n_embd=8, n_head=2))
    decayed, others = dskd_groups(gpt2, 0.01)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in others["params"])
    llama = LlamaForCausalLM(
        LlamaConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    (everything,) = dskd_groups(llama, 0.01)
    assert len(everything["params"]) == len(list(llama.parameters()))
    llama.requires_grad_(False)
    assert dskd_groups(llama, 0.01) == []
