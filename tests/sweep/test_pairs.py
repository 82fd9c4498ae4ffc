"""`bestrun compare A B --seeds N`: pairs of runs with the same seeds, judged as they come."""

import json
import statistics

import numpy as np
import pytest
import scipy.stats

from bestrun.judging import look_level
from bestrun.storage.history import History
from bestrun.storage.reference import run_folders
from bestrun.sweep.pairs import finished_runs, judge
from support.looks import wait_for
from support.made_runs import SETTINGS, make_run

SMALL = [
    *("data=npz", "model.filter_sizes=[3]", "model.num_filters=[4]", "model.fc_size=8", "training.batch_size=16"),
    *("training.max_steps=20", "training.patience_steps=20", "training.evaluate_every_steps=10", "pictures=false"),
]
NAMES = ("one", "two")


# ---- the rule


def test_the_verdict_is_scipy_s_paired_t_test():
    pairs = [(1, 0.90, 0.91), (2, 0.91, 0.925), (3, 0.89, 0.903), (4, 0.9, 0.909)]
    found = judge("val/accuracy", NAMES, pairs, 4)
    expected = scipy.stats.ttest_rel([pair[2] for pair in pairs], [pair[1] for pair in pairs])
    interval = expected.confidence_interval(1 - look_level(4))
    assert found.p == pytest.approx(expected.pvalue)
    difference = found.difference.interval
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
    assert found.better == "B" and "two is better" in found.words() and "better in 4 of 4 paired seeds" in found.words()
    assert judge("val/loss", NAMES, pairs, 4).better == "A", "less of a loss is better"
    assert judge("val/accuracy", NAMES, pairs[:1], 4).better is None


def test_before_the_first_look_nothing_is_told_apart():
    """An interrupted line has fewer pairs than a look takes; two that agree by chance would be a verdict of none."""
    alike = [(seed, 0.90, 0.91) for seed in range(2)]
    early = judge("val/accuracy", NAMES, alike, 3)
    assert early.better is None and early.as_json()["told_apart"] is None
    assert early.words() == "none: 2 pairs of runs came to their end; it takes 3"
    assert judge("val/accuracy", NAMES, alike, 2).better == "B", "of two seeds in all, the second is the look"


@pytest.mark.parametrize(
    ("count", "times"),
    [
        (2, 3000),
        (3, 3000),
        (5, 3000),
        *(pytest.param(count, 10_000, marks=pytest.mark.slow) for count in (2, 3, 5, 10)),
    ],
)
def test_of_equal_configurations_at_most_one_in_twenty_is_told_apart(count, times):
    dice = np.random.default_rng(5)

    def told_apart():
        one, two = dice.normal(0.9, 0.01, (2, count))
        pairs = [(seed, one[seed], two[seed]) for seed in range(count)]
        looks = range(min(3, count), count + 1)
        return any(judge("val/accuracy", NAMES, pairs[:seen], count).better for seen in looks)

    assert 0 < statistics.mean(told_apart() for _ in range(times)) <= 0.055


# ---- the runs that are there


def test_a_run_that_the_clock_ended_or_another_code_py_made_is_not_one_of_these_settings(tmp_path):
    make_run(tmp_path, "whole")
    make_run(tmp_path, "clock", reason="max_hours", settings=SETTINGS | {"seed": "1"})
    make_run(tmp_path, "one", own_code_sha256="a" * 64, settings=SETTINGS | {"seed": "2"})
    make_run(tmp_path, "two", own_code_sha256="b" * 64, settings=SETTINGS | {"seed": "2"})
    found = finished_runs(tmp_path / "mlruns", "f" * 64)
    assert {key[:2]: folder.name for key, folder in found.items()} == {
        ("0", None): "whole",
        ("2", "a" * 64): "one",
        ("2", "b" * 64): "two",
    }


# ---- the verb


def trained_pair(bestrun, path):
    for name, rate in zip(NAMES, ("1e-4", "1e-2"), strict=True):
        words = [*SMALL, f"data.path={path}", f"optimizer.learning_rate={rate}", f"name={name}"]
        assert bestrun("train", *words).code == 0


def finished(home):
    """Name -> seed and rate of the finished runs."""
    found = {}
    for folder in run_folders(home / "mlruns"):
        history = History.read(folder.journal)
        if history.stopped and history.stopped["reason"] == "max_steps":
            found[folder.name] = (history.settings["seed"], history.settings["optimizer.learning_rate"])
    return found


def _until_told(bestrun, home, kills):
    """Begun, killed so many times with all its processes, and given again."""
    for number in range(kills):
        process = bestrun.start("compare", *NAMES, "--seeds", "3", "--json")
        wait_for(lambda number=number: len(list((home / "mlruns" / "runs").iterdir())) >= 4 + number, process)
        process.kill()
        process.wait()
    result = bestrun("compare", *NAMES, "--seeds", "3", "--json")
    assert result.code == 0, result.err
    assert "6 runs at most" in result.err
    return json.loads(result.out)["seeds"]


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_pairs_are_trained_once_whatever_is_killed_and_judged_and_taken_again(kills, bestrun, home, tiny_npz):
    trained_pair(bestrun, tiny_npz)
    taken = [*SMALL, f"data.path={tiny_npz}", "optimizer.learning_rate=1e-2", "seed=2", "name=earlier"]
    assert bestrun("train", *taken).code == 0
    found = _until_told(bestrun, home, kills)
    assert found["seeds"] == [1, 2, 3], "none of them is that of a run which is compared"
    runs = finished(home)
    assert len(runs) == 8 and len(set(runs.values())) == 8, "the run that was there is taken, and none is made twice"
    bests = {name: History.read(home / "mlruns" / "runs" / name / "journal.jsonl").best for name in runs}
    values = {runs[name]: best["val/accuracy"] for name, best in bests.items()}
    for side, rate in (("A", "0.0001"), ("B", "0.01")):
        assert found["values"][side] == [values[str(seed), rate] for seed in found["seeds"]]
    pairs = list(zip(found["seeds"], found["values"]["A"], found["values"]["B"], strict=True))
    expected = judge("val/accuracy", NAMES, pairs, 3)
    assert (found["better"], found["p"], found["words"]) == (expected.better, expected.p, expected.words())
    again = bestrun("compare", *NAMES, "--seeds", "3", "--json")
    assert json.loads(again.out)["seeds"] == found and finished(home) == runs


def test_what_cannot_be_compared_by_seeds_is_refused(bestrun, home):
    for name in NAMES:
        make_run(home, name)
    assert "nothing to tell apart" in bestrun("compare", *NAMES, "--seeds", "3").err
    make_run(home, "other", data_digest="0" * 64)
    assert "other images" in bestrun("compare", "one", "other", "--seeds", "3").err
    assert "compares two runs" in bestrun("compare", "one", "two", "other", "--seeds", "3").err
    assert bestrun("compare", "one", "two", "--seeds", "1").code == 2
