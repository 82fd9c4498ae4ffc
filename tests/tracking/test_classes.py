"""Recall and precision of each class in MLflow, whatever the classes are called, once however often they are sent."""

import sqlite3
from unicodedata import combining, normalize

import pytest
from mlflow import MlflowClient
from mlflow.utils.validation import _validate_batch_log_limits, _validate_metric_name

from bestrun import class_names
from bestrun.storage.folder import RunFolder
from bestrun.storage.journal import Journal, read_journal
from bestrun.tracking.sender import Sender
from bestrun.tracking.translate import MAX_CLASSES, class_keys
from support.hostile_names import HOSTILE
from support.made_runs import add_evaluation, add_stop, make_run
from support.stores import mlflow_record, sqlite_uri


def run_of(home, classes, names=None, cells=None, steps=(0, 10)):
    """A finished run whose best took some images of class 0 for class 1; its journal as the loop writes it."""
    folder = make_run(home, steps=(), reason=None)
    lines, _ = read_journal(folder.journal)
    data = lines[0]["data"] | {"num_classes": classes} | ({"class_names": names} if names else {})
    folder.journal.unlink()
    with Journal(folder.journal) as journal:
        journal.append(**lines[0] | {"data": data})
        for step in steps:
            add_evaluation(folder, journal, step, step == steps[-1], confusions=cells or [[0, 0, 3], [0, 1, 1]])
        add_stop(journal, "max_steps")
    return folder


def class_rows(home):
    _, rows, _ = mlflow_record(sqlite_uri(home), "r")
    return {key: found for key, found in rows.items() if key.startswith("class/")}


@pytest.fixture
def as_a_server(monkeypatch):
    """A store that is opened without a server takes requests of any size; this one refuses what a server does."""
    log_batch = MlflowClient.log_batch

    def limited(client, run_id, metrics=(), params=(), tags=(), synchronous=None):
        _validate_batch_log_limits(metrics, params, tags)
        return log_batch(client, run_id, metrics, params, tags, synchronous)

    monkeypatch.setattr(MlflowClient, "log_batch", limited)


def count_rows(home):
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as database:
        return database.execute("SELECT count(*) FROM metrics WHERE key LIKE 'class/%'").fetchone()[0]


def test_mlflow_gets_the_figures_of_each_class_of_the_best_once(home):
    folder = run_of(home, 3, ["tench", "great auk", "a/b"], [[0, 0, 3], [0, 1, 1], [1, 1, 4]])
    Sender(folder, sqlite_uri(home)).catch_up()
    expected = {
        "class/tench/recall": [(10, 0.75)],
        "class/tench/precision": [(10, 1.0)],
        "class/great auk/recall": [(10, 1.0)],
        "class/great auk/precision": [(10, 0.8)],
        "class/a_b/precision": [(10, 0.0)],  # no image is of it, hence it has no recall
    }
    assert class_rows(home) == expected
    again = Sender(folder, sqlite_uri(home))
    again.acknowledged = 0  # as if no answer had ever come
    assert again.catch_up() == 4 and not again.missing
    assert class_rows(home) == expected
    assert count_rows(home) == len(expected)


@pytest.mark.parametrize("classes", [MAX_CLASSES, MAX_CLASSES + 1])
def test_a_thousand_classes_are_sent_in_parts_and_more_not_at_all(home, as_a_server, classes):
    folder = run_of(home, classes, cells=[[label, label, 1] for label in range(classes)])
    sender = Sender(folder, sqlite_uri(home))
    sender.catch_up()
    assert not sender.missing and count_rows(home) == (2 * MAX_CLASSES if classes == MAX_CLASSES else 0)


def test_a_hundred_improvements_go_though_they_are_more_rows_than_a_request_may_have(home, as_a_server):
    folder = make_run(home, steps=(), reason=None)
    figures = {f"val/{name}": 0.5 for name in ("balanced_accuracy", "f1", "top5")} | {"learning_rate": 1e-3}
    with Journal(folder.journal) as journal:
        for step in range(120):
            add_evaluation(folder, journal, step, True, **figures)
        add_stop(journal, "max_steps")
    Sender(folder, sqlite_uri(home)).catch_up()
    _, rows, _ = mlflow_record(sqlite_uri(home), "r")
    for key in ("val/f1", "best/f1", "learning_rate", "best/step"):
        assert len(rows[key]) == 120, key


def names_of_classes():
    cleaned = tuple(class_names.cleaned(name) for name in HOSTILE)
    alike = (
        ("Cat", "cat", "c a t"),
        ("é", "e", "f"),
        ("a/b", "a_b", "c"),
        ("👩", "🔬", "x"),
        ("..", "_", "z"),
        (".", ".."),
    )
    return [cleaned, *alike, ("0_cat", "cat", "Cat"), ("x" * 100, "x" * 99 + "…"), ("a/../b", "/", "中文", "ſ", "s")]


@pytest.mark.parametrize("names", names_of_classes())
def test_names_of_classes_become_names_of_metrics_that_no_store_takes_for_one(names):
    keys = class_keys(names, len(names))
    for key in keys:
        _validate_metric_name(f"class/{key}/precision")
        assert len(f"class/{key}/precision") <= 250 and "/" not in key
    plain = {"".join(one for one in normalize("NFD", key).casefold() if not combining(one)) for key in keys}
    assert len(plain) == len(names)


def test_names_that_are_fit_stay_as_they_are():
    assert class_keys(["T-shirt", "ankle boot", "中文", "v1.5"], 4) == ["T-shirt", "ankle boot", "中文", "v1.5"]
    assert class_keys(["Cat", "cat"], 2) == ["0_Cat", "1_cat"] and class_keys(None, 2) == ["0", "1"]


def test_a_journal_put_together_from_mlflow_has_no_metric_that_the_run_never_had(home):
    from bestrun.tracking.store import connect
    from bestrun.tracking.translate import _evaluations_of

    folder = make_run(home)
    Sender(RunFolder(folder.path), sqlite_uri(home)).catch_up()
    store = connect(sqlite_uri(home))
    run, _, _ = mlflow_record(sqlite_uri(home), "r")
    found = _evaluations_of(store.client, run)
    assert [line["step"] for line in found] == [0, 10, 20, 30]
    assert all(line.keys().isdisjoint({"val/f1", "val/top5", "learning_rate"}) for line in found)
    assert found[0]["train/loss"] is None and found[1]["val/accuracy"] == 0.1
