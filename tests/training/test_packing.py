"""A packed row gives every example what it gets alone: states, gradients, and the weights of a whole run."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from stillhouse import models
from stillhouse.data.collate import Collator, PackingCollator
from stillhouse.head import Head, at_scored
from stillhouse.methods import build
from stillhouse.mistakes import Mistake
from stillhouse.models import last_hidden
from stillhouse.teacher import LiveTeacher
from stillhouse.training import run
from stillhouse.training.distiller import Distiller
from stillhouse.training.packing import check_packing
from stillhouse.training.trainer import DistillationTrainer
from tests import toy
from tests.head.test_architectures import model_of
from tests.training.test_run import Killed, metrics, recipe, weights

# Sliding windows are shorter than the examples, and so end within them. Gemma's layers alternate.
LAYERS = ["sliding_attention", "full_attention"]
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "mistral": {"sliding_window": 5},
    "gpt2": {},
    "gemma2": {"sliding_window": 5, "attn_logit_softcapping": 2.0, "layer_types": LAYERS},
    "gemma3_text": {"sliding_window": 5, "layer_types": LAYERS},
    "gpt_neox": {},
}
LENGTHS = (2, 17, 9, 9, 26)  # tokens, one more than positions: the first example has one


def items() -> list[dict[str, Any]]:
    made = np.random.default_rng(0)
    scored = [made.random(length) < 0.6 for length in LENGTHS]
    scored[0][0] = True
    return [
        {"input_ids": made.integers(3, 61, length), "scored": where, "sample": sample}
        for sample, (length, where) in enumerate(zip(LENGTHS, scored, strict=True))
    ]


def states(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    hidden = last_hidden(model, batch["input_ids"], batch.get("attention_mask"), batch.get("packed"))
    return hidden.flatten(0, 1)[batch["scored_at"]]


def gradients(model: PreTrainedModel, hidden: Tensor) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(1)
    (hidden * torch.randn_like(hidden)).sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.fixture
def all_in_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma's norms and everybody's eager softmax are taken in fp32 otherwise, whatever the weights are."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    monkeypatch.setattr(functional, "softmax", lambda scores, dim, dtype=None: scores.softmax(dim))


@pytest.mark.usefixtures("all_in_fp64")
@pytest.mark.parametrize(
    ("kind", "attention"),
    [(kind, attention) for kind in KINDS for attention in ("sdpa", "eager") if (kind, attention) != ("gemma2", "sdpa")],
)  # transformers has no sdpa for Gemma 2, whose attention is capped
def test_packed_examples_have_the_states_and_gradients_of_padded_ones(kind: str, attention: str) -> None:
    model = model_of(kind, **KINDS[kind]).double()
    model.set_attn_implementation(attention)
    check_packing(model, "student")
    ours, theirs = states(model, PackingCollator()(items())), states(model, Collator(pad_id=0)(items()))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for found, wanted in zip(gradients(model, ours), gradients(model, theirs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("piece", [1, 17, 24, 25, 41, 57, 58])
def test_a_row_run_in_pieces_has_the_states_and_gradients_of_one_run_whole(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = model_of("gpt2").double(), PackingCollator()(items())
    whole = states(model, batch)
    monkeypatch.setattr(models, "PIECE", piece)
    forward, lengths = model.transformer.forward, []

    def noted(**given: Any) -> Any:
        lengths.append(given["input_ids"].shape[1])
        return forward(**given)

    monkeypatch.setattr(model.transformer, "forward", noted)
    cut = states(model, batch)
    torch.testing.assert_close(cut, whole, rtol=1e-10, atol=1e-10)
    for found, wanted in zip(gradients(model, cut), gradients(model, whole), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)
    examples = [1, 16, 8, 8, 25]
    expected = {1: examples, 17: [17, 16, 25], 24: [17, 16, 25], 25: [25, 8, 25], 41: [33, 25], 57: [33, 25], 58: [58]}
    assert lengths == expected[piece]


@pytest.mark.parametrize("kind", ["opt", "bloom", "falcon", "mamba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_would_mix_packed_examples_is_refused(kind: str, dtype: torch.dtype) -> None:
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "n_layer": 2}
    heads = {"num_attention_heads": 4, "n_head": 4, "ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 0}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **heads), dtype=dtype).train()
    with pytest.raises(Mistake) as refused:
        check_packing(model, "teacher")
    assert str(refused.value) == (
        f"data.packing: {type(model).__name__} (the teacher) does not keep the examples of a packed row apart; "
        "write data.packing: false"
    )
    assert model.training


@pytest.mark.parametrize("wrong", ["positions go on", "positions are left out"])
def test_the_probe_sees_positions_that_are_not_reset(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    forward = model.transformer.forward

    def careless(input_ids: Tensor, position_ids: Tensor | None = None, **given: Any) -> Any:
        on = torch.arange(input_ids.shape[1])[None]
        return forward(input_ids=input_ids, position_ids=on if wrong == "positions go on" else None, **given)

    check_packing(model, "student")
    monkeypatch.setattr(model.transformer, "forward", careless)
    with pytest.raises(Mistake, match="does not keep the examples of a packed row apart"):
        check_packing(model, "student")


def test_flash_attention_is_told_the_boundaries(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_of("llama"), PackingCollator()(items())
    seen: dict[str, Any] = {}

    def noted(**given: Any) -> BaseModelOutput:
        seen.update(given)
        return BaseModelOutput(last_hidden_state=torch.zeros(1, 58, 4))  # type: ignore[arg-type]

    monkeypatch.setattr(model.model, "forward", noted)
    states(model, batch)
    assert seen.keys() == {"input_ids", "position_ids", "use_cache"}
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    states(model, batch)
    assert seen["cu_seq_lens_q"] is seen["cu_seq_lens_k"]
    assert seen["cu_seq_lens_q"].tolist() == [0, 1, 17, 25, 33, 58] and seen["cu_seq_lens_q"].dtype == torch.int32
    assert seen["max_length_q"] == seen["max_length_k"] == 25 and "attention_mask" not in seen


def test_a_packed_batch_has_the_loss_of_the_padded_one_and_the_same_sequences() -> None:
    student, teacher = model_of("llama"), model_of("gpt2")
    distiller = Distiller(student, build("todi"), LiveTeacher(teacher, 61), 61).eval()
    padded, packed = Collator(pad_id=0)(items()), PackingCollator()(items())
    names = ("input_ids", "attention_mask", "labels", "scored_at", "packed")
    losses = [distiller(**{name: batch.get(name) for name in names})[0] for batch in (padded, packed)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
    assert distiller.teacher is not None
    ours = distiller.teacher.predict(packed["input_ids"], None, packed["labels"], packed["scored_at"], packed["packed"])
    hidden = last_hidden(teacher, padded["input_ids"], padded["attention_mask"])
    theirs = at_scored(hidden, Head.of(teacher, 61), padded["labels"], padded["scored_at"])
    assert torch.equal(ours.sequence, theirs.sequence) and torch.equal(ours.labels, theirs.labels)
    assert (ours.positions, theirs.positions) == (58, 5 * 25)
    torch.testing.assert_close(ours.hidden, theirs.hidden, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = toy.write_world(tmp_path_factory.mktemp("world"))
    toy.write_rows(folder / "many.jsonl", 64)
    return folder


@pytest.mark.parametrize("accumulated", [1, 2])
def test_packing_changes_no_weight_of_a_run(world: Path, tmp_path: Path, accumulated: int) -> None:
    options = [
        f"--data.eval={world / 'dev.jsonl'}",
        "--evaluation.max_new_tokens=2",
        "--training.adam_epsilon=1e-4",
        f"--training.per_device_train_batch_size={8 // accumulated}",
        f"--training.gradient_accumulation_steps={accumulated}",
    ]
    plain = run(recipe(world, tmp_path / "plain", *options))
    packed = run(recipe(world, tmp_path / "packed", *options, "--data.packing=true"))
    for name, value in weights(plain / "last").items():
        torch.testing.assert_close(weights(packed / "last")[name], value, rtol=0, atol=1e-6)
    for ours, theirs in zip(metrics(packed), metrics(plain), strict=True):
        for key in {"loss", "ce", "kd", "eval_loss"} & theirs.keys():
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5)
        assert ("tokens_per_second" in ours) == ("tokens_per_second" in theirs)


def test_a_packed_run_works_with_recomputed_activations(world: Path, tmp_path: Path) -> None:
    options = ["--training.max_steps=2", "--training.adam_epsilon=1e-4", "--data.packing=true"]
    ends = [
        weights(run(recipe(world, tmp_path / str(on), *options, f"--training.activation_checkpointing={on}")) / "last")
        for on in ("false", "true")
    ]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=1e-6)


def test_a_run_refuses_to_pack_for_a_model_that_mixes(world: Path, tmp_path: Path) -> None:
    made = toy.tokenizer()
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32}
    OPTForCausalLM(OPTConfig(vocab_size=len(made), word_embed_proj_dim=16, **sizes)).save_pretrained(tmp_path / "opt")
    made.save_pretrained(tmp_path / "opt")
    for side in ("student", "teacher"):
        with pytest.raises(Mistake, match=rf"data.packing: OPTForCausalLM \(the {side}\)"):
            run(recipe(world, tmp_path / side, f"--{side}.model={tmp_path / 'opt'}", "--data.packing=true"))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every micro-batch that a run of the test has trained on."""
    seen: list[dict[str, Any]] = []
    compute = DistillationTrainer.compute_loss

    def noted(self: DistillationTrainer, model: Any, inputs: dict[str, Any], *given: Any, **named: Any) -> Tensor:
        seen.append(inputs)
        return compute(self, model, inputs, *given, **named)

    monkeypatch.setattr(DistillationTrainer, "compute_loss", noted)
    return seen


def test_grouped_batches_hold_like_lengths_once_an_epoch_in_an_order_of_the_seed(
    world: Path, tmp_path: Path, batches: list[dict[str, Any]]
) -> None:
    def order(name: str, *options: str) -> tuple[list[list[int]], float]:
        size = "--training.per_device_train_batch_size=4"
        run(recipe(world, tmp_path / name, f"--data.train={world / 'many.jsonl'}", size, *options))
        mask = [batch["attention_mask"] for batch in batches]
        real = sum(int(part.sum()) for part in mask) / sum(part.numel() for part in mask)
        samples = [sorted(batch["sample"].tolist()) for batch in batches]
        batches.clear()
        return samples, real

    grouped = "--training.train_sampling_strategy=group_by_length"
    (plain, wasteful), (first, real) = order("plain"), order("first", grouped)
    assert real > 0.98 and wasteful < 0.96
    epochs = first[:16], first[16:]
    assert [sorted(chain.from_iterable(epoch)) for epoch in epochs] == [list(range(64))] * 2
    assert epochs[0] != epochs[1] and first != plain
    assert order("again", grouped)[0] == first and order("other", grouped, "--seed=11")[0] != first


@pytest.mark.parametrize("option", ["--training.train_sampling_strategy=group_by_length", "--data.packing=true"])
def test_a_killed_run_goes_on_with_the_same_batches(
    world: Path, tmp_path: Path, batches: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    whole = run(recipe(world, tmp_path / "whole", option))
    expected = [batch["sample"].tolist() for batch in batches]
    batches.clear()
    step, calls = DistillationTrainer.training_step, iter(range(100))

    def killing(*given: Any, **named: Any) -> Tensor:
        if next(calls) == 4:  # in the second epoch
            raise Killed
        return step(*given, **named)

    monkeypatch.setattr(DistillationTrainer, "training_step", killing)
    with pytest.raises(Killed):
        run(recipe(world, tmp_path / "cut", option))
    monkeypatch.setattr(DistillationTrainer, "training_step", step)
    batches.clear()
    torch.rand(17)  # nothing before the resume may matter
    again = run(recipe(world, tmp_path / "cut", option))
    assert [batch["sample"].tolist() for batch in batches] == expected[3:]
    theirs = weights(whole / "last")
    assert all(torch.equal(value, theirs[name]) for name, value in weights(again / "last").items())
