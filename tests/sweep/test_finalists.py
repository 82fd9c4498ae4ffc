"""Finalists of a sweep: which run again, what is said of them, and which run is the best of the sweep then."""

import json

import numpy as np
import pytest
import scipy.stats

from bestrun.judging import holm
from bestrun.storage.history import History
from bestrun.storage.reference import run_folders
from bestrun.sweep.board import finalist_lines
from bestrun.sweep.finalists import candidates, choose, expected, finalists, winner
from bestrun.sweep.manifest import Manifest, Run, Trial, read_manifest
from support.looks import wait_for

SMALL = [
    *("data=npz", "model.filter_sizes=[3]", "model.num_filters=[4]", "model.fc_size=8", "training.batch_size=16"),
    *("training.max_steps=20", "training.patience_steps=20", "training.evaluate_every_steps=10"),
]


class Settled:
    def __init__(self, seed):
        self.seed = seed


def settle(point, number):
    return Settled(int(point.get("seed", 0)) + number)


def made(tmp_path, values, direction="maximize", **points):
    """A manifest whose trials came to these values; `points`: setting -> its value in each trial."""
    manifest = Manifest(
        tmp_path / "sweeps" / "s" / "manifest.json", "s", 0, {"kind": "grid", "space": {}}, len(values),
        {"metric": "val/accuracy", "direction": direction}, "e", "u",
    )  # fmt: skip
    columns = points or {"rate": [str(number) for number in range(len(values))]}
    for number, value in enumerate(values):
        point = {name: column[number] for name, column in columns.items()}
        manifest.trials.append(Trial(number, point, [Run(f"s-{number}", "complete", best=value)]))
    return manifest


def ended(manifest, values):
    for trial, value in zip(manifest.finals, values, strict=True):
        trial.runs[0].state = "complete" if value is not None else "failed"
        trial.runs[0].best = value


def test_the_first_run_again_with_seeds_that_no_trial_had(tmp_path):
    manifest = made(tmp_path, [0.9, 0.95, 0.92], rate=["a", "b", "c"], seed=["0", "2", "0"])
    choose(manifest, 2, 3, settle)
    assert [trial.point for trial in manifest.finals] == [
        {"rate": rate, "seed": seed} for rate in "bc" for seed in ("1", "3", "4")
    ]
    names = [trial.runs[0].name for trial in manifest.finals]
    assert names == [f"s-final-{rank}-{number}" for rank in (0, 1) for number in range(3)]
    choose(manifest, 3, 3, settle)
    assert [trial.point["rate"] for trial in manifest.finals[6:]] == ["a"] * 3, "with more of them, the next one"
    assert {trial.point["seed"] for trial in manifest.finals[6:]} == {"1", "3", "4"}, "with the same seeds"
    before = list(manifest.finals)
    choose(manifest, 3, 3, settle)
    assert manifest.finals == before


def test_a_seed_is_no_part_of_a_configuration(tmp_path):
    manifest = made(tmp_path, [0.9, 0.8, 0.86], rate=["a", "a", "b"], seed=["0", "1", "0"])
    assert candidates(manifest) == [({"rate": "b"}, 0.86), ({"rate": "a"}, pytest.approx(0.85))]


def test_the_best_mean_wins_not_the_best_value(tmp_path):
    manifest = made(tmp_path, [0.97, 0.96])
    choose(manifest, 2, 3, settle)
    ended(manifest, [0.93, 0.95, 0.94, 0.955, 0.951, 0.953])
    first, second = finalists(manifest)
    assert first.settings == {"rate": "1"} and first.mean == pytest.approx(0.953)
    assert expected([first, second], "maximize") == pytest.approx(0.953), "whichever seed is left out, it wins"
    assert first.luck == pytest.approx(0.96 - 0.953)
    assert second.luck == pytest.approx(0.97 - 0.94) and first.low < first.mean < first.high
    assert winner(manifest).name == "s-final-1-0"
    text = "\n".join(finalist_lines([each.as_json() for each in (first, second)], 0.953, "val/accuracy"))
    assert "+0.70 points" in text and "the winner" in text and "not told apart" in text
    assert "expect    95.30 % of a run of the winner: of the 96.00 % that it had in the sweep, 0.70 points" in text
    manifest.finals[0].runs[0].state = "running"
    assert winner(manifest) is None, "as long as one of them is not over"


def test_a_failed_run_is_left_out_of_the_mean(tmp_path):
    manifest = made(tmp_path, [0.97, 0.96])
    choose(manifest, 2, 2, settle)
    ended(manifest, [None, None, 0.9, None])
    first, second = finalists(manifest)
    assert (first.seeds, first.mean, first.low, first.p) == ([1], 0.9, None, None)
    assert second.mean is None and winner(manifest).name == "s-final-1-0"


def test_of_a_loss_luck_is_what_it_was_smaller(tmp_path):
    manifest = made(tmp_path, [0.5, 0.6], direction="minimize")
    choose(manifest, 1, 2, settle)
    ended(manifest, [0.58, 0.62])
    (first,) = finalists(manifest)
    assert first.settings == {"rate": "0"} and first.luck == pytest.approx(0.1)


def test_configurations_that_differ_are_told_apart(tmp_path):
    manifest = made(tmp_path, [0.97, 0.96])
    choose(manifest, 2, 4, settle)
    ended(manifest, [0.97, 0.972, 0.971, 0.973, 0.90, 0.903, 0.901, 0.902])
    assert finalists(manifest)[1].as_json()["told_apart"] is True


def test_what_is_told_apart_pays_for_every_pair_that_might_have_won(tmp_path):
    manifest = made(tmp_path, [0.97, 0.96, 0.95])
    choose(manifest, 3, 4, settle)
    values = [0.970, 0.972, 0.971, 0.973, 0.960, 0.967, 0.963, 0.969, 0.90, 0.903, 0.901, 0.902]
    ended(manifest, values)
    runs = [values[start : start + 4] for start in (0, 4, 8)]
    alone = [scipy.stats.ttest_rel(runs[one], runs[two]).pvalue for one, two in ((0, 1), (0, 2), (1, 2))]
    found = finalists(manifest)
    assert [each.p for each in found[1:]] == pytest.approx(holm(alone)[:2]) and found[0].p is None
    assert [each.p for each in found[1:]] != pytest.approx(holm(alone[:2]))


def test_two_seeds_tell_nothing_apart(tmp_path):
    manifest = made(tmp_path, [0.97, 0.96])
    choose(manifest, 2, 2, settle)
    ended(manifest, [0.97, 0.97, 0.90, 0.90])
    assert finalists(manifest)[1].as_json()["told_apart"] is None


def test_more_seeds_are_added_to_the_finalists_there_are(tmp_path):
    manifest = made(tmp_path, [0.97, 0.96, 0.95])
    choose(manifest, 2, 2, settle)
    choose(manifest, 3, 3, settle)
    seeds = {}
    for trial in manifest.finals:
        seeds.setdefault(trial.point["rate"], []).append(trial.point["seed"])
    assert seeds == {"0": ["1", "2", "3"], "1": ["1", "2", "3"], "2": ["1", "2", "3"]}
    names = [trial.runs[0].name for trial in manifest.finals]
    assert len(set(names)) == 9 and names[:4] == ["s-final-0-0", "s-final-0-1", "s-final-1-0", "s-final-1-1"]


@pytest.mark.parametrize("count", [1, 3, 5])
def test_of_equal_trials_the_luck_that_is_told_is_the_true_one_and_few_are_called_worse(count, tmp_path):
    """Two hundred configurations of one merit: all that the winner has more is luck."""
    dice, merit, errors, worse, studies = np.random.default_rng(2), 0.95, [], 0, 200
    manifest = made(tmp_path, [0.9] * 200)
    for _ in range(studies):
        for trial, value in zip(manifest.trials, dice.normal(merit, 0.003, 200), strict=True):
            trial.runs[0].best = float(value)
        manifest.finals.clear()
        choose(manifest, count, 5, settle)
        ended(manifest, list(dice.normal(merit, 0.003, 5 * count)))
        found = finalists(manifest)
        errors.append(found[0].luck - (found[0].in_sweep - merit))
        worse += any(each.as_json()["told_apart"] for each in found[1:])
    assert abs(np.mean(errors)) < 0.0005
    assert worse / studies <= 0.055 + 2 * (0.05 * 0.95 / studies) ** 0.5


def runs_of(home):
    found = {}
    for folder in run_folders(home / "mlruns"):
        settings = History.read(folder.journal).settings
        found[folder.name] = (settings["optimizer.learning_rate"], settings["seed"])
    return found


def _killed_and_given_again(bestrun, home, words, moments, total):
    runs = home / "mlruns" / "runs"
    for moment in moments:
        process = bestrun.start("train", "-m", *words)
        wait_for(lambda moment=moment: runs.exists() and len(list(runs.iterdir())) >= moment, process)
        process.kill()
        process.wait()
    result = bestrun("train", "-m", *words, "--json")
    assert result.code == 0, result.err
    found, made_runs = json.loads(result.out), runs_of(home)
    assert len(made_runs) == len(set(made_runs.values())) == total, "each run is once"
    assert [each["seeds"] for each in found["finalists"]] == [[1, 2], [1, 2]]
    means = [each["mean"] for each in found["finalists"]]
    assert means == sorted(means, reverse=True) and all(each["luck"] is not None for each in found["finalists"])
    return found


def test_finalists_of_a_killed_grid_are_once_each_and_best_is_the_winner(bestrun, home, tiny_npz):
    rates = "optimizer.learning_rate=3e-3,1e-2"
    words = [*SMALL, f"data.path={tiny_npz}", rates, "sweep.name=s", "sweep.finalists=2", "sweep.finalist_seeds=2"]
    found = _killed_and_given_again(bestrun, home, words, (4,), 6)
    shown = json.loads(bestrun("show", "best", "--sweep", "s", "--json").out)
    assert shown["run_name"] == found["winner"] and found["winner"].startswith("s-final-")
    assert "finalists, with fresh seeds" in bestrun("sweep", "s").out
    assert json.loads(bestrun("sweep", "s", "--json").out)["finalists"] == found["finalists"]
    manifest = read_manifest(home / "mlruns", "s")
    assert [trial.state for trial in manifest.finals] == ["complete"] * 4
    report = bestrun("report", "--sweep", "s", "--out", str(home / "r.html"))
    assert report.code == 0 and "Finalists" in (home / "r.html").read_text()


@pytest.mark.slow
def test_finalists_of_a_study_that_is_killed_between(bestrun, home, small_mnist_npz):
    words = [
        *("data=npz", f"data.path={small_mnist_npz}", "model.fc_size=16", "training.max_steps=60"),
        *("training.patience_steps=60", "training.evaluate_every_steps=20", "sweep=study", "sweep.name=s"),
        *("sweep.n_trials=12", "sweep.finalists=2", "sweep.finalist_seeds=2", "model.num_filters=[4,8]"),
        *("optimizer.learning_rate=tag(log,interval(1e-4,1e-2))", "model.filter_sizes=[3,3]", "sweep.pruner=NopPruner"),
    ]
    _killed_and_given_again(bestrun, home, words, (4, 9, 13, 15), 16)
