"""Hidden states of rows run in groups equal those of the padded batch; and what does not load is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from stillhouse.mistakes import Mistake
from stillhouse.models import backbone, last_hidden, like_lengths, load_causal_lm, load_config
from tests import toy

LENGTHS = [300, 17, 150, 151, 299, 1]


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    )


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=512))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    mask = (torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(50, mask.shape) * mask
    return ids, mask


@pytest.mark.parametrize("architecture", [llama, gpt2])
def test_groups_give_the_padded_batchs_states_and_gradients(architecture: Callable[[], PreTrainedModel]) -> None:
    torch.manual_seed(0)
    model = architecture().double().eval()
    ids, mask = batch()
    assert len(like_lengths(LENGTHS)) == 3
    ours = last_hidden(model, ids, mask)
    ours[mask.bool()].square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    plain = backbone(model)(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours[mask.bool()], plain[mask.bool()], rtol=1e-10, atol=1e-10)
    plain[mask.bool()].square().sum().backward()
    expected = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@given(st.lists(st.integers(1, 600), max_size=40), st.integers(1, 1000))
def test_groups_hold_every_row_once_and_only_cut_where_it_pays(lengths: list[int], cost: int) -> None:
    groups = like_lengths(lengths, cost)
    assert sorted(row for rows in groups for row in rows) == list(range(len(lengths)))

    def positions(rows: list[int]) -> int:
        return len(rows) * max(lengths[row] for row in rows)

    if lengths:
        spared = positions(list(range(len(lengths)))) - sum(map(positions, groups))
        assert spared >= cost * (len(groups) - 1)


def test_what_does_not_load_is_said(tmp_path: Path) -> None:
    folder = Path(toy.write_model(tmp_path / "model", 0))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:900])
    with pytest.raises(Mistake, match="this model does not load"):
        load_causal_lm(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(Mistake, match=r"no \*.safetensors in this folder; save the model as safetensors"):
        load_causal_lm(str(folder))
    with pytest.raises(Mistake, match=r"config.n_layers: LlamaConfig has no such key"):
        load_config(str(folder), overrides={"n_layers": 3})
    with pytest.raises(Mistake, match="no model configuration"):
        load_config(str(tmp_path / "nothing"))


def test_weights_of_another_shape_or_missing_ones_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(toy.write_model(tmp_path / "model", 0))
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Mistake, match=r"weights are missing: model.norm.weight"):
        load_causal_lm(str(folder))


def test_from_scratch_depends_on_the_seed_alone(tmp_path: Path) -> None:
    folder = toy.write_model(tmp_path / "model", 0)
    first, again, other = (
        load_causal_lm(folder, from_scratch=True, config={"num_hidden_layers": 2}, seed=seed) for seed in (5, 5, 6)
    )
    assert len(first.model.layers) == 2
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
