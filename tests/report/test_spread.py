import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.report import Spread, exceeds, spread

NUMBERS = st.floats(-1e6, 1e6)


@given(st.lists(NUMBERS, min_size=2, max_size=9))
def test_mean_and_deviation_are_those_of_the_standard_library(values):
    found = spread(values)
    assert found is not None and found.count == len(values)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert found.deviation == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-6)


def test_one_value_has_no_deviation_and_none_has_no_mean():
    assert spread([3.25]) == Spread(3.25, None, 1)
    assert str(spread([3.25])) == "3.2"
    assert spread([]) is None


def test_values_that_are_not_finite_are_left_out():
    assert spread([math.nan, 2.0, math.inf]) == Spread(2.0, None, 1)


def test_a_difference_counts_only_beyond_both_deviations_together():
    low = Spread(50.0, 2.0, 3)
    assert exceeds(Spread(55.1, 3.0, 3), low)
    assert not exceeds(Spread(55.0, 3.0, 3), low)
    assert not exceeds(low, Spread(55.1, 3.0, 3))


def test_a_spread_is_written_with_one_decimal():
    assert str(Spread(68.94, 3.06, 3)) == "68.9 ± 3.1"
