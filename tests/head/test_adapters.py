"""Heads that peft has adapted: values and every gradient equal those of peft's own dense logits, in fp64."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from stillhouse import divergence
from stillhouse.head import Head, Predictions, Term, rowwise_loss
from stillhouse.mistakes import Mistake
from tests.head.sides import SMALL
from tests.head.test_architectures import model_of

# What peft itself calls is deprecated in transformers, and it has advice on tied weights and on biases to be merged.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*(tie|tied|Tied|lora_bias|fan_in_fan_out)"),
]

IDS = torch.tensor([[5, 9, 33, 60, 7, 11, 12], [3, 4, 5, 6, 7, 8, 9]])
BODY = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}


def adapted(kind: str, tied: bool = False, **changes: Any) -> Any:
    """A tiny model whose head peft has adapted, in fp64, every adapter with random numbers in it."""
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": [*BODY[kind], "lm_head"], **changes})
    model = peft.get_peft_model(model_of(kind, tie_word_embeddings=tied), config).double()
    return filled(model)


def filled(model: Any) -> Any:
    """B starts at zero, and then a wrong A would not be seen."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def gradients_of(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def check(model: Any, given: Any = None) -> dict[str, Tensor]:
    """Compare rowwise_loss through `Head.of(given)` with peft's own logits; returns the gradients."""
    causal = model.base_model.model if isinstance(model, peft.PeftModel) else model
    labels = IDS.flatten() % 7
    kd, ce = divergence.build("forward_kl"), divergence.build("ce")
    target = torch.randn(14, 61, dtype=torch.float64)  # a teacher whose head is the identity
    teacher = Predictions(target, Head(torch.eye(61, dtype=torch.float64)), labels, labels)

    dense = model(input_ids=IDS).logits.flatten(0, 1)  # [N, V]
    loss = (ce(dense, None, labels) + 2.0 * kd(dense, target)).sum()
    loss.backward()
    expected = gradients_of(model)

    hidden = causal.base_model(input_ids=IDS).last_hidden_state.flatten(0, 1)  # [N, d]
    head = Head.of(model if given is None else given)
    torch.testing.assert_close(head.logits(hidden), dense, rtol=1e-11, atol=1e-12)
    student = Predictions(hidden, head, labels, labels)
    ours = rowwise_loss(student, teacher, [Term("ce", ce), Term("kd", kd, 2.0)], blocks=SMALL).loss
    ours.backward()
    torch.testing.assert_close(ours.detach(), loss.detach(), rtol=1e-11, atol=1e-12)
    found = gradients_of(model)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)
    return found


def on_the_head(found: dict[str, Tensor]) -> list[str]:
    return sorted(name.partition("lm_head.")[2] for name in found if "lm_head." in name)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
def test_lora_on_the_head_is_trained_and_its_base_is_not(kind: str, tied: bool, rslora: bool) -> None:
    model = adapted(kind, tied, use_rslora=rslora)
    found = check(model)
    assert on_the_head(found) == ["lora_A.default.weight", "lora_B.default.weight"]
    assert not any("base_layer" in name or "wte" in name or "embed_tokens" in name for name in found)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_head_of_the_wrapped_model_is_the_same(kind: str) -> None:
    model = adapted(kind)
    check(model, given=model.base_model.model)
    check(model, given=model.base_model)


def test_several_active_adapters_are_summed_and_inactive_ones_are_not() -> None:
    model = adapted("llama")
    for name, rank in (("second", 2), ("third", 4)):
        model.add_adapter(name, peft.LoraConfig(r=rank, lora_alpha=rank * 3, target_modules=["q_proj", "lm_head"]))
    filled(model.double())
    model.base_model.set_adapter(["default", "second"])
    found = on_the_head(check(model))
    assert [name.split(".")[1] for name in found] == ["default", "second"] * 2


def test_a_bias_of_lora_is_part_of_the_heads_bias() -> None:
    model = adapted("llama", lora_bias=True)
    assert "lora_B.default.bias" in on_the_head(check(model))


def test_merged_and_disabled_adapters() -> None:
    model = adapted("llama")
    plain = model.base_model.model.lm_head.base_layer.weight.detach().clone()
    with model.disable_adapter():
        assert torch.equal(Head.of(model).weight, plain)
    effective = Head.of(model).weight.detach()
    model.merge_adapter()
    torch.testing.assert_close(Head.of(model).weight, effective)
    assert not torch.allclose(effective, plain)
    with model.disable_adapter():  # the layer's own forward would undo the merge here
        torch.testing.assert_close(Head.of(model).weight, plain)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_head_in_modules_to_save_is_trained_whole(kind: str, tied: bool) -> None:
    model = adapted(kind, tied, target_modules=BODY[kind], modules_to_save=["lm_head"])
    found = check(model)
    assert on_the_head(found) == ["modules_to_save.default.weight"]
    check(model, given=model.base_model.model)
    with model.disable_adapter():
        assert Head.of(model).weight is model.base_model.model.lm_head.original_module.weight


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_gradient_reaches_a_tied_parameter_from_both_its_uses(kind: str) -> None:
    model = model_of(kind, tie_word_embeddings=True).double()
    found = check(model)
    shared = model.get_input_embeddings().weight
    assert Head.of(model).weight is shared
    assert sum(gradient.shape == shared.shape for gradient in found.values()) == 1


def test_a_tied_head_and_embedding_trained_together_stay_one() -> None:
    options = {"target_modules": BODY["llama"], "modules_to_save": ["lm_head", "embed_tokens"]}
    model = adapted("llama", True, ensure_weight_tying=True, **options)
    found = check(model)
    assert model.get_input_embeddings().weight is Head.of(model).weight
    assert any("modules_to_save" in name for name in found)


def test_trainable_tokens_pass_through() -> None:
    model = adapted("llama", True, target_modules=BODY["llama"], trainable_token_indices=[3, 8, 60])
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            torch.nn.init.normal_(parameter)
    assert any("trainable_tokens_delta" in name for name in check(model))


def test_under_autocast_the_effective_weight_is_not_rounded() -> None:
    model = adapted("llama").float()
    exact = Head.of(model).weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Head.of(model).weight, exact)
    half = model.base_model.model.lm_head
    half.base_layer.bfloat16()
    assert Head.of(model).weight.dtype == torch.float32  # the adapter's


def test_what_no_weight_can_express_is_refused_with_the_mend() -> None:
    dropped = adapted("llama", lora_dropout=0.1)
    for training in (True, False):
        dropped.train(training)
        with pytest.raises(Mistake, match=r"lm_head: adapter 'default' on it has dropout.*lora_dropout to 0, leave lm"):
            Head.of(dropped)
    frozen = dropped.requires_grad_(False).eval()  # a teacher: its dropout does nothing
    torch.testing.assert_close(
        Head.of(frozen).logits(frozen.base_model.model.base_model(input_ids=IDS).last_hidden_state),
        frozen(input_ids=IDS).logits,
    )
    with pytest.raises(Mistake, match="lm_head: adapter 'default' on it is Dora, not plain LoRA; leave lm_head out"):
        Head.of(adapted("llama", use_dora=True))
    other = peft.get_peft_model(model_of("llama"), peft.LoHaConfig(target_modules=["lm_head"]))
    with pytest.raises(Mistake, match="lm_head: is adapted by Linear, which is not known here; leave lm_head out"):
        Head.of(other)
