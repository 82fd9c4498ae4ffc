"""`bestrun.judging`: the same numbers as scipy.stats, and as often right as they say."""

import numpy as np
import pytest
import scipy.stats

from bestrun import judging


@pytest.mark.parametrize(
    ("right", "images"), [(0, 10), (10, 10), (0, 1), (1, 2), (4890, 5000), (7, 300), (1, 10**6), (500_000, 10**6)]
)
def test_the_interval_of_an_accuracy_is_that_of_scipy(right, images):
    expected = scipy.stats.binomtest(right, images).proportion_ci(0.95, method="exact")
    found = judging.accuracy_interval(right, images)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("repaired", "broken"), [(24, 17), (0, 0), (0, 1), (5, 5), (30, 8), (800, 900), (900, 100), (60_000, 61_000)]
)
def test_mcnemar_s_chance_is_that_of_scipy(repaired, broken):
    discordant = repaired + broken
    expected = scipy.stats.binomtest(repaired, discordant, 0.5).pvalue if discordant else 1.0
    assert judging.mcnemar(repaired, broken) == pytest.approx(expected, rel=1e-9)


def test_holm_s_chances():
    assert judging.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert judging.holm([0.9, 0.8]) == [1.0, 1.0]
    assert judging.holm([]) == []


def test_the_interval_of_a_mean_is_that_of_scipy():
    values = [0.981, 0.984, 0.979, 0.99]
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = judging.mean_of(values)
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert judging.mean_of([0.9]).interval is None
    assert judging.mean_of([0.5, 0.5]).interval == judging.Interval(0.5, 0.5)


def test_of_equal_models_at_most_one_in_twenty_pairs_is_told_apart():
    dice = np.random.default_rng(7)
    pairs = 2000
    wolves = sum(
        judging.mcnemar(*(int(count) for count in np.sum([one < two, one > two], axis=1))) < judging.LEVEL
        for one, two in ((dice.random((2, 1000)) < 0.95) for _ in range(pairs))
    )
    assert wolves <= 0.055 * pairs


def test_nineteen_in_twenty_intervals_of_a_mean_hold_the_true_one():
    dice = np.random.default_rng(7)
    found = [judging.mean_of(dice.normal(0.5, 0.1, 5)).interval for _ in range(4000)]
    assert 0.94 <= np.mean([each.low <= 0.5 <= each.high for each in found]) <= 0.96


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_looking_after_each_seed_cries_wolf_no_more_often_than_looking_once(seeds):
    dice, level = np.random.default_rng(7), judging.look_level(seeds)

    def told_apart(differences):
        looks = (judging.mean_of(differences[:seen], level) for seen in range(judging.LEAST_LOOK, seeds + 1))
        return any(not look.interval.low <= 0 <= look.interval.high for look in looks)

    assert np.mean([told_apart(dice.normal(0, 0.1, seeds)) for _ in range(2000)]) <= 0.055
