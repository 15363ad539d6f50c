"""Responses against a loop that writes one prompt at a time, one full forward a token."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as some
from transformers import GenerationConfig, PreTrainedModel

from stillhouse.mistakes import Mistake
from stillhouse.rollout import Response, Sampling, generate, respond
from stillhouse.rollout.batches import plan_batches
from tests.rollout.small import VOCABULARY, character_tokenizer, some_prompts, tiny_gpt2, tiny_llama

GREEDY = Sampling(max_new_tokens=12, temperature=0)
DRAWN = Sampling(max_new_tokens=12)


@pytest.fixture(scope="module", params=[tiny_gpt2, tiny_llama])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return request.param()


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer()


@torch.no_grad()
def greedy_twin(
    model: PreTrainedModel, prompt: Sequence[int], count: int, stop: Sequence[int] = (0,), real: int = VOCABULARY
) -> tuple[list[int], bool]:
    """Up to `count` likeliest tokens after `prompt`, and whether one of `stop` came."""
    ids = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1, :real]  # [V]
        ids.append(int(logits.argmax()))
        if ids[-1] in stop:
            return ids[len(prompt) : -1], True
    return ids[len(prompt) :], False


def plain(response: Response) -> Response:
    """Without the notes of its tokens."""
    return replace(response, ids=(), log_probability=(), importance=())


@pytest.fixture(scope="module")
def one_by_one(model, tokenizer) -> tuple[list[list[int]], int, list[Response]]:
    """Prompts, a token that about half of their responses come to, and the twin's responses that end with it."""
    prompts = some_prompts(16)
    found = Counter(token for prompt in prompts for token in set(greedy_twin(model, prompt, 12)[0]))
    stop = min(found, key=lambda token: abs(found[token] - len(prompts) // 2))
    twins = [greedy_twin(model, prompt, 12, (0, stop)) for prompt in prompts]
    return prompts, stop, [Response(tokenizer.decode(ids), finished, clipped=False) for ids, finished in twins]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_greedy_equals_one_by_one_whatever_the_batch_and_order(model, tokenizer, one_by_one, batch_size):
    prompts, stop, expected = one_by_one
    assert {response.finished for response in expected} == {True, False}, "rows of a batch end at different times"
    order = random.Random(1).sample(range(len(prompts)), len(prompts))
    shuffled = [prompts[i] for i in order]
    responses = respond(model, tokenizer, shuffled, GREEDY, seed=1, batch_size=batch_size, stop=[stop])
    assert [plain(response) for response in responses] == [expected[i] for i in order]


def test_what_is_drawn_depends_on_seed_and_prompts_only(model, tokenizer):
    prompts = some_prompts(9)

    def drawn(seed: int = 10, batch_size: int = 4) -> list[str]:
        torch.manual_seed(random.randrange(1 << 30))  # the state of the surrounding program
        return generate(model, tokenizer, prompts, DRAWN, seed=seed, batch_size=batch_size)

    assert drawn() == drawn(batch_size=1) == drawn(batch_size=9)
    assert drawn() != drawn(seed=20)


def test_a_prompt_keeps_its_own_seed_among_others(model, tokenizer):
    prompts, seeds = some_prompts(7), [(5, index) for index in range(7)]
    together = respond(model, tokenizer, prompts, DRAWN, seed=seeds, batch_size=7)
    alone = respond(model, tokenizer, prompts[3:4], DRAWN, seed=seeds[3:4], batch_size=1)[0]
    assert alone.text == together[3].text and alone.ids == together[3].ids


def test_batches_of_the_same_prompts_are_drawn_apart(model, tokenizer):
    texts = generate(model, tokenizer, [[5, 6, 7]] * 8, DRAWN, seed=10, batch_size=2)
    assert len(set(texts)) == 8


def test_draws_follow_the_whole_distribution():
    """With 257 nearly equal tokens a leaking default of top_k = 50 would show at once."""
    model = tiny_gpt2(vocab_size=VOCABULARY)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    first = respond(model, character_tokenizer(), [[1]] * 4000, Sampling(max_new_tokens=1), seed=3, batch_size=1000)
    counts = Counter(response.text for response in first)
    expected = 4000 / VOCABULARY
    assert len(counts) == VOCABULARY
    assert max(counts.values()) < expected + 5 * expected**0.5


@pytest.mark.parametrize(
    ("sampling", "distinct"),
    [(Sampling(1, top_k=3), 3), (Sampling(1, temperature=1e-4), 1), (Sampling(1, top_p=1e-6), 1), (Sampling(1), None)],
)
def test_each_setting_of_sampling_acts(sampling, distinct):
    texts = generate(tiny_gpt2(), character_tokenizer(), [[1]] * 400, sampling, seed=3, batch_size=400)
    assert (len(set(texts)) == distinct) if distinct else len(set(texts)) > 10


def test_no_ngram_is_written_twice(tokenizer):
    model, prompt = tiny_gpt2(), [40] * 8
    free = generate(model, tokenizer, [prompt], Sampling(40, temperature=0), seed=1, batch_size=1)[0]
    pairs = Counter(pairwise(free))
    assert pairs.most_common(1)[0][1] > 1, "the model repeats itself when it may"

    barred = generate(model, tokenizer, [prompt], Sampling(40, 0, no_repeat_ngram_size=2), seed=1, batch_size=1)[0]
    ids = prompt[-1:] + tokenizer(barred)["input_ids"]
    assert Counter(pairwise(ids)).most_common(1)[0][1] == 1


@pytest.mark.parametrize("special", [{}, {"pad_token": "<|pad|>"}, {"pad_token": "A"}])
def test_the_padding_token_does_not_touch_the_text(special, tokenizer):
    """The same text whether padding is the end of the text, a token of its own, or a letter that prompts hold."""
    model, letter = tiny_llama(), tokenizer.convert_tokens_to_ids("A")
    prompts = [[letter, *prompt] for prompt in some_prompts(9)]
    expected = [tokenizer.decode(greedy_twin(model, prompt, 12)[0]) for prompt in prompts]
    mine = character_tokenizer(**special)
    answered = generate(model, mine, prompts, GREEDY, seed=1, batch_size=9)
    if special.get("pad_token") == "A":  # a special token now, so no text
        expected = [text.replace("A", "") for text in expected]
    assert answered == expected


def test_white_space_is_kept_and_special_tokens_are_not(tokenizer):
    written = tokenizer("  a .\n")["input_ids"]
    model = follows(written)
    assert generate(model, tokenizer, [[1]], Sampling(6, temperature=0), seed=1, batch_size=1) == ["  a .\n"]
    marked = character_tokenizer(additional_special_tokens=["a"])
    assert generate(model, marked, [[1]], Sampling(6, temperature=0), seed=1, batch_size=1) == ["   .\n"]


def follows(written: Sequence[int]) -> PreTrainedModel:
    """A GPT-2 whose position p decides alone that `written[p]` comes next."""
    model = tiny_gpt2(n_layer=0, n_embd=32, n_positions=16, tie_word_embeddings=False)
    parts = dict(model.named_parameters())
    with torch.no_grad():
        for parameter in parts.values():
            parameter.zero_()
        model.transformer.ln_f.weight.fill_(1)
        for position, token in enumerate(written):
            model.transformer.wpe.weight[position, position] = 1
            model.lm_head.weight[token, position] += 1
    return model


def test_defaults_of_the_model_do_not_leak(tokenizer):
    model, prompts = tiny_gpt2(), some_prompts(6)
    plain = {
        sampling: generate(model, tokenizer, prompts, sampling, seed=4, batch_size=6) for sampling in (GREEDY, DRAWN)
    }
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.1, top_k=2, top_p=0.1, repetition_penalty=9.0, eos_token_id=7, min_length=30,
        max_length=12, num_beams=3, num_return_sequences=2, forced_eos_token_id=9, bad_words_ids=[[3]], pad_token_id=5,
    )  # fmt: skip
    own = model.generation_config
    for sampling, texts in plain.items():
        assert generate(model, tokenizer, prompts, sampling, seed=4, batch_size=6) == texts
    assert model.generation_config is own


@pytest.mark.parametrize("fails", [False, True])
def test_mode_and_random_state_are_left_as_they_were(tokenizer, fails):
    model = tiny_gpt2(resid_pdrop=0.5).train()
    frozen = model.transformer.h[0]
    frozen.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    if fails:
        model.transformer.wpe.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            generate(model, tokenizer, [[1, 2]], DRAWN, seed=1, batch_size=1)
    else:
        evaluated = tiny_gpt2(resid_pdrop=0.5)
        torch.set_rng_state(state)
        texts = generate(model, tokenizer, some_prompts(3), GREEDY, seed=1, batch_size=2)
        assert texts == generate(evaluated, tokenizer, some_prompts(3), GREEDY, seed=1, batch_size=2), "no dropout"
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_training_step_after_generating_is_the_same_step(tokenizer):
    """Nothing that generating leaves behind (caches, inference tensors) may touch a gradient."""

    def gradient(before: Callable[[PreTrainedModel], object]) -> torch.Tensor:
        model = tiny_llama().train()
        before(model)
        ids = torch.arange(10)[None]
        model(ids, labels=ids).loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    def write(model: PreTrainedModel) -> None:
        generate(model, tokenizer, some_prompts(3), DRAWN, seed=1, batch_size=2)

    assert torch.equal(gradient(write), gradient(lambda model: None))


def test_the_room_ends_a_response_as_it_would_alone(model, tokenizer):
    """64 positions: long prompts get shorter responses, and short ones beside them do not."""
    prompts = [*some_prompts(5), *some_prompts(6, shortest=54, longest=64), *[prompt * 70 for prompt in ([3], [4])]]
    sampling = Sampling(max_new_tokens=12, temperature=0)
    answered = respond(model, tokenizer, prompts, sampling, seed=1, batch_size=4)
    for prompt, response in zip(prompts, answered, strict=True):
        room = max(0, min(12, 64 - len(prompt)))
        ids, finished = greedy_twin(model, prompt, room)
        assert plain(response) == Response(tokenizer.decode(ids), finished, clipped=room < 12)


def test_max_length_counts_prompt_and_response(tokenizer):
    model, prompts = tiny_gpt2(), [[5] * 4, [6] * 9]
    answered = respond(model, tokenizer, prompts, GREEDY, seed=1, batch_size=2, max_length=11)
    assert [response.text for response in answered] == [
        tokenizer.decode(greedy_twin(model, prompt, count)[0]) for prompt, count in zip(prompts, (7, 2), strict=True)
    ]
    assert [response.clipped for response in answered] == [True, True]


def test_ids_beyond_the_tokenizer_are_never_written(tokenizer):
    model = tiny_gpt2(vocab_size=400)
    prompts = some_prompts(6)
    twins = [greedy_twin(model, prompt, 12, real=VOCABULARY)[0] for prompt in prompts]
    assert twins != [greedy_twin(model, prompt, 12, real=400)[0] for prompt in prompts], "else the test shows nothing"
    assert generate(model, tokenizer, prompts, GREEDY, seed=1, batch_size=6) == [tokenizer.decode(ids) for ids in twins]


def test_nothing_is_said_while_generating(model, tokenizer, caplog, monkeypatch):
    """Neither warnings, which are errors here, nor lines of transformers' own log."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.INFO)
    for sampling in (GREEDY, DRAWN):
        generate(model, tokenizer, some_prompts(3), sampling, seed=1, batch_size=2)
    assert caplog.messages == []


def test_no_prompts_no_responses(model, tokenizer):
    assert generate(model, tokenizer, [], GREEDY, seed=1, batch_size=2) == []


@pytest.mark.parametrize(
    ("prompts", "batch_size", "line"),
    [
        ([[1], []], 2, "prompt 2: has no token; put text or a beginning-of-text token (bos) into it"),
        ([[1]], 0, "batch_size: must be at least 1, got 0"),
    ],
)
def test_mistakes(model, tokenizer, prompts, batch_size, line):
    with pytest.raises(Mistake) as caught:
        generate(model, tokenizer, prompts, GREEDY, seed=1, batch_size=batch_size)
    assert str(caught.value) == line


@given(
    some.lists(some.tuples(some.integers(1, 4), some.integers(0, 2)), max_size=40),
    some.integers(1, 8),
)
@example([(3, 1), (2, 1), (2, 1), (1, 2)], 2)
def test_batches_hold_every_prompt_once_and_one_budget_each(prompts, batch_size):
    lengths, budgets = [length for length, _ in prompts], [budget for _, budget in prompts]
    batches = plan_batches(lengths, budgets, batch_size)
    assert sorted(index for batch in batches for index in batch) == [i for i, budget in enumerate(budgets) if budget]
    assert all(len({budgets[index] for index in batch}) == 1 and len(batch) <= batch_size for batch in batches)
    longest = [max(lengths[index] for index in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    # No more batches than the budgets ask for, and as many as can be without padding.
    kinds = Counter(budget for budget in budgets if budget)
    assert len(batches) == sum(-(-count // batch_size) for count in kinds.values())
    alike = Counter(pair for pair in prompts if pair[1])
    level = sum(len(batch) == batch_size and len({lengths[index] for index in batch}) == 1 for batch in batches)
    assert level >= sum(count // batch_size for count in alike.values())
