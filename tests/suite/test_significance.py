import random
from statistics import fmean

import numpy as np
import pytest

from stillhouse.suite import compare, significance

RESAMPLES = 400


def items(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(50, 10, count)


def twin(pairs, resamples: int, seed: int) -> tuple[float, float, float, float]:
    """`compare` one number at a time, by the same draws."""
    means = []
    generators = [np.random.default_rng(seed + place) for place in range(len(pairs))]
    for _ in range(resamples):
        of_sets = []
        for (ours, theirs), generator in zip(pairs, generators, strict=True):
            places = [int(generator.integers(len(ours))) for _ in ours]
            of_sets.append(fmean(ours[place] for place in places) - fmean(theirs[place] for place in places))
        means.append(fmean(of_sets))
    below, above = sum(mean <= 0 for mean in means), sum(mean >= 0 for mean in means)
    p = 2 * (min(below, above) + 1) / (resamples + 1)
    least = 0.5 ** (sum(len(ours) for ours, _ in pairs) - 1)
    ordered = sorted(means)

    def quantile(share: float) -> float:
        place = share * (resamples - 1)
        low = int(place)
        high = min(low + 1, resamples - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    mean = fmean(fmean(ours) - fmean(theirs) for ours, theirs in pairs)
    return mean, quantile(0.025), quantile(0.975), min(1.0, max(p, least))


@pytest.mark.parametrize("counts", [(1,), (2,), (7,), (30,), (5, 12), (3, 1, 9)])
def test_is_its_slow_twin(counts: tuple[int, ...]) -> None:
    pairs = [(items(count, place), items(count, 50 + place)) for place, count in enumerate(counts)]
    found = compare(pairs, RESAMPLES, seed=3)
    assert (found.mean, found.low, found.high, found.p) == pytest.approx(twin(pairs, RESAMPLES, 3), abs=1e-9)


def test_sides_swapped_flip_the_sign() -> None:
    ours, theirs = items(40, 1), items(40, 2) + 3
    one, other = compare([(ours, theirs)], RESAMPLES), compare([(theirs, ours)], RESAMPLES)
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))
    assert one.p == other.p


def test_equal_models_do_not_differ_and_a_shifted_one_does() -> None:
    ours = items(40, 1)
    assert compare([(ours, ours.copy())], RESAMPLES).p == 1.0
    noise = np.random.default_rng(9).normal(0, 1, 40)
    shifted = compare([(ours + 3 + noise, ours)], RESAMPLES)
    assert shifted.p == pytest.approx(2 / (RESAMPLES + 1)) and 0 < shifted.low < shifted.mean < shifted.high


def test_p_is_about_uniform_where_nothing_differs() -> None:
    """Of 400 pairs of equal models some 5 % are found to differ at 5 %."""
    generator = np.random.default_rng(0)
    ps = [compare([(generator.normal(size=60), generator.normal(size=60))], 300, seed).p for seed in range(400)]
    assert 0.02 < fmean(p < 0.05 for p in ps) < 0.09
    assert 0.4 < fmean(p < 0.5 for p in ps) < 0.6


@pytest.mark.parametrize(("count", "stands"), [(1, False), (2, False), (5, False), (6, True), (20, True)])
def test_a_handful_of_items_shows_nothing(count: int, stands: bool) -> None:
    assert (compare([(np.full(count, 2.0), np.ones(count))], 10_000).p < 0.05) == stands


def test_data_sets_are_drawn_apart() -> None:
    """Drawn alike, a model that gains where it loses elsewhere would show no spread at all."""
    ours, theirs = items(40, 1), items(40, 2)
    found = compare([(ours, theirs), (theirs, ours)], RESAMPLES)
    assert found.mean == pytest.approx(0)
    assert found.high - found.low > 1


def test_a_mean_over_data_sets_weighs_each_alike() -> None:
    small, large = (items(5, 1) + 8, items(5, 1)), (items(500, 2), items(500, 2))
    assert compare([small, large], RESAMPLES).mean == pytest.approx(4)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(items(31, 1), items(31, 2)), (items(8, 3), items(8, 4))]
    whole = compare(pairs, RESAMPLES)
    for chunk in (1, 100, 31 * 7):
        monkeypatch.setattr(significance, "CHUNK", chunk)
        assert compare(pairs, RESAMPLES) == whole


def test_seeds_change_the_draws_only() -> None:
    pairs = [(items(30, 1), items(30, 2))]
    assert compare(pairs, RESAMPLES, 5) == compare(pairs, RESAMPLES, 5)
    assert compare(pairs, RESAMPLES, 5).low != compare(pairs, RESAMPLES, 6).low
    assert compare(pairs, RESAMPLES, 5).mean == compare(pairs, RESAMPLES, 6).mean


def test_the_order_of_items_means_nothing_to_what_was_found() -> None:
    places = random.Random(1).sample(range(30), 30)
    ours, theirs = items(30, 1), items(30, 2)
    straight, mixed = compare([(ours, theirs)], 4000), compare([(ours[places], theirs[places])], 4000)
    assert straight.mean == pytest.approx(mixed.mean)
    assert straight.p == pytest.approx(mixed.p, abs=0.05)


@pytest.mark.parametrize("counts", [(3, 4), (4, 3), (0, 0)])
def test_unlike_numbers_of_items_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="the same items"):
        compare([(items(counts[0], 1), items(counts[1], 2))], RESAMPLES)
