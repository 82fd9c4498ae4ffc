"""A metric is a row and a function: everything else follows."""

import json
import sqlite3

import numpy as np
import pytest

from bestrun import metrics
from bestrun.settings.compose import compose, override
from bestrun.settings.config import digest, flatten


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
    from bestrun.tracking.page import view

    assert view("val/recall", ["seed"], None)["orderByKey"] == "metrics.`best/recall`"


@pytest.mark.parametrize(("metric", "direction"), [("val/accuracy", "maximize"), ("val/loss", "minimize")])
def test_the_direction_follows_the_metric_and_digests_stay(metric, direction):
    given = compose([f"objective.metric={metric}", f"objective.direction={direction}"]).config
    followed = compose([f"objective.metric={metric}"]).config
    assert digest(given) == digest(followed) and flatten(followed)["objective.direction"] == direction
    assert override(given, ["objective.metric=val/loss"])[0].objective.direction == "minimize"
