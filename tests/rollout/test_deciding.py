"""Who writes a step: draws by seed and step, a mixed source's share, the threshold that follows the dev loss."""

from __future__ import annotations

from typing import Any

import pytest

from stillhouse.catalogue import METHODS
from stillhouse.catalogue.sources import rollout_of
from stillhouse.mistakes import Mistake
from stillhouse.rollout.deciding import Deciding, Decision, by_seed

WRITE, REPLAY, BOTH, DATA = Decision(write=True), Decision(replay=True), Decision(True, True), Decision()


def options(**given: Any) -> dict[str, Any]:
    return rollout_of(METHODS["reverse_kl"], given)


def test_a_step_draws_the_same_again_and_another_than_its_neighbours():
    first, again, other = by_seed(3), by_seed(3), by_seed(4)
    drawn = [first(step) for step in range(2000)]
    assert drawn == [again(step) for step in range(2000)] and len(set(drawn)) == 2000
    assert drawn != [other(step) for step in range(2000)]
    assert sum(drawn) / 2000 == pytest.approx(0.5, abs=0.03)


def test_the_share_of_a_mixed_source_may_grow():
    moving = {"schedule": "linear", "start": 0.0, "end": 1.0}
    deciding = Deciding(options(source="mixed", share=moving), lambda _: 0.5)
    decided = [deciding.decide(step, step / 10, full=False) for step in range(10)]
    assert decided == [DATA] * 6 + [WRITE] * 4
    assert not deciding.remembers


@pytest.mark.parametrize("source", ["student", "paired"])
def test_the_student_writes_every_step(source: str):
    assert Deciding(options(source=source), by_seed(1)).decide(3, 0.1, full=False) == WRITE


def test_a_mixed_source_with_replay_writes_and_takes():
    deciding = Deciding(options(source="mixed", share=1.0, replay=True), by_seed(1))
    assert deciding.remembers and deciding.decide(0, 0.0, full=False) == BOTH


@pytest.mark.parametrize(
    ("ratio", "wrote"), [("decreasing", [9, 5, 1]), ("increasing", [1, 5, 9]), ("constant", [5] * 3)]
)
def test_how_much_is_written_anew_over_training(ratio: str, wrote: list[int]):
    numbers = iter([place / 10 + 0.05 for place in range(10)] * 3)
    deciding = Deciding(options(source="adaptive", threshold=1.0, replay_ratio=ratio), lambda _: next(numbers))
    decided = [[deciding.decide(0, progress, full=True) for _ in range(10)] for progress in (0.1, 0.5, 0.9)]
    assert [sum(one == WRITE for one in part) for part in decided] == wrote
    assert all(one == REPLAY for part in decided for one in part if one != WRITE)


def test_an_empty_buffer_is_filled_first():
    deciding = Deciding(options(source="adaptive", threshold=1.0), lambda _: 0.99)
    assert deciding.decide(99, 1.0, full=False) == WRITE
    assert deciding.decide(99, 1.0, full=True) == REPLAY


def test_the_threshold_rises_with_the_dev_loss_and_never_falls():
    deciding = Deciding(options(source="adaptive", loss_eps=0.1), by_seed(1))
    seen = []
    for loss in (2.0, 2.05, 2.11, 1.0, 2.2, 2.22):
        deciding.evaluated(loss)
        seen.append(round(deciding.threshold, 3))
    assert seen == [0.0, 0.0, 0.1, 0.1, 0.1, 0.2]
    deciding.evaluated(float("nan"))
    assert deciding.reference == 2.22
    for _ in range(20):
        deciding.evaluated((deciding.reference or 0.0) + 1.0)
    assert deciding.threshold == 1.0


def test_a_method_has_its_own_source_and_keeps_its_settings_beside_others():
    assert rollout_of(METHODS["gkd"], None)["temperature"] == 0.9
    ours = rollout_of(METHODS["gkd"], {"lmbda": 0.25})
    assert (ours["source"], ours["share"], ours["temperature"]) == ("mixed", 0.25, 0.9)
    assert rollout_of(METHODS["gkd"], {"source": "student"})["temperature"] == 0.9
    assert rollout_of(METHODS["gkd"], {"source": "dataset"}) == {"source": "dataset"}
    assert rollout_of(METHODS["imitkd"], {"mixed_alpha": 0.5})["share"] == 0.5


@pytest.mark.parametrize(
    ("method", "given", "where"),
    [
        ("sft", {"source": "student"}, "rollout.source"),
        ("minillm", {"source": "dataset"}, "rollout.source"),
        ("todi", {"source": "studnt"}, "rollout.source"),
        ("todi", {"source": "student", "share": 0.5}, "rollout.share"),
        ("todi", {"source": "student", "reuse": 1.5}, "rollout.reuse"),
        ("todi", {"source": "student", "max_new_tokens": 0}, "rollout.max_new_tokens"),
        ("todi", {"source": "mixed", "capacity": {"schedule": "linear", "start": 1, "end": 2}}, "rollout.capacity"),
        ("gkd", {"share": 0.1, "lmbda": 0.2}, "rollout.lmbda"),
        ("gkd", {"capacity": 5}, "rollout.capacity"),
    ],
)
def test_what_cannot_be_is_said(method: str, given: dict[str, Any], where: str):
    with pytest.raises(Mistake) as caught:
        rollout_of(METHODS[method], given)
    assert caught.value.where == where
