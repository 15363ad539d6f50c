"""The gradients of a student with an adapter are those of peft's own dense logits, and a frozen head gets none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from stillhouse import adapters, divergence
from stillhouse.head import probe
from stillhouse.head.products import Gradients
from stillhouse.methods import build as build_method
from stillhouse.models import last_hidden
from stillhouse.teacher import LiveTeacher
from stillhouse.training.distiller import Distiller

# peft's own remarks on heads that are tied, where a test adapts such a head on purpose.
TIED = pytest.mark.filterwarnings("ignore:.*(tied|tie_word_embeddings)")
VOCABULARY = 61
IDS = torch.tensor([[5, 9, 33, 60, 7, 11, 12], [3, 4, 5, 6, 7, 8, 9]])
LABELS = torch.where(torch.arange(7) > 1, IDS.roll(-1, 1), torch.tensor(-100))


def model_of(kind: str, *, tied: bool = False) -> Any:
    torch.manual_seed(3)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32, tie_word_embeddings=tied
        )
        return GPT2LMHeadModel(config)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=tied, **shape))


def student_of(kind: str, *, tied: bool = False, **settings: Any) -> Any:
    """An adapted model in fp64 whose adapter says something: B is zero at first, and then a wrong A would not show."""
    model = adapters.put_new(model_of(kind, tied=tied), {"r": 3, "lora_alpha": 5, **settings}, "nowhere").double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def gradients_of(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "dropout": {"lora_dropout": 0.3},
    "every linear layer": {"target_modules": "all-linear"},
    "a head of its own": {"modules_to_save": ["lm_head"]},
    "the head as well": {"target_modules": ["lm_head"]},
}


@TIED
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("llama", True), ("gpt2", True)])
def test_loss_and_gradients_are_those_of_the_dense_model(kind: str, tied: bool, case: str) -> None:
    student = student_of(kind, tied=tied, **CASES[case]).train()
    teacher = model_of(kind).double().eval()  # GPT-2 has dropout of its own
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.5)
        target = teacher(input_ids=IDS).logits[LABELS >= 0]  # [N, V]
    labels = LABELS[LABELS >= 0]

    torch.manual_seed(1)
    logits = student(input_ids=IDS).logits[LABELS >= 0]  # [N, V]
    ce, kd = divergence.build("ce")(logits, None, labels), divergence.build("todi", temperature=2.0)(logits, target)
    dense = (0.5 * ce + 0.5 * kd).sum()
    dense.backward()
    expected = gradients_of(student)

    distiller = Distiller(student, build_method("todi"), LiveTeacher(teacher, VOCABULARY), VOCABULARY).train()
    torch.manual_seed(1)
    loss, _ = distiller(IDS, torch.ones_like(IDS), LABELS, (LABELS.flatten() >= 0).nonzero().flatten())
    loss.backward()
    torch.testing.assert_close(loss.detach(), dense.detach(), rtol=1e-10, atol=1e-11)
    found = gradients_of(student)
    assert found.keys() == expected.keys() == {name for name, p in student.named_parameters() if p.requires_grad}
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-11)
    if case != "dropout":
        probe(student.eval(), last_hidden)


@pytest.mark.parametrize(("case", "asked"), [("plain", False), ("a head of its own", True)])
def test_no_gradient_of_a_frozen_head_is_computed(case: str, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    student = student_of("llama", **CASES[case])
    wants: list[bool] = []
    made = Gradients.__init__

    def noted(self: Gradients, leaves: Any, wanted: Any, *rest: Any) -> None:
        wants.append(wanted[1])
        made(self, leaves, wanted, *rest)

    monkeypatch.setattr(Gradients, "__init__", noted)
    distiller = Distiller(student, build_method("seqkd"), None, VOCABULARY)
    loss, _ = distiller(IDS, torch.ones_like(IDS), LABELS, (LABELS.flatten() >= 0).nonzero().flatten())
    loss.backward()
    assert wants == [asked]
