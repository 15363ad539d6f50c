"""Schedules as recipes write them: their values along a run, and what is said about wrong ones."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.mistakes import Mistake
from stillhouse.schedule import settle, value_at

LINEAR = {"schedule": "linear", "start": 4.0, "end": 1.0}


@pytest.mark.parametrize(
    ("written", "along"),
    [
        ({"schedule": "constant", "value": 3}, {0.0: 3.0, 1.0: 3.0}),
        (LINEAR, {0.0: 4.0, 0.5: 2.5, 1.0: 1.0}),
        (LINEAR | {"until": 0.5}, {0.0: 4.0, 0.25: 2.5, 0.5: 1.0, 0.9: 1.0}),
        ({"schedule": "cosine", "start": 0, "end": 1}, {0.0: 0.0, 0.25: 0.146446609, 0.5: 0.5, 1.0: 1.0}),
        ({"schedule": "steps", "values": [3, 2, 1], "at": [0.25, 0.5]}, {0.0: 3.0, 0.249: 3.0, 0.25: 2.0, 0.5: 1.0}),
        ({"schedule": "steps", "values": [3], "at": []}, {0.0: 3.0, 1.0: 3.0}),
    ],
)  # fmt: skip
def test_values_along_a_run(written: dict[str, Any], along: dict[float, float]) -> None:
    settled = settle(written, "method.temperature")
    assert settle(settled, "method.temperature") == settled  # what a recipe writes back is read as the same
    for progress, value in along.items():
        assert value_at(settled, progress) == pytest.approx(value, abs=1e-9)


def test_a_plain_value_is_its_own() -> None:
    assert value_at(2.5, 0.3) == 2.5
    assert value_at(True, 0.3) is True


@given(
    start=st.floats(-10, 10), end=st.floats(-10, 10), until=st.floats(0.01, 1.0), progress=st.floats(0.0, 1.0),
    kind=st.sampled_from(["linear", "cosine"]),
)  # fmt: skip
def test_a_ramp_stays_between_its_ends_and_arrives(start: float, end: float, until: float, progress: float, kind: str):
    ramp = settle({"schedule": kind, "start": start, "end": end, "until": until}, "lam")
    low, high = sorted((start, end))
    assert low - 1e-9 <= value_at(ramp, progress) <= high + 1e-9
    assert value_at(ramp, 1.0) == pytest.approx(end, abs=1e-9)
    assert value_at(ramp, 0.0) == pytest.approx(start, abs=1e-9)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"start": 1.0}, "m.t: is a section without 'schedule'; write schedule: constant | linear | cosine | steps"),
        ({"schedule": "liner", "start": 1, "end": 2}, "m.t.schedule: unknown schedule 'liner'; did you mean 'linear'?"),
        (LINEAR | {"untill": 0.5}, "m.t.untill: unknown key of a linear schedule 'untill'; did you mean 'until'?"),
        ({"schedule": "linear", "start": 1}, "m.t.end: is missing; a linear schedule has start, end, until"),
        (LINEAR | {"end": "low"}, "m.t.end: must be a number, got 'low'"),
        (LINEAR | {"until": 0}, "m.t.until: is a share of the run, above 0 and at most 1, got 0.0"),
        ({"schedule": "steps", "values": 3, "at": []}, "m.t.values: must be a list of numbers, got 3; write values"),
        ({"schedule": "steps", "values": [1, 2], "at": []}, "m.t.values: has 2 values for 0 changes; one more than"),
        ({"schedule": "steps", "values": [1, 2, 3], "at": [0.5, 0.5]}, "m.t.at: must be rising shares of the run"),
        ({"schedule": "steps", "values": [1, 2], "at": [1.0]}, "m.t.at: must be rising shares of the run"),
    ],
)  # fmt: skip
def test_wrong_schedules_are_named(written: dict[str, Any], said: str) -> None:
    with pytest.raises(Mistake) as raised:
        settle(written, "m.t")
    assert str(raised.value).startswith(said)
