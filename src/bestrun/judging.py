"""What figures can tell: intervals, and whether a difference is one. All of it stands in textbooks, named in its place.

Accuracies of one set of images are compared image by image (McNemar), means over seeds by Student's t. The binomial
distribution is summed here: SciPy's special functions, which have Student's, are a third of what `bestrun compare`
imports. scipy.stats gives the same numbers (held by a test) and takes half a second to import.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.05  # of equal pairs so many are told apart: a verdict's chance to be wrong
LEAST_LOOK = 3  # seeds: two of them say next to nothing of their spread


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, in the unit of the figure."""

    low: float
    high: float


@dataclass(frozen=True)
class Mean:
    """The mean of some values, and its interval by Student's t; None of one value alone."""

    values: tuple[float, ...]
    mean: float
    interval: Interval | None


def accuracy_interval(right: int, images: int, level: float = LEVEL) -> Interval:
    """Where an accuracy lies, by what a sample of images shows: Clopper and Pearson, Biometrika 26 (1934), exact."""
    low = _least_chance(right, images, level / 2) if right else 0.0
    high = 1.0 - _least_chance(images - right, images, level / 2) if right < images else 1.0
    return Interval(low, high)


def _least_chance(right: int, images: int, tail: float) -> float:
    """The chance of each image with which as many of them as `right` are right in a share `tail` of samples."""
    low, high = 0.0, right / images  # with the upper one it happens in about half of them
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_least(right, images, middle) < tail else (low, middle)
    return high


def _at_least(right: int, images: int, chance: float) -> float:
    """How often at least so many of the images are right, of which each one is with a `chance` of up to
    right / images: the binomial distribution, summed from there up, where each term is less than the one before.
    """
    if not chance:
        return 0.0 if right else 1.0
    ways = math.lgamma(images + 1) - math.lgamma(right + 1) - math.lgamma(images - right + 1)
    term = math.exp(ways + right * math.log(chance) + (images - right) * math.log1p(-chance))
    total, odds = 0.0, chance / (1 - chance)
    for number in range(right, images + 1):
        total += term
        term *= (images - number) / (number + 1) * odds
        if term <= total * 1e-17:
            break
    return total


def mcnemar(repaired: int, broken: int) -> float:
    """The chance that two equally good classifiers differ so much on the images that only one of them has right.

    McNemar's test, exact and two-sided (Dietterich, Neural Computation 10, 1998).

    Args:
        repaired, broken: images that the second has right and the first has not, and the other way round.
    """
    return min(1.0, 2 * _at_least(max(repaired, broken), repaired + broken, 0.5))


def holm(chances: Sequence[float]) -> list[float]:
    """Chances of several comparisons, each made larger so that all of them together are wrong in LEVEL of cases.

    Holm, Scandinavian Journal of Statistics 6 (1979): the smallest times their number, the next times one less ...
    """
    adjusted, least = [0.0] * len(chances), 0.0
    for rank, index in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        least = max(least, min(1.0, (len(chances) - rank) * chances[index]))
        adjusted[index] = least
    return adjusted


def mean_of(values: Sequence[float], level: float = LEVEL) -> Mean:
    """The mean of values drawn alike (a run each, that differ by their seed) and where the true one lies.

    Student, Biometrika 6 (1908). Of values that are all the same the interval is that one number.
    """
    from scipy.special import stdtrit

    mean = statistics.fmean(values)
    if len(values) < 2:
        return Mean(tuple(values), mean, None)
    half = float(stdtrit(len(values) - 1, 1 - level / 2)) * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(tuple(values), mean, Interval(mean - half, mean + half))


def paired_chance(differences: Sequence[float]) -> float:
    """The chance that differences which are zero on average come out so far from it: Student's t, two-sided, paired.

    Of differences that are all the same it is 1 where they are zero, and else 0.
    """
    from scipy.special import stdtr

    spread, mean = statistics.stdev(differences), statistics.fmean(differences)
    if not spread:
        return 0.0 if mean else 1.0
    return 2 * float(stdtr(len(differences) - 1, -abs(mean) * math.sqrt(len(differences)) / spread))


def look_level(seeds: int) -> float:
    """The level of each look at the differences, where they are looked at after each seed from LEAST_LOOK on.

    The looks share LEVEL (Bonferroni): whoever stops at the first 95 % interval without zero cries wolf in 10 to 20 %
    of equal pairs.

    Args:
        seeds: of all that are run at most.
    """
    return LEVEL / max(1, seeds - LEAST_LOOK + 1)
