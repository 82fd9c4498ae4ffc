"""A metric is a row and a function: everything else follows."""

import json
import sqlite3

import numpy as np
import pytest

from bestrun import metrics
from bestrun.errors import SettingsError
from bestrun.settings import own
from bestrun.settings.compose import compose, override
from bestrun.settings.config import digest, flatten
from bestrun.storage.history import History
from bestrun.storage.journal import Journal
from bestrun.training import device  # noqa: F401  (first: it makes TensorFlow's start quiet)
from bestrun.training.schedules import Course, learning_rates


def _with_recall(words):
    """In a process of its own: `bestrun WORDS` with another metric, the mean of the classes' recalls."""
    import sys

    from bestrun.cli import main as cli

    metrics.METRICS["recall"] = metrics.Metric("recall", "share", "maximize")
    if words[0] in ("train", "restore", "rerun"):
        from bestrun.training import device, evaluation  # noqa: F401  (device first)

        def recall(logits, labels):
            right = logits.argmax(axis=1) == labels
            return np.mean([right[labels == label].mean() for label in np.unique(labels)])

        evaluation.FURTHER["recall"] = recall
    sys.argv = ["bestrun", *words]
    cli.main()


@pytest.mark.slow
def test_a_new_metric_is_found_in_journal_mlflow_tables_curves_and_as_an_objective(start_process, home, settings):
    def bestrun(*words):
        result = start_process(_with_recall, words, cwd=home).wait()
        assert result.code == 0, result.err
        return result.out

    printed = bestrun("train", *settings, "name=r", "objective.metric=val/recall", "training.max_steps=40")
    lines = [json.loads(line) for line in (home / "mlruns/runs/r/journal.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line["event"] == "evaluation"]
    assert all(0 < line["val/recall"] < 1 and line["val/recall"] != line["val/accuracy"] for line in evaluations)
    best = max(evaluations[1:], key=lambda line: line["val/recall"])
    assert f"best      val/recall {100 * best['val/recall']:.2f} % at step {best['step']}" in printed
    assert f"val/recall {100 * best['val/recall']:.2f} %" in bestrun("show", "r")
    restored = json.loads(bestrun("restore", "best", "--json"))
    assert restored["run_name"] == "r" and 0 < restored["test"]["recall"] < 1
    (row,) = json.loads(bestrun("runs", "--columns", "run,val/recall,best/recall,test/recall", "--json"))
    assert row["best/recall"] == best["val/recall"] and row["test/recall"] == restored["test"]["recall"]
    assert f"recall {100 * best['val/recall']:.2f} %" in bestrun("runs")
    bestrun("rerun", "r", "name=again")
    assert "best val/recall" in bestrun("compare", "r", "again")
    bestrun("report", "r", "--out", str(home / "r.html"))
    assert "val/recall" in (home / "r.html").read_text()
    assert bestrun("sync", "--all").count("complete") == 2


def test_curves_have_a_panel_for_each_metric_that_was_measured(monkeypatch):
    from bestrun.views.curves import curves_figure

    history = [{"step": step, "val/loss": 1.0, "val/accuracy": 0.5, "val/recall": 0.4} for step in (0, 10, 20)]
    assert len(curves_figure(history, 10, "r").axes) == 2
    monkeypatch.setitem(metrics.METRICS, "recall", metrics.Metric("recall", "share", "maximize"))
    assert [axes.get_ylabel() for axes in curves_figure(history, 10, "r").axes][:2] == ["accuracy", "recall"]
    older = [{key: value for key, value in line.items() if key != "val/recall"} for line in history]
    assert len(curves_figure(older, 10, "r").axes) == 2


def test_a_run_of_a_metric_that_only_another_version_knows_is_listed_as_mlflow_has_it(bestrun, home, settings):
    assert bestrun("train", *settings, "name=r", "training.max_steps=20", "pictures=false").code == 0
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as database:
        database.execute("UPDATE params SET value = 'val/recall' WHERE key = 'objective.metric'")
        database.execute("UPDATE metrics SET key = 'best/recall' WHERE key = 'best/accuracy'")
        database.execute("UPDATE latest_metrics SET key = 'best/recall' WHERE key = 'best/accuracy'")
    for words in ([], ["--sort", "started"]):
        listed = bestrun("runs", *words)
        assert listed.code == 0 and "recall 0." in listed.out, listed.err
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as database:  # a name that no search can ask for
        database.execute("UPDATE params SET value = 'val/it''s' WHERE key = 'objective.metric'")
    listed = bestrun("runs")
    assert listed.code == 0 and listed.out.splitlines()[1].startswith("r "), listed.err
    from bestrun.tracking.page import view

    assert view("val/recall", ["seed"], None)["orderByKey"] == "metrics.`best/recall`"


@pytest.mark.parametrize(("metric", "direction"), [("val/accuracy", "maximize"), ("val/loss", "minimize")])
def test_the_direction_follows_the_metric_and_digests_stay(metric, direction):
    given = compose([f"objective.metric={metric}", f"objective.direction={direction}"]).config
    followed = compose([f"objective.metric={metric}"]).config
    assert digest(given) == digest(followed) and flatten(followed)["objective.direction"] == direction
    assert override(given, ["objective.metric=val/loss"])[0].objective.direction == "minimize"


def test_a_run_goes_by_f1_and_tells_each_class(bestrun, home, settings, small_mnist_npz, tmp_path):
    with np.load(small_mnist_npz) as file:
        arrays = dict(file)
    nines = np.flatnonzero(arrays["y_train"] == 9)
    keep = np.delete(np.arange(len(arrays["y_train"])), nines[15:])  # 15 of about 1,800: less than 1 %
    arrays |= {"x_train": arrays["x_train"][keep], "y_train": arrays["y_train"][keep]}
    np.savez(tmp_path / "thin.npz", **arrays)
    words = [*settings, f"data.path={tmp_path / 'thin.npz'}", "name=r", "objective.metric=val/f1", "pictures=false"]
    trained = bestrun("train", *words, "schedule=one_cycle", "optimizer.learning_rate=0.01")
    assert trained.code == 0, trained.err
    assert "network   cnn: " in trained.out and ", 9: 15\n" in trained.out and "9: 15 (0.8" in trained.out
    assert "   val loss     val f1  steps/s" in trained.out
    evaluations = History.read(home / "mlruns/runs/r/journal.jsonl").evaluations
    best = max(evaluations[1:], key=lambda line: line["val/f1"])
    assert f"best      val/f1 {100 * best['val/f1']:.2f} % at step {best['step']}" in trained.out
    rates = learning_rates("one_cycle", 0.01, 0, 60, Course(60), warmup_share=0.3, final_share=1e-4)
    written = [float(str(rates[line["step"] - 1])) for line in evaluations[1:]]  # in the digits that tell float32 apart
    assert [line["learning_rate"] for line in evaluations] == [None, *written]
    assert all(line["val/top5"] > line["val/accuracy"] > line["val/f1"] for line in evaluations[1:])

    shown = json.loads(bestrun("show", "r", "--json").out)["classes"]
    recalls = [each["recall"] for each in shown]
    assert sum(each["images"] for each in shown) == 500
    assert np.mean(recalls) == pytest.approx(best["val/balanced_accuracy"])
    (line,) = [line.split() for line in bestrun("show", "r").out.splitlines() if line.startswith("9 ")]
    assert line[:3] == ["9", str(shown[9]["images"]), f"{100 * recalls[9]:.2f}"]
    tested = json.loads(bestrun("restore", "best", "--objective", "val/f1", "--json").out)["test"]
    assert {"accuracy", "loss", "balanced_accuracy", "f1", "top5"} <= tested.keys()
    columns = "run,val/f1,best/f1,test/f1,learning_rate,class/9/recall"
    (row,) = json.loads(bestrun("runs", "--columns", columns, "--json").out)
    assert row["best/f1"] == best["val/f1"] and row["test/f1"] == tested["f1"] and row["class/9/recall"] == recalls[9]
    assert row["learning_rate"] == evaluations[-1]["learning_rate"]
    listed = bestrun("runs", "--filter", 'metrics."best/f1" > 0.1', "--sort", "val/f1", "--columns", columns).out
    assert f"{100 * recalls[9]:.2f} %" in listed


def test_an_objective_that_tells_nothing_of_so_few_classes_is_refused_before_anything_is_on_disk(colour_npz):
    from bestrun.run.start import load_data

    words = ["data=npz", f"data.path={colour_npz}", "objective.metric=val/top5"]
    with pytest.raises(SettingsError, match="objective.metric=val/top5: it tells nothing of 5 classes.* type another"):
        load_data(compose(words).config)


def test_a_repeated_evaluation_is_compared_by_the_metrics_that_its_line_has(tmp_path):
    from bestrun.training.loop import check_repeated

    known = {"step": 20, "val/accuracy": 0.5, "val/loss": 1.0}  # of a version without F1
    now = known | {"val/f1": 0.4, "learning_rate": 0.1}
    with Journal(tmp_path / "journal.jsonl") as journal:
        check_repeated(known, now, journal)
        assert not journal.events
        check_repeated(known, now | {"val/loss": 2.0}, journal)
        assert journal.events[0]["figures"] == {"val/loss": [1.0, 2.0]}


def test_a_metric_of_ones_own_may_have_the_name_of_one_that_came_later(tmp_path):
    from bestrun.training.evaluation import further_figures

    text = '@bestrun.metric("val/f1", direction="minimize")\ndef mine(logits, labels):\n    return 7.0\n'
    (tmp_path / "code.py").write_text(f"import bestrun\n\n\n{text}")
    ours = metrics.METRICS["f1"]
    own.use(tmp_path)
    try:
        assert metrics.METRICS["f1"].direction == "minimize"
        found = further_figures(np.eye(3, dtype=np.float32), np.arange(3), ["f1"])
        assert found == {"balanced_accuracy": 1.0, "f1": 7.0}
        assert own.missing([("metric", "f1")]) == []
    finally:
        own.use(None)
    assert metrics.METRICS["f1"] == ours
    assert own.missing([("metric", "f1")]) == ["metric f1"]  # a run's own one is never taken for ours
