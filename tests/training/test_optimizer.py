"""Parameter groups and learning rates of the DSKD line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from stillhouse.mistakes import Mistake
from stillhouse.recipe.trainer_arguments import settle
from stillhouse.training.optimizer import dskd_groups, dskd_schedule, give_named_groups


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


def test_named_groups_change_what_they_say_of_what_they_match_and_nothing_else() -> None:
    model = nn.ModuleDict({"first": nn.Linear(2, 3), "second": nn.Linear(3, 2)})
    weights, biases = [[part for name, part in model.named_parameters() if key in name] for key in ("weight", "bias")]
    own = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(own, lr=1e-3)
    groups = [{"pattern": r"^second\.", "lr": 0.5}, {"pattern": "weight", "weight_decay": 0.7}]
    give_named_groups(optimizer, model, groups)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    named = {name: found[id(part)] for name, part in model.named_parameters()}
    assert named == {
        "first.weight": (1e-3, 0.7),
        "first.bias": (1e-3, 0.0),
        "second.weight": (0.5, 0.1),
        "second.bias": (0.5, 0.0),
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4
    with pytest.raises(Mistake, match=r"param_groups\.0\.pattern.*matches no parameter"):
        give_named_groups(optimizer, model, [{"pattern": "third", "lr": 1.0}])


@pytest.mark.parametrize(
    ("group", "where"),
    [
        ({"pattern": "(", "lr": 1.0}, "0.pattern"),
        ({"lr": 1.0}, "0.pattern"),
        ({"pattern": "a"}, "param_groups.0"),
        ({"pattern": "a", "lr": -1.0}, "0.lr"),
        ({"pattern": "a", "weight_decay": "high"}, "0.weight_decay"),
        ({"pattrn": "a", "lr": 1.0}, "0.pattrn"),
    ],
)
def test_a_wrong_group_is_a_mistake_of_the_recipe(group: dict[str, object], where: str) -> None:
    with pytest.raises(Mistake) as caught:
        settle({"param_groups": [group]})
    assert caught.value.where.endswith(where)
