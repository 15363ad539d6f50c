"""`Head.of` and `last_hidden` against the logits that each real architecture gives itself."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from stillhouse.head import Head, probe
from stillhouse.mistakes import Mistake
from stillhouse.models import last_hidden

COMMON = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Architecture -> what differs from COMMON.
ARCHITECTURES: dict[str, dict[str, object]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48},
    "llama": {},
    "qwen2": {},
    "mistral": {"sliding_window": 32},
    "opt": {"word_embed_proj_dim": 24, "ffn_dim": 48},
    "gpt_neox": {"rotary_pct": 0.25},
    "stablelm": {},
    "phi": {},
    "phi3": {"original_max_position_embeddings": 64},
    "olmo2": {},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 0.05, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "final_logit_softcapping": 0.05, "query_pre_attn_scalar": 8},
    "granite": {"logits_scaling": 5.0},
    "cohere": {"logit_scale": 0.0625},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48, "rotary_dim": 4},
}


def model_of(kind: str, **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**COMMON, **ARCHITECTURES[kind], **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        torch.nn.init.normal_(head.bias)  # a bias of zeros would not be seen to be forgotten
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_head_of_last_hidden_gives_the_models_own_logits(kind: str, tied: bool) -> None:
    model = model_of(kind, tie_word_embeddings=tied)
    ids = torch.tensor([[5, 9, 33, 60, 7, 0, 0], [3, 4, 5, 6, 7, 8, 9]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1] * 7])
    with torch.no_grad():
        own = model(input_ids=ids, attention_mask=mask).logits
        ours = Head.of(model).logits(last_hidden(model, ids, mask).flatten(0, 1)).unflatten(0, (2, 7))
    torch.testing.assert_close(ours[mask.bool()], own[mask.bool()], rtol=1e-5, atol=1e-6)
    probe(model, last_hidden)


@pytest.mark.parametrize("kind", ["gemma2", "granite", "cohere"])
def test_the_probe_sees_a_head_that_we_would_misread(kind: str) -> None:
    model = model_of(kind)
    own = model.forward

    def twice(*args: object, **options: object) -> object:
        output = own(*args, **options)
        output.logits = output.logits * 2.0 + torch.randn_like(output.logits)
        return output

    model.forward = twice  # type: ignore[method-assign]
    with pytest.raises(Mistake, match="not its head applied to its last hidden state"):
        probe(model, last_hidden)


def test_a_padded_vocabulary_is_cut_to_the_real_tokens() -> None:
    model = model_of("qwen2", vocab_size=64)
    head = Head.of(model, vocabulary=61)
    assert head.vocabulary == 61 and head.logits(torch.randn(3, 32)).shape == (3, 61)
