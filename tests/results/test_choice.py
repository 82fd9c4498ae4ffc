"""Divergence never becomes best, `best` is chosen honestly, and the same seed gives the same tensors.

R19 to R21 of the test plan.
"""

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest

from bestrun.errors import SettingsError
from bestrun.storage.checkpoint import load
from bestrun.storage.files import read_json
from bestrun.storage.journal import read_journal
from bestrun.tracking.listing import as_json, list_runs
from bestrun.tracking.lookup import Lookup, find_run
from bestrun.tracking.store import connect
from support.looks import evaluations
from support.processes import bestrun_command
from support.stores import mlflow_record, run_folder, sqlite_uri

NETWORK = ["model.num_filters=[4,8]", "model.fc_size=16", "training.batch_size=16"]
SHORT = ["training.max_steps=60", "training.patience_steps=60", "training.evaluate_every_steps=20", "pictures=false"]
GOOD = "optimizer.learning_rate=2e-3"


@pytest.fixture
def data(small_mnist_npz):
    return ["data=npz", f"data.path={small_mnist_npz}", *NETWORK]


# ---- R19: NaN and infinity ----


def assert_diverged(home, name, result):
    """Exit 4 with one line, FAILED, nothing that is not a number anywhere, and the best before it still restorable."""
    folder = run_folder(home, name)
    assert result.code == 4
    events, _ = read_journal(folder.journal)
    assert (events[-1]["event"], events[-1]["reason"]) == ("stopped", "diverged")
    assert f"error: diverged at step {events[-1]['step']}: the loss is not finite" in result.err
    assert "Traceback" not in result.err
    run, rows, _ = mlflow_record(sqlite_uri(home), name)
    assert (run.info.status, run.data.tags["bestrun.stop_reason"]) == ("FAILED", "diverged")
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as database:
        for table in ("metrics", "latest_metrics"):
            assert database.execute(f"select count(*) from {table}").fetchone()[0] > 0
            assert database.execute(f"select * from {table} where is_nan or abs(value) > 1e30").fetchall() == []
    for line in evaluations(folder):
        assert math.isfinite(line["val/loss"])
    for path in (folder.last, *folder.bests()):
        if path.exists():
            assert all(np.isfinite(tensor).all() for tensor in load(path).tensors.values()), path.name
    return folder, rows


@pytest.mark.parametrize("rate", [1e30, pytest.param(1e10, marks=pytest.mark.slow)])
def test_a_run_that_diverges_before_its_first_best_has_none_and_says_so(bestrun, home, data, rate):
    # With 1e30 weights are NaN after some updates, and yet both losses stay finite: ReLU makes 0 of NaN here. With 1e10
    # the loss shows it.
    result = bestrun("train", *data, *SHORT, "optimizer=sgd", f"optimizer.learning_rate={rate}", "name=never")
    folder, rows = assert_diverged(home, "never", result)
    assert [line["step"] for line in evaluations(folder)] == [0]
    assert folder.bests() == [] and read_json(folder.result)["best"] is None
    assert "best/accuracy" not in rows
    restored = bestrun("restore", "never")
    assert restored.code == 5 and "no best checkpoint" in restored.err
    chosen = bestrun("restore", "best")
    assert chosen.code == 2 and "no finished run has a best value yet" in chosen.err


def _diverge(at, how, argv):
    """The command; from this step on the rate is such that weights overflow, or the evaluation is not finite."""
    from dataclasses import replace

    from bestrun.training import loop

    rates, figures = loop.learning_rates, loop.figures
    seen = {"step": 0}

    def learning_rates(*, first_step, steps, **named):
        seen["step"] = first_step + steps
        found = rates(first_step=first_step, steps=steps, **named)
        if how != "validation":
            found[np.arange(first_step, first_step + steps) >= at] = 1e10 if how == "training" else np.inf
        return found

    def spoilt(*args):
        found = figures(*args)
        return replace(found, loss=math.inf) if how == "validation" and seen["step"] >= at else found

    loop.learning_rates, loop.figures = learning_rates, spoilt
    bestrun_command(argv)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("how", "at"), [("training", 45), ("evaluation", 59), pytest.param("validation", 45, marks=pytest.mark.slow)]
)
def test_a_run_that_diverges_later_keeps_its_best_and_goes_on_with_a_smaller_rate(
    bestrun, start_process, home, data, how, at
):
    # In training: the loss of a step shows it. In evaluation: the very last update before it overflowed.
    argv = ("train", *data, *SHORT, "training.max_steps=80", GOOD, "name=late")
    result = start_process(_diverge, at, how, argv, cwd=home).wait()
    folder, rows = assert_diverged(home, "late", result)
    lines = evaluations(folder)
    assert [line["step"] for line in lines] == [0, 20, 40]
    step = read_journal(folder.journal)[0][-1]["step"]
    assert 45 < step < 60 if how == "training" else step == 60
    best = [line for line in lines if line["improved"]][-1]
    assert rows["best/step"][-1][1] == best["step"]
    assert f"the best so far, step {best['step']}, is kept" in result.err
    if how != "training":
        return  # the rest is the same from here
    assert bestrun("restore", "best").code == 2  # a failed run is never the best one
    report = bestrun("restore", "late", "--json")
    assert json.loads(report.out)["validation"]["agrees"] is True, report.err
    assert load(folder.last).state.step == 40
    assert "no interrupted run" in bestrun("resume").err  # it would only diverge again
    again = bestrun("resume", "late", "optimizer.learning_rate=1e-3")
    assert again.code == 0, again.err
    assert [line["step"] for line in evaluations(folder)] == [0, 20, 40, 60, 80]
    run, _, _ = mlflow_record(sqlite_uri(home), "late")
    assert (run.info.status, run.data.tags["bestrun.stop_reason"]) == ("FINISHED", "max_steps")
    assert json.loads(bestrun("restore", "best", "--json").out)["run_name"] == "late"


def _diverge_and_interrupt(at, argv):
    """The command; update `at` overflows, and a signal comes before the next step could show it."""
    from bestrun.training import loop

    rates = loop.learning_rates

    def learning_rates(*, first_step, **named):
        found = rates(first_step=first_step, **named)
        if first_step == at:
            found[:] = np.inf
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    loop.CHUNK_SECONDS = 0.0  # one step a chunk: the loop asks for the signal right after the overflow
    loop.learning_rates = learning_rates
    bestrun_command(argv)


@pytest.mark.slow
def test_weights_that_overflowed_just_before_a_signal_are_not_saved(bestrun, start_process, home, data):
    argv = ("train", *data, *SHORT, "optimizer=sgd", "optimizer.learning_rate=0.05", "name=edge")
    assert start_process(_diverge_and_interrupt, 30, argv, cwd=home).wait().code == 4
    folder = run_folder(home, "edge")
    events, _ = read_journal(folder.journal)
    assert (events[-1]["event"], events[-1]["reason"], events[-1]["step"]) == ("stopped", "diverged", 31)
    assert load(folder.last).state.step == 20
    again = bestrun("resume", "edge")
    assert again.code == 0, again.err
    assert all(np.isfinite(tensor).all() for tensor in load(folder.last).tensors.values())


# ---- R20: which run is best ----


@pytest.fixture
def store(home):
    return connect(sqlite_uri(home))


@pytest.fixture
def add(store):
    """`add(name, accuracy=0.9) -> run ID`: a run as the mirror records it, one second after the last."""
    experiment, count = store.experiment_id("choice"), 0

    def add(name, status="FINISHED", objective="val/accuracy", start_ms=None, experiment=experiment, sweep="", **best):
        nonlocal count
        count += 1
        run = store.client.create_run(
            experiment,
            start_time=start_ms or 1_700_000_000_000 + 1000 * count,
            run_name=name,
            tags={"bestrun.run": name} | ({"bestrun.sweep": sweep} if sweep else {}),
        )
        store.client.log_param(run.info.run_id, "objective.metric", objective)
        for key, value in best.items():
            store.client.log_metric(run.info.run_id, f"best/{key}", value, step=20)
        if status != "RUNNING":
            store.client.set_terminated(run.info.run_id, status)
        return run.info.run_id

    return add


def best(store, **named):
    return find_run(store, Lookup("best", **named)).data.tags["bestrun.run"]


def test_best_is_the_highest_accuracy_and_the_earlier_of_equals(store, add):
    add("low", accuracy=0.5)
    add("late", accuracy=0.9, start_ms=1_800_000_000_000)
    add("early", accuracy=0.9, start_ms=1_600_000_000_000)
    add("middle", accuracy=0.9)
    assert best(store) == "early"
    assert [row.run_name for row in list_runs(store, most=10)] == ["early", "middle", "late", "low"]


def test_best_by_loss_is_the_lowest(store, add):
    add("high", objective="val/loss", accuracy=0.99, loss=0.5)
    add("low", objective="val/loss", accuracy=0.10, loss=0.1)
    assert best(store) == "low"
    assert [row.run_name for row in list_runs(store, most=10)] == ["low", "high"]


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED"])
def test_best_is_a_finished_run(store, add, status):
    add("better", status=status, accuracy=0.99)
    with pytest.raises(SettingsError, match="no finished run has a best value yet"):
        best(store)
    add("finished", accuracy=0.5)
    assert best(store) == "finished"


def test_best_is_not_a_deleted_run(store, add):
    add("kept", accuracy=0.5)
    store.client.delete_run(add("deleted", accuracy=0.9))
    assert best(store) == "kept"
    assert [row.run_name for row in list_runs(store, most=10)] == ["kept"]


def test_best_is_not_a_run_without_a_value(store, add):
    add("nothing")
    with pytest.raises(SettingsError, match="no finished run has a best value yet"):
        best(store)
    add("something", accuracy=0.1)
    assert best(store) == "something"


@pytest.mark.parametrize("kind", ["accuracy", "loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_best_is_not_a_run_whose_value_is_no_number(store, add, kind, value):
    objective = f"val/{kind}"
    add("no number", objective=objective, **{kind: value})
    with pytest.raises(SettingsError, match="no finished run has a best value yet"):
        best(store)
    add("number", objective=objective, **{kind: 0.5})
    assert best(store) == "number"
    rows = as_json(list_runs(store, most=10))
    assert {row["run_name"]: row["best"] for row in rows} == {"number": 0.5, "no number": None}
    json.dumps(rows, allow_nan=False)


def test_runs_of_different_objectives_are_never_mixed(store, add, bestrun):
    add("by_accuracy", accuracy=0.9, loss=0.5)
    add("by_loss", objective="val/loss", accuracy=0.95, loss=0.1)
    with pytest.raises(SettingsError, match="say which: --objective val/accuracy"):
        best(store)
    assert best(store, objective="val/accuracy") == "by_accuracy"
    assert best(store, objective="val/loss") == "by_loss"
    result = bestrun("restore", "best")
    assert result.code == 2 and "--objective val/accuracy" in result.err and "Traceback" not in result.err
    result = bestrun("restore", "best", "--objective", "val/acuracy")  # misspelt
    assert result.code == 2 and "val/accuracy" in result.err


def test_best_is_looked_for_in_one_experiment_and_a_misspelt_one_is_an_error(store, add):
    add("here", accuracy=0.5)
    other = store.experiment_id("other")
    add("there", accuracy=0.9, experiment=other)
    assert best(store) == "there"  # that of the latest run
    assert best(store, experiment="choice") == "here"
    with pytest.raises(SettingsError, match="there are: .*choice, other"):
        best(store, experiment="chioce")


def test_best_of_a_sweep_is_looked_for_in_that_sweep(store, add, bestrun):
    other = store.experiment_id("other")
    add("night1-000", accuracy=0.5, sweep="night1")
    add("night1-001", accuracy=0.6, sweep="night1")
    add("night2-000", accuracy=0.7, sweep="night2")
    add("alone", accuracy=0.9, experiment=other)
    assert best(store, sweep="night1") == "night1-001"  # though the latest run is in another experiment
    names = [row["run_name"] for row in as_json(list_runs(store, sweep="night1"))]
    assert names == ["night1-001", "night1-000"]
    for words in (["restore", "best"], ["runs"]):
        result = bestrun(*words, "--sweep", "a' or '1'='1")
        assert result.code == 2 and "not the name of a sweep" in result.err and result.err.count("\n") == 1
    result = bestrun("restore", "best", "--sweep", "night3")
    assert result.code == 2 and "no finished run has a best value yet" in result.err


def test_best_and_the_list_are_right_while_another_writes(store, add, home):
    add("best", accuracy=0.9)
    written, ended = threading.Event(), threading.Event()

    def write():
        client = connect(sqlite_uri(home)).client
        experiment = store.experiment_id("choice")
        for number in range(40):
            tags = {"bestrun.run": f"other{number}"}
            run = client.create_run(experiment, tags=tags, run_name=f"other{number}").info.run_id
            client.log_param(run, "objective.metric", "val/accuracy")
            client.log_metric(run, "best/accuracy", 0.95 if number % 2 else 0.5)  # unfinished, then finished but worse
            if number % 2 == 0:
                client.set_terminated(run)
            written.set()
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert written.wait(60)
        looked = 0
        while not ended.is_set():
            assert best(store) == "best"
            assert list_runs(store, most=5)[0].best in (0.9, 0.95)
            looked += 1
        assert looked > 0
    finally:
        thread.join(60)
    assert len(list_runs(store, most=100)) == 41


@pytest.mark.slow
def test_best_of_five_thousand_runs(store, add):
    with sqlite3.connect(store.uri.removeprefix("sqlite:///")) as database:
        first = add("run0", accuracy=0.0)
        for table, key in (
            ("runs", "run_uuid"),
            ("tags", "run_uuid"),
            ("params", "run_uuid"),
            ("latest_metrics", "run_uuid"),
        ):
            columns = [row[1] for row in database.execute(f"pragma table_info({table})")]
            rows = database.execute(f"select * from {table} where {key} = ?", (first,)).fetchall()
            for number in range(1, 5000):
                for row in rows:
                    copy = dict(zip(columns, row, strict=True)) | {key: f"{number:032x}"}
                    if table == "runs":
                        copy |= {"start_time": copy["start_time"] + number}
                    if table == "tags" and copy["key"] == "bestrun.run":
                        copy["value"] = f"run{number}"
                    if table == "latest_metrics":
                        copy["value"] = (number * 7919 % 5000) / 5000  # a permutation
                    marks = ", ".join("?" * len(copy))
                    database.execute(f"insert into {table} ({', '.join(copy)}) values ({marks})", [*copy.values()])
    expected = next(number for number in range(5000) if number * 7919 % 5000 == 4999)
    assert best(store) == f"run{expected}"
    assert [row.best for row in list_runs(store, most=3)] == [4999 / 5000, 4998 / 5000, 4997 / 5000]


# ---- R21: the same seed ----


def train_in_a_new_interpreter(home, folder, data, name, hash_seed, threads):
    """Not from the forkserver: whatever an interpreter decides at its start is decided anew."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "BESTRUN_MLRUNS": str(home / "mlruns")}
    words = ["train", *data, *SHORT, GOOD, f"name={name}", f"threads={threads}"]
    return subprocess.Popen(
        [sys.executable, "-m", "bestrun", *words], cwd=folder, env=environment, stdout=subprocess.DEVNULL
    )


def assert_same_run(home, one, two):
    first, second = (load(run_folder(home, name).last) for name in (one, two))
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        np.testing.assert_array_equal(tensor, second.tensors[name], err_msg=name)
    keys = ("step", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "improved")
    lines = [[[line[key] for key in keys] for line in evaluations(run_folder(home, name))] for name in (one, two)]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_same_seed_gives_the_same_tensors_in_a_new_interpreter_elsewhere(bestrun, home, data, tmp_path):
    # At once, so that each disturbs the other's timing; another way to start, another hash seed, another folder
    one = train_in_a_new_interpreter(home, tmp_path / "elsewhere", data, "one", 1, 2)
    assert bestrun("train", *data, *SHORT, GOOD, "name=two", "threads=2").code == 0
    assert one.wait(120) == 0
    assert_same_run(home, "one", "two")


@pytest.mark.slow
def test_one_thread_gives_the_same_tensors_twice(bestrun, home, data):
    for name in ("one", "two"):
        assert bestrun("train", *data, *SHORT, GOOD, f"name={name}", "threads=1").code == 0
        assert read_journal(run_folder(home, name).journal)[0][0]["threads"] == 1
    assert_same_run(home, "one", "two")


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_same_seed_gives_the_same_tensors_however_python_hashes(home, data, tmp_path, threads):
    for hash_seed in range(5):
        name = f"hash{hash_seed}"
        process = train_in_a_new_interpreter(home, tmp_path / name, data, name, hash_seed, threads)
        assert process.wait(120) == 0
    for hash_seed in range(1, 5):
        assert_same_run(home, "hash0", f"hash{hash_seed}")
