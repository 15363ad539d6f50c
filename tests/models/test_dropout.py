"""One rate for all dropout of a model, whatever its architecture calls it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from stillhouse.models import load_causal_lm, set_dropout

SMALL = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "opt": {"dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.3, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "llama": {"attention_dropout": 0.3},
    "qwen2": {"attention_dropout": 0.3},
    "gemma2": {"attention_dropout": 0.3, "head_dim": 8, "query_pre_attn_scalar": 8},
    "phi": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attention_dropout": 0.3},
    "bloom": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "falcon": {"hidden_dropout": 0.3, "attention_dropout": 0.3, "alibi": False},
    "gpt_neox": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "gpt_neo": {"resid_dropout": 0.3, "embed_dropout": 0.3, "attention_dropout": 0.3, "num_layers": 2,
                "attention_types": [[["global"], 2]]},
}  # fmt: skip


def made(kind: str) -> Any:
    torch.manual_seed(0)
    known = CONFIG_MAPPING[kind]
    plain = known()
    sizes = {key: value for key, value in SMALL.items() if hasattr(plain, key)}
    with torch.random.fork_rng():
        return AutoModelForCausalLM.from_config(known(**{**sizes, **OWN[kind]}), attn_implementation="eager")


@torch.no_grad()
def logits(model: Any, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return model(input_ids=torch.arange(1, 13)[None], use_cache=False).logits


@pytest.mark.parametrize("kind", OWN)
def test_at_zero_training_says_what_evaluation_does(kind: str) -> None:
    model = made(kind)
    expected = logits(model.eval(), 0)
    assert not torch.equal(logits(model.train(), 0), logits(model, 1)), "the model has some of its own"
    set_dropout(model, 0.0)
    torch.testing.assert_close(logits(model.train(), 1), expected)


def test_another_rate_is_one_of_modules_and_functions_alike() -> None:
    model = made("opt")
    set_dropout(model, 0.2)
    assert (model.config.dropout, model.config.attention_dropout, model.config.layerdrop) == (0.2, 0.2, 0.3)
    assert model.model.decoder.layers[0].dropout == model.model.decoder.layers[0].self_attn.dropout == 0.2
    model = made("gpt2")
    set_dropout(model, 0.2)
    assert {part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)} == {0.2}


def test_a_model_is_loaded_with_it_and_an_adapter_keeps_its_own(tmp_path: Any) -> None:
    made("gpt2").save_pretrained(tmp_path)
    model = load_causal_lm(str(tmp_path), dropout=0.0, lora={"r": 2, "lora_dropout": 0.4, "target_modules": ["c_attn"]})
    rates = {name.rpartition(".lora_")[1]: part.p for name, part in model.named_modules() if hasattr(part, "p")}
    assert rates == {"": 0.0, ".lora_": 0.4}
    assert load_causal_lm(str(tmp_path)).config.resid_pdrop == 0.3
