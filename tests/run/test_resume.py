"""Killed, interrupted, finished, known to MLflow alone: a run goes on to the very same result.

R2 to R5 of the test plan, changed settings, `from_run`, runs rebuilt from MLflow, dead runs. Kills are real SIGKILLs,
signals are real signals, and what a resumed run left is compared with what an uninterrupted one did.
"""

import functools
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest

from bestrun.settings.compose import read_config
from bestrun.storage.checkpoint import load
from bestrun.storage.files import read_json
from bestrun.storage.folder import RunFolder
from bestrun.storage.journal import read_journal
from support.lines import with_pictures
from support.looks import ELSEWHERE, assert_same_checkpoint, assert_same_tensors, evaluations, figures, wait_for
from support.processes import Command, bestrun_command
from support.stores import assert_record_agrees, mlflow_record, run_folder, sqlite_uri
from support.stubbed import Stubbed, stubbed

NETWORK = ["model.num_filters=[4,8]", "model.fc_size=16", "training.batch_size=16", "training.evaluate_every_steps=20"]
NETWORK += ["tracking.log_model=none"]
STEPS = ["training.max_steps=300", "training.patience_steps=300", "optimizer.learning_rate=2e-3", "pictures=false"]
SHORT = ["training.max_steps=40", "training.patience_steps=40", "optimizer.learning_rate=2e-3", "pictures=false"]
FILES = {"config.yaml", "overrides.yaml", "journal.jsonl", "last.safetensors", "run.log", "lock", "mirror.json"}


@pytest.fixture
def data(small_mnist_npz):
    return ["data=npz", f"data.path={small_mnist_npz}", *NETWORK]


# ---- what a run left, and an uninterrupted one to compare it with ----


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run: its folder, its store, and when its process began and ended (seconds since 1970)."""

    folder: RunFolder
    uri: str
    began: float
    ended: float

    @property
    def evaluations(self):
        return evaluations(self.folder)

    def moment(self, share):
        """This share of its life, as (events its journal had, seconds after the last of them, or after the start).

        So a moment in training is one in training on a busier machine, too.
        """
        when = self.began + share * (self.ended - self.began)
        times = [event["time_ms"] / 1000 for event in read_journal(self.folder.journal)[0]]
        passed = [moment for moment in times if moment <= when]
        return len(passed), when - (passed[-1] if passed else self.began)


def make_reference(own_home, words, command=Command):
    """One run in a home of its own, for all tests of a session."""
    home, bestrun = own_home(command)
    process = bestrun.start("train", *words, "name=uninterrupted", env={"BESTRUN_MLRUNS": str(home / "mlruns")})
    began = time.time()
    result = process.wait()
    assert result.code == 0, result.err
    return Reference(run_folder(home, "uninterrupted"), sqlite_uri(home), began, time.time())


@pytest.fixture(scope="session")
def uninterrupted(own_home, small_mnist_npz):
    """300 steps with an evaluation every 20."""
    words = ["data=npz", f"data.path={small_mnist_npz}", *NETWORK, *STEPS]
    return make_reference(own_home, words)


@pytest.fixture(scope="session")
def stub_uninterrupted(own_home, small_mnist_npz):
    """The same of three arrays in place of a network."""
    words = ["data=npz", f"data.path={small_mnist_npz}", *NETWORK, *STEPS]
    return make_reference(own_home, words, Stubbed)


@pytest.fixture(params=["three arrays", pytest.param("network", marks=pytest.mark.slow)])
def either(request, start_process, home):
    """The command, its run that was not interrupted, and what a process that `start_process` starts begins with."""
    if request.param == "network":
        return Command(start_process, home), request.getfixturevalue("uninterrupted"), []
    return Stubbed(start_process, home), request.getfixturevalue("stub_uninterrupted"), [stubbed]


def assert_equals_uninterrupted(reference, home, name):
    """All that a run leaves: tensors, best, end, every evaluation once in journal and MLflow, and no litter.

    A run with pictures equals one without, but for them.
    """
    folder, uri = run_folder(home, name), sqlite_uri(home)
    events, _ = read_journal(folder.journal)
    assert figures(folder) == figures(reference.folder)
    assert not any(event["event"] == "diverges" for event in events)
    assert_same_checkpoint(load(folder.last), load(reference.folder.last))
    found, expected = read_json(folder.result), read_json(reference.folder.result)
    for key in ("stop_reason", "steps"):
        assert found[key] == expected[key], key
    for key in ("step", "metric", "value", "checkpoint"):
        assert found["best"][key] == expected["best"][key], key
    best = load(folder.path / found["best"]["checkpoint"], sha256=found["best"]["sha256"])
    assert_same_checkpoint(best, load(reference.folder.path / expected["best"]["checkpoint"]))
    left = {path.name for path in folder.path.iterdir()} - {"uncommitted.diff", "environment.txt"}
    is_drawn = read_config(folder.config).pictures
    assert left == FILES | {"result.json", found["best"]["checkpoint"]} | ({"pictures"} if is_drawn else set())

    run = assert_record_agrees(uri, folder)
    _, rows, artifacts = mlflow_record(uri, name)
    other, expected_rows, expected_artifacts = mlflow_record(reference.uri, reference.folder.name)
    for key in [key for key in rows if key == "images_per_second" or key.startswith("system/")]:  # are never the same
        assert [step for step, _ in rows.pop(key)] == [step for step, _ in expected_rows.pop(key)]
    for key in [key for key in rows if key.startswith("class/")]:  # of the best whenever a process of the run ends
        rows[key] = rows[key][-1:]
    assert rows == expected_rows
    for found_artifacts in (artifacts, expected_artifacts):  # of a tree that somebody edits while it is tested
        found_artifacts.pop("code", None)
    assert ("pictures/curves.png" in artifacts.pop("pictures", [])) is is_drawn
    # Which improvements are drawn may differ by one set: a kill may come between the drawing and its journal line
    assert (0 < len(artifacts.pop("images", [])) <= 2 * 4 * 6) is is_drawn
    assert artifacts == expected_artifacts
    assert {**run.data.params, "name": None, "pictures": None} == {**other.data.params, "name": None, "pictures": None}
    assert (run.info.status, run.data.tags["bestrun.stop_reason"]) == ("FINISHED", found["stop_reason"])
    assert found["run_id"] == run.info.run_id
    return run


def _single_steps(argv):
    """The command, as if the machine were so slow that each chunk is one step."""
    from bestrun.training import loop

    loop.CHUNK_SECONDS = 0.0
    bestrun_command(argv)


def test_result_does_not_depend_on_how_steps_are_cut_into_chunks(start_process, home, data, uninterrupted):
    assert start_process(_single_steps, ("train", *data, *STEPS, "name=single"), cwd=home).wait().code == 0
    assert_equals_uninterrupted(uninterrupted, home, "single")


# ---- R2, R3: SIGKILL at a random moment, ten times in one run ----


def phase_of(folder):
    """Where in its life a killed run was, by what it left."""
    if not folder.path.exists():
        return "before its folder"
    if not folder.exists():
        return "before its journal"
    events, _ = read_journal(folder.journal)
    if folder.result.exists():
        return "after its end"
    if events[-1]["event"] == "stopped":
        return "in its end"
    if not folder.last.exists():
        return "before its first checkpoint"
    return f"in training, {len(evaluations(folder))} evaluations"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("number", [3, *(number for number in range(105) if number != 3)])  # the quick one in training
def test_run_killed_at_a_random_moment_and_resumed_equals_uninterrupted_run(
    bestrun, home, data, uninterrupted, number, record_property
):
    # Five moments, one in each fifth of a process's life; the slow ones anywhere, now and then after the end
    dice = random.Random(number)
    share = (number + dice.random()) / 5 if number < 5 else dice.uniform(0, 1.05)
    folder = run_folder(home, "killed")
    events, seconds = uninterrupted.moment(share)
    process = bestrun.start("train", *data, *STEPS, "name=killed")
    wait_for(lambda: len(read_journal(folder.journal)[0]) >= events, process)
    time.sleep(seconds)
    process.kill()
    code = process.wait().code
    assert code in (0, -signal.SIGKILL)
    phase, run_id = phase_of(folder), read_json(folder.mirror).get("run_id")
    record_property("killed", phase)
    print(f"killed at {share:.2f} of the uninterrupted run's time: {phase}")
    if not folder.exists():
        assert bestrun("train", *data, *STEPS, "name=killed").code == 0
    elif folder.result.exists():
        again = bestrun("resume")
        assert again.code == 2 and "no interrupted run" in again.err
    else:
        again = bestrun("resume", *([] if number % 2 else ["killed"]))
        assert again.code == 0, again.err
    run = assert_equals_uninterrupted(uninterrupted, home, "killed")
    assert run_id in (None, run.info.run_id)


@pytest.mark.slow  # at one random moment, see above
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_run_killed_ten_times_equals_uninterrupted_run(bestrun, home, data, uninterrupted, seed):
    dice = random.Random(seed)
    folder = run_folder(home, "often")
    process = bestrun.start("train", *data, *with_pictures(STEPS), "name=often")
    phases = []
    for number in range(10):
        wait_for(folder.exists, process)
        if number % 2:  # in starting: reading, building, tracing
            time.sleep(dice.uniform(0, 1))
        else:  # in training: soon after it has got further
            known = len(evaluations(folder))
            wait_for(lambda known=known: len(evaluations(folder)) > known, process)
            time.sleep(dice.uniform(0, 0.03))
        process.kill()
        assert process.wait().code == -signal.SIGKILL, "it ended before it was killed ten times"
        phases.append(phase_of(folder))
        process = bestrun.start("resume")
    result = process.wait()
    print(*phases, sep="\n")
    assert result.code == 0, result.err
    assert_equals_uninterrupted(uninterrupted, home, "often")
    events, _ = read_journal(folder.journal)
    assert sum(event["event"] == "resumed" for event in events) <= 10


# ---- R4: patience ----

PATIENT = [
    *("training.max_steps=600", "training.evaluate_every_steps=10", "training.patience_steps=40"),
    *("optimizer.learning_rate=2e-2", "pictures=false"),
]


@pytest.fixture(scope="session")
def patient(own_home, small_mnist_npz):
    """By command and seed: a run that really stops because nothing improves."""

    @functools.cache
    def get(command, seed):
        words = ["data=npz", f"data.path={small_mnist_npz}", *NETWORK, *PATIENT, f"seed={seed}"]
        made = make_reference(own_home, words, command)
        assert read_json(made.folder.result)["stop_reason"] == "patience"
        return made

    return get


def _die_while_saving(name, argv):
    """The command; killed in the middle of writing the file of this name."""
    from bestrun.storage import files

    before = files.fault

    def fault(point):
        if point == "F2" and sys._getframe(1).f_locals["path"].name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        before(point)

    files.fault = fault
    bestrun_command(argv)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("command", "seed"),
    [(Stubbed, 0), *(pytest.param(Command, seed, marks=pytest.mark.slow) for seed in (0, 1))],
    ids=["three arrays", "network 0", "network 1"],
)
@pytest.mark.parametrize("moment", ["saving best", "after stop", "patience - 1", "wait 0", "wait 1", "on improvement"])
def test_patience_survives_resume(start_process, home, data, patient, moment, command, seed):
    reference, bestrun = patient(command, seed), command(start_process, home)
    lines = reference.evaluations
    best = max(number for number, line in enumerate(lines) if line["improved"])  # F9 and F10 pass once an evaluation
    assert 0 < best < len(lines) - 3
    fault = {
        "wait 0": f"F10:{best + 1}",
        "wait 1": f"F10:{best + 2}",
        "patience - 1": f"F10:{len(lines) - 1}",
        "on improvement": f"F9:{best + 1}",
        "saving best": "",
        "after stop": "F11",
    }[moment]
    argv = ("train", *data, *PATIENT, f"seed={seed}", "name=patient")
    folder = run_folder(home, "patient")
    if moment == "saving best":
        around = [stubbed] if command is Stubbed else []
        result = start_process(*around, _die_while_saving, lines[best]["checkpoint"], argv, cwd=home).wait()
    else:
        result = bestrun(*argv, env={"BESTRUN_FAULT": fault})
    assert result.code == -signal.SIGKILL
    left = {"wait 0": 1, "wait 1": 2, "on improvement": 1, "saving best": 0}  # lines after the one before the best
    assert len(evaluations(folder)) == (
        best + left[moment] if moment in left else len(lines) - (moment == "patience - 1")
    )
    again = bestrun("resume")
    assert again.code == 0, again.err
    assert_equals_uninterrupted(reference, home, "patient")


def test_the_best_that_the_journal_names_stays_where_a_crash_left_an_older_last(start_process, home, data, patient):
    """And the run is ended there, by an earlier end: it goes back behind its best, whose file is all there is of it."""
    bestrun, lines = Stubbed(start_process, home), patient(Stubbed, 0).evaluations
    best = max(number for number, line in enumerate(lines) if line["improved"])
    argv = ("train", *data, *PATIENT, "seed=0", "name=r")
    assert bestrun(*argv, env={"BESTRUN_FAULT": f"F9:{best + 1}"}).code == -signal.SIGKILL
    assert bestrun("resume", "r", f"training.max_steps={lines[best - 1]['step']}").code == 0
    folder = run_folder(home, "r")
    named = read_json(folder.result)["best"]
    assert named["step"] == lines[best]["step"]
    assert load(folder.inside(named["checkpoint"]), sha256=named["sha256"]).state.step == named["step"]


# ---- R5: SIGINT and SIGTERM ----


def _signal_in(phase, number, times, argv):
    """The command; sends itself a real signal, `times` of them, when it comes to this place."""
    import keras
    import tensorflow as tf

    from bestrun.run import start
    from bestrun.storage import files
    from bestrun.tracking import sender
    from bestrun.training import device, loop

    where, _, nth = phase.partition(":")
    passed = 0

    def fire(condition=True):
        nonlocal passed
        passed += bool(condition)
        if condition and passed == int(nth or 1):
            print(f"SIGNAL {time.time()}", flush=True)
            for _ in range(times):
                os.kill(os.getpid(), number)

    def before(module, name, condition=lambda *args, **_: True):
        original = getattr(module, name)

        def wrapped(*args, **named):
            fire(condition(*args, **named))
            return original(*args, **named)

        setattr(module, name, wrapped)

    if where == "data":
        before(start, "load_data")
    elif where == "device":
        before(device, "prepare", lambda *_, quiet=False: not quiet)  # not the look before there is a folder
    elif where == "network":
        before(loop, "build_model")
    elif where == "trace":
        before(tf.nn, "sparse_softmax_cross_entropy_with_logits")  # called in Python only while TensorFlow traces
    elif where == "apply":
        before(keras.optimizers.Optimizer, "apply")  # the same, later
    elif where == "step":
        before(loop, "learning_rates", lambda first_step, **_: first_step >= 50)
    elif where == "validation":
        before(loop, "figures")
    elif where == "saving":
        before(files, "fault", lambda point: point == "F2" and "last" in sys._getframe(2).f_locals["path"].name)
    else:
        before(sender, "fault", lambda point: point == where)
    bestrun_command(argv)


NAMES = {signal.SIGINT: "SIGINT", signal.SIGTERM: "SIGTERM"}
QUICK = [
    (signal.SIGINT, "device"),
    (signal.SIGTERM, "step"),
    (signal.SIGINT, "validation:3"),
    (signal.SIGTERM, "F11"),
]
PHASES = [
    *("data", "device", "network", "trace", "apply", "step:1", "step:4", "validation:1", "validation:3"),
    *("validation:16", "saving:1", "saving:9", "F6", "F8", "F11"),
]
SLOW = [(number, phase) for number in NAMES for phase in PHASES if (number, phase) not in QUICK]


def end_by_signal(process, phase):
    """Returns how it ended, and how many seconds after the signal."""
    result = process.wait()
    marks = [line for line in result.out.splitlines() if line.startswith("SIGNAL")]
    assert marks, f"it never came to {phase}: {result.out}{result.err}"
    return result, time.time() - float(marks[0].split()[1])


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("number", "phase"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
    ids=lambda value: NAMES.get(value, value),
)
def test_interrupted_run_says_how_to_resume_and_resumes_to_the_same_result(
    bestrun, start_process, home, data, uninterrupted, number, phase
):
    argv = ("train", *data, *STEPS, "name=stopped")
    folder = run_folder(home, "stopped")
    process = start_process(_signal_in, phase, number, 1, argv, cwd=home)
    result, seconds = end_by_signal(process, phase)
    assert seconds < 10
    assert "Traceback" not in result.err
    if phase == "data":  # nothing has begun: SIGTERM ends it as it ends any program, a shell says 143
        assert result.code == 130 if number == signal.SIGINT else result.code in (143, -signal.SIGTERM)
        assert not folder.path.exists()
        assert bestrun(*argv).code == 0
        assert_equals_uninterrupted(uninterrupted, home, "stopped")
        return
    assert result.code == 128 + number
    events, _ = read_journal(folder.journal)
    assert events[-1]["event"] == "stopped"
    run, _, _ = mlflow_record(sqlite_uri(home), "stopped")
    if events[-1]["reason"] == "interrupted":
        assert "bestrun resume stopped" in result.out
        assert (run.info.status, run.data.tags["bestrun.stop_reason"]) == ("KILLED", "interrupted")
        again = bestrun("resume")
        assert again.code == 0, again.err
    else:  # training was over: there is nothing to resume
        assert phase in ("validation:16", "F6", "F8", "F11") and events[-1]["reason"] == "max_steps"
        again = bestrun("resume")
        assert again.code == 2 and "no interrupted run" in again.err
    assert phase != "F11" or events[-1]["reason"] == "max_steps"
    assert_equals_uninterrupted(uninterrupted, home, "stopped")
    assert mlflow_record(sqlite_uri(home), "stopped")[0].info.run_id == run.info.run_id


@pytest.mark.parametrize(
    "phase", ["saving:9", *(pytest.param(p, marks=pytest.mark.slow) for p in ("step", "validation:3"))]
)
def test_a_second_ctrl_c_leaves_at_once_and_breaks_nothing(either, start_process, home, data, phase):
    bestrun, uninterrupted, around = either
    argv = ("train", *data, *STEPS, "name=hurried")
    process = start_process(*around, _signal_in, phase, signal.SIGINT, 2, argv, cwd=home)
    result, seconds = end_by_signal(process, phase)
    assert result.code == 130 and seconds < 1
    folder = run_folder(home, "hurried")
    assert read_journal(folder.journal)[0][-1]["event"] != "stopped"  # it did not wait to say so
    again = bestrun("resume")
    assert again.code == 0, again.err
    assert_equals_uninterrupted(uninterrupted, home, "hurried")


# ---- resuming with changed settings ----


def runs_json(bestrun, name):
    """The row of a run in `bestrun runs --json`."""
    result = bestrun("runs", "--json")
    assert result.code == 0, result.err
    (row,) = [row for row in json.loads(result.out) if row["run_name"] == name]
    return row


def test_a_finished_run_trained_further_equals_one_that_had_the_later_end(either, home, data):
    bestrun, uninterrupted, _ = either
    assert bestrun("train", *data, *STEPS, "training.max_steps=40", "name=longer").code == 0
    first = mlflow_record(sqlite_uri(home), "longer")[0].info.run_id
    refused = bestrun("resume", "longer")
    assert refused.code == 2
    assert "run longer is complete" in refused.err
    assert "bestrun resume longer training.max_steps=80" in refused.err

    result = bestrun("resume", "longer", "training.max_steps=300")
    assert result.code == 0, result.err
    folder = run_folder(home, "longer")
    assert_same_checkpoint(load(folder.last), load(uninterrupted.folder.last))
    assert figures(folder) == figures(uninterrupted.folder)
    run = assert_record_agrees(sqlite_uri(home), folder)
    assert (run.info.run_id, run.info.status) == (first, "FINISHED")
    (resumed,) = [event for event in read_journal(folder.journal)[0] if event["event"] == "resumed"]
    assert resumed["from_step"] == 40 and resumed["changed"] == {"training.max_steps": ["40", "300"]}
    assert json.loads(run.data.tags["bestrun.changed"]) == resumed["changed"]

    # A second change does not make the first forgotten
    assert bestrun("resume", "longer", "training.max_steps=320", "optimizer.learning_rate=1e-3").code == 0
    row = runs_json(bestrun, "longer")
    assert row["changed"] == {"training.max_steps": ["40", "320"], "optimizer.learning_rate": ["0.002", "0.001"]}
    assert (row["state"], row["stop_reason"]) == ("finished", "max_steps")


def test_settings_that_would_make_another_experiment_are_refused_with_both_values(bestrun, home, uninterrupted):
    folder = run_folder(home, "uninterrupted")
    shutil.copytree(uninterrupted.folder.path, folder.path, ignore=ELSEWHERE)
    folder.result.unlink()
    *lines, _ = folder.journal.read_bytes().splitlines(keepends=True)
    folder.journal.write_bytes(b"".join(lines))  # as if it had been killed before it could say that it stopped
    before = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file() and path.name != "lock"}
    for words, old, new in (
        ("model.fc_size=32", "16", "32"),
        ("model.num_filters=[4,4]", "[4, 8]", "[4, 4]"),
        ("seed=1", "0", "1"),
        ("data.validation_size=100", "0.1", "100"),
        ("training.batch_size=64", "16", "64"),
        ("training.evaluate_every_steps=10", "20", "10"),
        ("objective.metric=val/loss", "val/accuracy", "val/loss"),
    ):
        result = bestrun("resume", "uninterrupted", *words.split())
        assert result.code == 2, words
        key = words.partition("=")[0]
        line = next(line for line in result.err.splitlines() if key in line)
        assert f"has {old}" in line and f"given {new}" in line, result.err
        assert "Traceback" not in result.err
    assert before == {
        path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file() and path.name != "lock"
    }


def test_a_live_run_shows_as_running_and_is_not_resumed_by_a_second_process(bestrun, home, data):
    process = bestrun.start("train", *data, *STEPS, "training.max_steps=100000", "name=busy")
    folder = run_folder(home, "busy")
    assert wait_for(lambda: folder.exists() and evaluations(folder) and is_in_mlflow(home), process), process.err
    assert runs_json(bestrun, "busy")["state"] == "running"
    named, unnamed = bestrun("resume", "busy"), bestrun("resume")
    assert named.code == 2 and f"in use by process {process.pid}" in named.err
    assert unnamed.code == 2 and "no interrupted run" in unnamed.err
    assert process.poll() is None
    assert not any(event["event"] == "resumed" for event in read_journal(folder.journal)[0])


# ---- from_run ----


@pytest.fixture
def parent(bestrun, home, data):
    result = bestrun("train", *data, *SHORT, "name=parent")
    assert result.code == 0, result.err
    folder = run_folder(home, "parent")
    best = read_json(folder.result)["best"]
    return load(folder.path / best["checkpoint"], sha256=best["sha256"])


def first_checkpoint(bestrun, home, *argv, env=None):
    """The state of a run right after its evaluation at step 0, where it is killed."""
    result = bestrun("train", *argv, env={"BESTRUN_FAULT": "F10:1", **(env or {})})
    assert result.code == -signal.SIGKILL, result.err
    name = next(word for word in argv if word.startswith("name=")).partition("=")[2]
    return load(run_folder(home, name).last)


@pytest.mark.parametrize("place", [pytest.param("its folder", marks=pytest.mark.slow), "MLflow alone"])
def test_from_run_takes_weights_and_starts_at_step_0(bestrun, home, data, uninterrupted, place):
    if place == "its folder":
        shutil.copytree(uninterrupted.folder.path, run_folder(home, "uninterrupted").path)
    there = {"MLFLOW_TRACKING_URI": uninterrupted.uri}
    best = read_json(uninterrupted.folder.result)["best"]
    parent = load(uninterrupted.folder.path / best["checkpoint"], sha256=best["sha256"])
    weights = {name for name in parent.tensors if name.startswith("model/")}
    words = (*data, *SHORT, "from_run=uninterrupted")
    same = first_checkpoint(bestrun, home, *words, "name=same", env=there)
    assert same.state.step == 0 and same.state.best_step == 0
    assert_same_tensors(same, parent)  # Adam to Adam: its moments, too
    assert same.tensors["optimizer/iteration"] > 0
    other = first_checkpoint(
        bestrun, home, *words, "optimizer=sgd", "optimizer.learning_rate=0.01", "name=other", env=there
    )
    for name in weights:
        np.testing.assert_array_equal(other.tensors[name], parent.tensors[name], err_msg=name)
    rest = {name: tensor for name, tensor in other.tensors.items() if name not in weights}
    assert rest.keys() != parent.tensors.keys() - weights
    assert all(not tensor.any() for tensor in rest.values())


@pytest.mark.sampled(1)
@pytest.mark.parametrize("other", ["network", "image size", "classes"])
def test_from_run_of_another(other, bestrun, home, data, uninterrupted, small_mnist_npz, tmp_path):
    shutil.copytree(uninterrupted.folder.path, run_folder(home, "uninterrupted").path, ignore=ELSEWHERE)
    arrays = dict(np.load(small_mnist_npz))
    for name in arrays:
        if other == "image size" and name.startswith("x"):
            arrays[name] = arrays[name][:, :27]
        if other == "classes" and name.startswith("y"):
            arrays[name] //= 2
    np.savez(tmp_path / "other.npz", **arrays)
    change = "model.fc_size=8" if other == "network" else f"data.path={tmp_path / 'other.npz'}"
    result = bestrun("train", *data, *SHORT, change, "from_run=uninterrupted", "name=child")
    assert result.code == 2 and result.err.startswith("error: from_run=uninterrupted: it"), result.err
    found = {
        "network": "'fc_size': 16",
        "image size": "of 28x28x1 pixels and 10 classes, here 27x28x1 pixels and 10 classes",
        "classes": "of 28x28x1 pixels and 10 classes, here 28x28x1 pixels and 5 classes",
    }
    assert found[other] in result.err and "weights fit only the same" in result.err
    assert not run_folder(home, "child").path.exists()


@pytest.mark.slow
def test_lineage_is_recorded_in_both_runs_and_survives_a_kill_before_anything_was_saved(bestrun, home, data, parent):
    words = (*data, *SHORT, "training.max_steps=20")
    result = bestrun("train", *words, "from_run=best", "name=child")
    assert result.code == 0, result.err
    folder = run_folder(home, "child")
    started = read_journal(folder.journal)[0][0]
    assert (started["parent"], started["parent_step"]) == ("parent", parent.state.step)
    assert started["parent_sha256"] == parent.sha256
    assert [line["step"] for line in evaluations(folder)] == [0, 20]
    child, _, _ = mlflow_record(sqlite_uri(home), "child")
    assert child.data.tags["bestrun.parent_run"] == "parent"  # the run meant then: another is `best` tomorrow
    tags = mlflow_record(sqlite_uri(home), "parent")[0].data.tags
    assert tags["bestrun.children"] == "child"

    assert bestrun("train", *words, "from_run=parent", "name=cut", env={"BESTRUN_FAULT": "F9"}).code == -signal.SIGKILL
    assert not run_folder(home, "cut").last.exists()
    result = bestrun("resume")
    assert result.code == 0, result.err
    assert_same_checkpoint(load(run_folder(home, "cut").last), load(folder.last))


@pytest.mark.slow
def test_a_child_whose_only_state_is_damaged_starts_from_its_parent_again(bestrun, home, data, parent):
    words = (*data, *SHORT, "training.max_steps=20", "from_run=parent")
    assert bestrun("train", *words, "name=child").code == 0
    first_checkpoint(bestrun, home, *words, "name=cut")
    last = run_folder(home, "cut").last
    os.truncate(last, last.stat().st_size // 2)
    result = bestrun("resume", "cut")
    assert result.code == 0, result.err
    assert f"warning: {last}" in result.out
    assert_same_checkpoint(load(last), load(run_folder(home, "child").last))


# ---- a run that only MLflow has ----


def test_run_known_to_mlflow_alone_is_rebuilt_and_ends_as_the_uninterrupted_one(either, home, data):
    bestrun, uninterrupted, _ = either
    lines = uninterrupted.evaluations
    first_worse = next(n for n, line in enumerate(lines) if n > 3 and not line["improved"])
    fault = {"BESTRUN_FAULT": f"F10:{first_worse + 1}"}  # so that evaluations after the best have been recorded
    assert bestrun("train", *data, *STEPS, "name=lost", "tags.who=ada", env=fault).code == -signal.SIGKILL
    assert bestrun("sync").code == 0
    folder = run_folder(home, "lost")
    known, run_id = evaluations(folder), read_json(folder.mirror)["run_id"]
    best = max(line["step"] for line in known if line["improved"])
    assert not known[-1]["improved"]
    shutil.rmtree(folder.path)

    result = bestrun("resume", run_id)
    assert result.code == 0, result.err
    assert "rebuilt from MLflow" in result.err and f"from its best, step {best}" in result.err
    rebuilt = evaluations(folder)[: len(known)]
    for key in ("step", "time_ms", "val/accuracy", "val/loss", "train/loss", "train/accuracy", "improved"):
        assert [line.get(key) for line in rebuilt] == [line.get(key) for line in known], key
    run = assert_record_agrees(sqlite_uri(home), folder)
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    _, rows, _ = mlflow_record(sqlite_uri(home), "lost")
    for key, steps in rows.items():
        assert len({step for step, _ in steps}) == len(steps), f"{key} has a row twice"
    assert_same_checkpoint(load(folder.last), load(uninterrupted.folder.last))
    assert [line[:-1] for line in figures(folder)] == [line[:-1] for line in figures(uninterrupted.folder)]


def _die_uploading(name, number, journal, known, argv):
    """The command; killed when it uploads the file of this name. MLflow gets an earlier best before: training waits
    for that ahead of its evaluation `number`."""
    from bestrun.tracking import sender
    from bestrun.training import loop

    original, passed = loop.figures, 0

    def figures(*args):
        nonlocal passed
        passed += 1
        if passed == number:
            wait_for(lambda: read_json(known).get("acknowledged") == journal.stat().st_size)
        return original(*args)

    def fault(point):
        if point == "F6" and sys._getframe(1).f_locals["best"]["checkpoint"] == name:
            os.kill(os.getpid(), signal.SIGKILL)

    loop.figures, sender.fault = figures, fault
    bestrun_command(argv)


@pytest.mark.slow
def test_a_best_that_mlflow_was_told_of_but_never_got_is_made_again(bestrun, start_process, home, data, uninterrupted):
    # Killed in the upload of the very best: the figures have arrived, the file has not. Then the machine is lost.
    lines = uninterrupted.evaluations
    number = max(number for number, line in enumerate(lines) if line["improved"])
    folder, argv = run_folder(home, "early"), ("train", *data, *STEPS, "name=early")
    process = start_process(
        _die_uploading, lines[number]["checkpoint"], number + 1, folder.journal, folder.mirror, argv, cwd=home
    )
    assert process.wait().code == -signal.SIGKILL
    run, rows, _ = mlflow_record(sqlite_uri(home), "early")
    told = max(step for step, _ in rows["best/step"])
    assert told == lines[number]["step"]
    assert run.data.tags["bestrun.best_checkpoint"] != f"checkpoints/best-{told}.safetensors"
    shutil.rmtree(folder.path)
    result = bestrun("resume", "early")
    assert result.code == 0, result.err
    run = assert_record_agrees_once(sqlite_uri(home), folder)
    assert run.info.status == "FINISHED"
    assert_same_checkpoint(load(folder.last), load(uninterrupted.folder.last))
    best = read_json(folder.result)["best"]
    assert best["step"] == read_json(uninterrupted.folder.result)["best"]["step"]
    load(folder.path / best["checkpoint"], sha256=best["sha256"])


def assert_record_agrees_once(uri, folder):
    """As `assert_record_agrees`, where the line of a lost best stands twice in the journal."""
    run, rows, artifacts = mlflow_record(uri, folder.name)
    by_step = {line["step"]: line for line in evaluations(folder)}
    for key in ("val/accuracy", "val/loss", "train/accuracy", "train/loss"):
        assert rows[key] == [(step, by_step[step][key]) for step in sorted(by_step) if by_step[step][key] is not None]
    best = [line for line in by_step.values() if line["improved"]][-1]
    assert artifacts["checkpoints"] == [f"checkpoints/{best['checkpoint']}"]
    assert run.data.tags["bestrun.best_sha256"] == best["sha256"]
    return run


# ---- dead runs, and sync ----


def is_in_mlflow(home):
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as database:
        return database.execute("select count(*) from runs").fetchone()[0] > 0


def test_a_dead_run_shows_as_interrupted_sync_says_so_to_mlflow_and_it_resumes(bestrun, home, data, uninterrupted):
    process = bestrun.start("train", *data, *with_pictures(STEPS), "name=dead")
    folder = run_folder(home, "dead")
    assert wait_for(lambda: is_in_mlflow(home) and b'"evaluation"' in folder.journal.read_bytes(), process), process.err
    process.kill()
    assert process.wait().code == -signal.SIGKILL, "it ended before it was killed"
    assert mlflow_record(sqlite_uri(home), "dead")[0].info.status == "RUNNING"
    assert runs_json(bestrun, "dead")["state"] == "interrupted"
    assert "interrupted" in bestrun("runs").out

    report = bestrun("sync")
    assert report.code == 0 and "was dead: marked as interrupted" in report.out
    run, rows, _ = mlflow_record(sqlite_uri(home), "dead")
    assert (run.info.status, run.data.tags["bestrun.stop_reason"]) == ("KILLED", "interrupted")
    assert runs_json(bestrun, "dead")["state"] == "interrupted"
    journal = folder.journal.read_bytes()
    report = bestrun("sync", "dead", "--json")
    (again,) = json.loads(report.out)
    assert report.code == 0 and (again["sent"], again["state"], again["error"]) == (0, "complete", None)
    assert folder.journal.read_bytes() == journal and mlflow_record(sqlite_uri(home), "dead")[1] == rows

    assert bestrun("resume").code == 0
    assert_equals_uninterrupted(uninterrupted, home, "dead")
    assert runs_json(bestrun, "dead")["state"] == "finished"
