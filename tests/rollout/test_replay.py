"""The replay buffer: what it keeps, what it gives, and that a file of it is the buffer again, bit by bit."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from safetensors.torch import load_file, save_file

from stillhouse.rollout.replay import Replay, Rollout, from_arrays, to_arrays


def rollout(sample: int, length: int = 3) -> Rollout:
    draw = random.Random(sample)
    notes = [tuple(draw.uniform(-9, 0) for _ in range(length)) for _ in range(3)]
    ids = tuple(range(sample, sample + length))
    return Rollout(sample, (7, 8, *ids), ids, bool(sample % 2), *notes)


def test_the_oldest_make_room():
    replay = Replay(4)
    replay.push(map(rollout, range(3)))
    assert not replay.full
    replay.push(map(rollout, range(3, 6)))
    assert replay.full and [one.sample for one in replay.as_list()] == [2, 3, 4, 5]


def test_a_sample_has_nobody_twice_while_there_are_enough():
    replay = Replay(10)
    replay.push(map(rollout, range(10)))
    drawn = [one.sample for one in replay.sample(7, [1, 2])]
    assert len(set(drawn)) == 7 and drawn != sorted(drawn)
    assert drawn == [one.sample for one in replay.sample(7, [1, 2])] != [one.sample for one in replay.sample(7, [1, 3])]


def test_too_few_are_given_more_than_once():
    replay = Replay(10)
    replay.push(map(rollout, range(3)))
    drawn = sorted(one.sample for one in replay.sample(7, [1]))
    assert {sample: drawn.count(sample) for sample in range(3)} in (
        {0: 3, 1: 2, 2: 2}, {0: 2, 1: 3, 2: 2}, {0: 2, 1: 2, 2: 3},
    )  # fmt: skip


def test_every_response_is_drawn_as_often_as_the_others():
    replay = Replay(10)
    replay.push(map(rollout, range(10)))
    counts = [0] * 10
    for step in range(1000):
        for one in replay.sample(3, [0, step]):
            counts[one.sample] += 1
    assert max(abs(count - 300) for count in counts) < 75  # 5 standard deviations


@given(some.lists(some.tuples(some.integers(0, 99), some.integers(0, 5)), max_size=9))
def test_arrays_hold_everything(drawn: list[tuple[int, int]]):
    written = [rollout(sample, length) for sample, length in drawn]
    assert from_arrays(to_arrays(written, "a"), "a") == written


def test_a_file_holds_what_has_no_finite_number(tmp_path: Path):
    odd = Rollout(1, (1,), (2, 3), True, (-math.inf, -1e-30), (1.0, 0.1 + 0.2), (0.0, 1 / 3))
    save_file(to_arrays([odd, rollout(2)], "replay"), tmp_path / "a.safetensors")
    assert from_arrays(load_file(tmp_path / "a.safetensors"), "replay") == [odd, rollout(2)]


@pytest.mark.parametrize("count", [0, 1])
def test_an_empty_sample_of_any_buffer(count: int):
    replay = Replay(3)
    replay.push(map(rollout, range(count)))
    assert replay.sample(0, [1]) == []
