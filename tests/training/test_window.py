"""Many responses written at once and learnt in inner epochs: what each step gets, kills and resumes, splits."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.mistakes import Mistake
from stillhouse.rollout.replay import Rollout
from stillhouse.training.on_policy import OnPolicy
from stillhouse.training.trainer import DistillationTrainer
from stillhouse.training.window import Window
from tests import toy
from tests.training.test_on_policy import same, split, timeless, train
from tests.training.test_run import Killed, metrics, weights

SIZE, EPOCHS, STEPS = 16, 2, 6  # of batches of 8: four steps from the first window, and two from the second
TOLD = [f"--rollout.window={SIZE}", f"--rollout.reuse={EPOCHS}", "--rollout.max_new_tokens=9", "--rollout.show_every=1",
        f"--training.max_steps={STEPS}", "--training.save_steps=1"]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_world(tmp_path_factory.mktemp("world"), sharp=20.0)


def written(asked: tuple[list[int], list[tuple[int, ...]]]) -> list[Rollout]:
    return [
        Rollout(sample, (1,), (sample, *turn), True, (0.0,) * 2, (1.0,) * 2, (0.5,) * 2)
        for sample, turn in zip(*asked, strict=True)
    ]


def told(window: Window) -> list[list[tuple[int, ...]]]:
    """Every step of the next window, as the responses that it takes."""
    found = []
    window.fill(written(window.asked()))
    while not window.used:
        found.append([one.response for part in window.take([2, 2]) for one in part])
    return found


def test_every_inner_epoch_has_every_response_once_in_an_order_of_its_own():
    window = Window(12, 4, 3, seed=5, samples=range(100, 110))
    steps = [told(window), told(window)]
    for of_window in steps:
        assert len(of_window) == 3 * 3
        epochs = [list(chain(*of_window[at : at + 3])) for at in range(0, 9, 3)]
        assert {tuple(sorted(epoch)) for epoch in epochs} == {tuple(sorted(epochs[0]))} and len(set(epochs[0])) == 12
        assert len({tuple(epoch) for epoch in epochs}) == 3
    drawn = [Counter(sample for step in of_window[:3] for sample, _ in step) for of_window in steps]
    assert sorted(drawn[0].values()) == [1] * 8 + [2] * 2, "a pass over all ten prompts, and two of the next"
    assert all(2 <= count <= 3 for count in (drawn[0] + drawn[1]).values()) and len(drawn[0] + drawn[1]) == 10
    assert [told(Window(12, 4, 3, seed=seed, samples=range(100, 110))) == steps[0] for seed in (5, 6)] == [True, False]


def test_a_smaller_step_takes_the_beginning_of_its_batch():
    whole, part = (Window(12, 4, 1, seed=1, samples=range(19)) for _ in range(2))
    for window in (whole, part):
        window.fill(written(window.asked()))
    first, (second,), third = (whole.take([4]) for _ in range(3))
    assert part.take([4]) == first
    assert part.take([2, 1]) == [second[:2], second[2:3]]
    assert part.take([4]) == third and part.used


def test_a_window_goes_on_where_it_was():
    whole, cut = (Window(8, 4, 2, seed=1, samples=range(9)) for _ in range(2))
    expected = told(whole) + told(whole)
    found = []
    for step in range(8):
        again = Window(8, 4, 2, seed=1, samples=range(9))
        if step:
            again.load(cut.state())
        cut = again
        if cut.used:
            cut.fill(written(cut.asked()))
        found.append([one.response for part in cut.take([2, 2]) for one in part])
    assert found == expected


@pytest.mark.parametrize(("batch", "left"), [(8, 3), (2, 10), (4, 5)])
def test_a_window_comes_to_its_end_with_another_batch(batch: int, left: int):
    """At the beginning of the batch that its place falls into: 12 of 2 x 16 are learnt."""
    before, after = Window(16, 4, 2, seed=1, samples=range(16)), Window(16, batch, 2, seed=1, samples=range(16))
    before.fill(written(before.asked()))
    for _ in range(3):
        before.take([4])
    after.load(before.state())
    for _ in range(left):
        assert not after.used
        after.take([batch])
    assert after.used


def test_steps_learn_from_one_writing_appraised_as_a_whole(world: Path, tmp_path: Path, monkeypatch):
    steps: list[list[dict[str, Any]]] = []
    step = OnPolicy.step
    monkeypatch.setattr(OnPolicy, "step", lambda *given: steps.append(step(*given)) or steps[-1])
    folder = train(world, tmp_path, "minillm", None, *TOLD, *split(4, 2))
    responses = [
        Counter(
            (sample, tuple(labels[labels >= 0].tolist()))
            for batch in step
            for sample, labels in zip(batch["sample"].tolist(), batch["labels"], strict=True)
        )
        for step in steps
    ]
    first, again, second = (responses[at] + responses[at + 1] for at in (0, 2, 4))
    assert first == again != second and sum(first.values()) == SIZE and responses[0] != responses[2]
    assert [line.get("written_tokens", 0) > 0 for line in metrics(folder) if "kd" in line] == [
        True, False, False, False, True, False,
    ]  # fmt: skip
    values = [torch.cat([batch["sampled"]["advantage"] for batch in step]) for step in steps]
    for at in (0, 2, 4):
        both = torch.cat(values[at : at + 2]).double()
        assert float(both.mean()) == pytest.approx(0.0, abs=1e-6)
        assert float(both.var(correction=0)) == pytest.approx(1.0, abs=1e-5)
        assert abs(float(values[at].mean())) > 1e-4, "over the window, not over a step"


@pytest.mark.slow
def test_a_run_with_windows_is_the_same_however_it_is_split_and_wherever_it_was_killed(
    world: Path, tmp_path: Path, monkeypatch
):
    whole = train(world, tmp_path / "whole", "minillm", None, *TOLD, *split(8, 1))
    same(train(world, tmp_path / "split", "minillm", None, *TOLD, *split(2, 4)), whole, 1e-6)
    step, calls = DistillationTrainer.training_step, iter(range(100))

    def killing(*given: Any, **named: Any) -> Tensor:
        if next(calls) in (3, 5):  # within an inner epoch of the first window; of the second, after one more resume
            raise Killed
        return step(*given, **named)

    writings = []
    answered = OnPolicy._answered

    def noted(self: OnPolicy, flat: list[int], at: int, turns: Any) -> list[Rollout]:
        writings.append(at)
        return answered(self, flat, at, turns)

    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "training_step", killing)
        patch.setattr(OnPolicy, "_answered", noted)
        for _ in range(2):
            with pytest.raises(Killed):
                train(world, tmp_path / "cut", "minillm", None, *TOLD, *split(8, 1))
        again = train(world, tmp_path / "cut", "minillm", None, *TOLD, *split(8, 1))
    assert writings == [0, 4, 4], "what a checkpoint holds is not written again"
    theirs = weights(whole / "last")
    assert all(torch.equal(value, theirs[name]) for name, value in weights(again / "last").items())
    assert timeless(again) == timeless(whole)
    assert (again / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()


def test_a_window_that_steps_do_not_divide_is_refused(world: Path, tmp_path: Path):
    with pytest.raises(Mistake, match=r"rollout\.window: 12 is no multiple of the 8 examples .* step; write 16"):
        train(world, tmp_path, "reverse_kl", {"source": "student", "window": 12}, *split(4, 2), student="nowhere")
