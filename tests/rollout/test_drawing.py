"""What is noted of drawn tokens, and a second model that has a share in them, against plain loops."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from stillhouse.rollout import Sampling, respond
from stillhouse.rollout.drawing import Drawing, _drawn
from tests.rollout.small import VOCABULARY, character_tokenizer, some_prompts, tiny_gpt2, tiny_llama

PROMPTS = some_prompts(6)


@torch.no_grad()
def next_logs(model: PreTrainedModel, ids: list[int], temperature: float) -> torch.Tensor:
    """log of the model's probabilities of the next token, of the tokenizer's tokens: [V]."""
    return torch.log_softmax(model(torch.tensor([ids]), use_cache=False).logits[0, -1, :VOCABULARY] / temperature, -1)


@pytest.mark.parametrize("sampling", [Sampling(9, temperature=0.7), Sampling(9, top_p=0.5), Sampling(9, top_k=4)])
def test_log_probabilities_are_the_models_own_before_any_cut(sampling):
    model = tiny_llama()
    for prompt, said in zip(
        PROMPTS, respond(model, character_tokenizer(), PROMPTS, sampling, seed=1, batch_size=4), strict=True
    ):
        assert len(said.ids) == len(said.log_probability) == len(said.importance)
        for place, (token, log) in enumerate(zip(said.ids, said.log_probability, strict=True)):
            expected = next_logs(model, [*prompt, *said.ids[:place]], sampling.temperature)[token]
            assert log == pytest.approx(float(expected), abs=1e-4)
        assert set(said.importance) == {1.0}


@pytest.mark.parametrize("beside", [tiny_gpt2, tiny_llama])
def test_importance_is_that_of_the_mixture(beside):
    student, teacher = tiny_llama(), beside(seed=5)
    answered = respond(
        student, character_tokenizer(), PROMPTS, Sampling(9), seed=1, batch_size=6, beside=teacher, share=0.4
    )
    for prompt, said in zip(PROMPTS, answered, strict=True):
        for place, token in enumerate(said.ids):
            read = [*prompt, *said.ids[:place]]
            own, theirs = (next_logs(model, read, 1.0)[token].exp() for model in (student, teacher))
            expected = own / (0.6 * own + 0.4 * theirs)
            assert said.importance[place] == pytest.approx(float(expected), rel=1e-4)


def test_a_second_model_alone_draws_as_it_would_itself():
    """All of the share: the first model's weights have no part in what is written."""
    tokenizer, teacher = character_tokenizer(), tiny_gpt2(seed=5)
    mixed = respond(tiny_llama(), tokenizer, PROMPTS, Sampling(9), seed=3, batch_size=3, beside=teacher, share=1.0)
    own = respond(teacher, tokenizer, PROMPTS, Sampling(9), seed=3, batch_size=3)
    assert [said.ids for said in mixed] == [said.ids for said in own]


def test_draws_follow_probabilities_that_are_unlike():
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]]).expand(6000, 4)
    drawing = Drawing(Sampling(1), [(0, row) for row in range(6000)])
    counts = Counter(drawing(torch.zeros(6000, 1, dtype=torch.long), logits).argmax(-1).tolist())
    for token, share in enumerate(logits[0].softmax(-1).tolist()):
        assert counts[token] / 6000 == pytest.approx(share, abs=0.02)


def test_a_place_at_the_very_end_falls_to_a_token_that_may_be_said():
    stream: Any = type("Stream", (), {"random": staticmethod(lambda: 1.0)})()
    assert int(_drawn(torch.tensor([[0.3, 0.7, 0.0]]), [stream])) == 1
