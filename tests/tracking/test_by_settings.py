"""`bestrun runs --by settings`: which runs are one configuration, which count, and what is said of them."""

import json
import shutil

import pytest
import scipy.stats

from bench.store import make_store
from bestrun.metrics import best_key
from bestrun.tracking import by_settings
from bestrun.tracking.by_settings import Seen, configurations
from bestrun.tracking.sender import Sender
from bestrun.tracking.store import connect
from support.made_runs import make_run
from support.stores import sqlite_uri

SETTINGS = {"objective.metric": "val/accuracy", "model": "cnn", "optimizer": "adam", "optimizer.learning_rate": "1e-3"}


def run(name, seed, best, *, finished=True, started=0, changed=None, data="d" * 64, **settings):
    named = {key.replace("__", "."): value for key, value in settings.items()}
    return Seen(name, finished, started, {**SETTINGS, "seed": seed, **named}, changed or {}, best, data)


def test_a_run_that_the_clock_ended_is_left_out_of_the_mean():
    def seen(name, seed, best, reason):
        settings = {**SETTINGS, "seed": seed}
        tags = {"bestrun.run": name, "bestrun.stop_reason": reason}
        return by_settings._seen("FINISHED", 0, settings, {best_key("val/accuracy"): best}, tags)

    (found,) = configurations([seen("a", "0", 0.98, "max_steps"), seen("b", "1", 0.5, "max_hours")], 20)
    assert (found.runs, found.left_out, found.mean) == (["a"], 1, pytest.approx(0.98))


def test_seeds_of_one_configuration_are_one_row():
    seen = [run("a", "0", 0.98), run("b", "1", 0.99), run("c", "2", 0.97), run("d", "0", 0.5, model="cnn_bn")]
    first, second = configurations(seen, 20)
    expected = scipy.stats.ttest_1samp([0.98, 0.99, 0.97], 0).confidence_interval(0.95)
    assert (first.seeds, first.mean, first.worst, first.best) == (3, pytest.approx(0.98), 0.97, 0.99)
    assert (first.low, first.high) == pytest.approx((expected.low, expected.high))
    assert (second.seeds, second.low, second.mean) == (1, None, 0.5)
    assert [first.settings, second.settings] == [{"model": "cnn"}, {"model": "cnn_bn"}], "what differs, nothing else"


def test_a_seed_counts_once_and_only_what_is_finished_counts():
    seen = [
        run("old", "0", 0.9, started=1),
        run("rerun", "0", 0.95, started=2),
        run("killed", "1", 0.99, finished=False),
        run("without", "2", None),
    ]
    (found,) = configurations(seen, 20)
    assert (found.runs, found.left_out, found.mean) == (["rerun"], 3, 0.95)
    (none,) = configurations(seen[2:], 20)
    assert (none.seeds, none.mean, none.left_out) == (0, None, 2)


def test_what_decides_nothing_separates_nothing():
    one = run("a", "0", 0.9)
    others = {
        "threads": "1", "name": "b", "note": "x", "tags.who": "me", "data.path": "/elsewhere", "tracking.uri": "x",
        "training.max_hours": "2", "precision": "float32", "training.label_smoothing": "0.0", "optimizer.ema": "null",
    }  # fmt: skip
    (found,) = configurations([one, Seen("b", True, 0, {**one.settings, **others, "seed": "1"}, {}, 0.8, "d" * 64)], 20)
    assert found.seeds == 2


def test_what_decides_separates():
    seen = [
        run("a", "0", 0.9),
        run("b", "0", 0.9, training__label_smoothing="0.1"),
        run("c", "0", 0.9, data="e" * 64),
        run("d", "0", 0.9, changed={"training.max_steps": ["100", "200"]}),
        run("e", "0", 0.9, objective__metric="val/loss"),
    ]
    found = configurations(seen, 20)
    assert len(found) == 5 and {each.seeds for each in found} == {1}
    told = {each.runs[0]: each.settings for each in found}
    assert told["d"]["training.max_steps"] == "- -> 200" and told["c"]["data digest"] == "e" * 12
    assert [each.objective for each in found] == ["val/accuracy"] * 4 + ["val/loss"], "objectives are not mixed"
    (same,) = configurations([run("a", "0", 0.9), run("b", "1", 0.9, changed={"threads": ["1", "2"]})], 20)
    assert same.seeds == 2, "threads are no part of a configuration"


def test_the_best_mean_comes_first_whichever_way_is_better():
    losses = [
        run(name, "0", value, objective__metric="val/loss", model=name) for name, value in (("a", 2.0), ("b", 1.0))
    ]
    assert [each.runs for each in configurations(losses, 20)] == [["b"], ["a"]]
    assert [each.runs for each in configurations(losses, 1)] == [["b"]]


def test_the_tables_say_what_mlflow_says(tmp_path, ready_made_store):
    path = tmp_path / "a#b c" / "mlflow.db"
    path.parent.mkdir()
    shutil.copyfile(ready_made_store, path)
    store = connect(make_store(path, 150, 3, settings=10))
    quick = by_settings._of_database(path, list(store.experiments(None)))
    slow = by_settings._of_mlflow(store, list(store.experiments(None)), None, None, False)
    assert len(quick) > 100

    def key(seen):
        return seen.run_name

    assert sorted(quick, key=key) == sorted(slow, key=key)


def test_the_verb(bestrun, home):
    settings = SETTINGS | {"seed": "0", "training.max_steps": "60", "data.path": "/one"}
    folders = [make_run(home, "one", settings=settings)]
    for seed, best in (("1", 10), ("2", 20)):
        of_two = settings | {"seed": seed, "training.max_steps": "20", "data.path": f"/{seed}"}
        folders.append(make_run(home, f"two-{seed}", improved=(best,), settings=of_two))
    for folder in folders:
        Sender(folder, sqlite_uri(home)).catch_up()
    found = json.loads(bestrun("runs", "--by", "settings", "--json").out)
    assert sorted(each["seeds"] for each in found) == [1, 2]
    (two,) = [each for each in found if each["seeds"] == 2]
    assert two["low"] < two["mean"] < two["high"] and (two["worst"], two["best"]) == (0.1, 0.2)
    text = bestrun("runs", "--by", "settings").out
    assert "95 %" in text and "training.max_steps" in text and "data.path" not in text
    assert bestrun("runs", "--by", "settings", "--csv").out.splitlines()[0].startswith("objective,seeds,mean")
    assert "leave it out" in bestrun("runs", "--by", "settings", "--sort", "started").err
    some = json.loads(bestrun("runs", "--by", "settings", "--json", "--filter", 'params.seed = "1"').out)
    assert [each["seeds"] for each in some] == [1]
    assert bestrun("runs", "--by", "settings", "--filter", "nonsense").code == 2
