"""Sweeps: whatever is killed, the same line again completes them; each trial is one run, told to MLflow once.

Real schedulers, real workers, real signals. A scheduler forks its own fork server from the tests' one, which has
TensorFlow imported: 0.1 s instead of 10; two tests start it as a user's does.
"""

import json
import os
import random
import shutil
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bestrun.storage.files import read_json
from bestrun.storage.folder import RunFolder
from bestrun.storage.journal import read_journal
from support.lines import TINY_NETWORK
from support.looks import evaluations, own_until_killed, same_tensors, until
from support.processes import Result, bestrun_command, scheduler_command
from support.proxy import Proxy
from support.stores import assert_record_agrees, sqlite_uri

GRID = ["optimizer.learning_rate=1e-3,2e-3,4e-3"]
STUDY = [
    "sweep=study",
    "sweep.sampler=RandomSampler",
    "sweep.n_trials=3",
    "optimizer.learning_rate=tag(log,interval(1e-4,1e-2))",
    "model.fc_size=choice(16,32)",
    "model.num_filters=[4,8]",
    "sweep.pruner=NopPruner",
]
TRIALS = 3


@pytest.fixture
def data(small_mnist_npz):
    """What all trials share: a small network, an evaluation every 20 of 60 steps."""
    steps = ["training.max_steps=60", "training.evaluate_every_steps=20", "training.patience_steps=60"]
    return ["data=npz", f"data.path={small_mnist_npz}", *steps]


@pytest.fixture
def network(data):
    return [*data, "model.num_filters=[4,8]", "model.fc_size=16", "optimizer.learning_rate=2e-3"]


@pytest.fixture
def tiny(data):
    return [*data, *TINY_NETWORK]


@pytest.fixture
def lines(data):
    """By kind: a command line without its name."""
    small = ["model.num_filters=[4,8]", "model.fc_size=16"]
    return {"grid": [*data, *small, *GRID], "study": [*data, *STUDY]}


# ---- processes ----


@pytest.fixture
def sweep(start_process, home):
    """`sweep(*words) -> Result` of `bestrun train -m`, or `sweep.start(*words) -> Process`."""

    class Sweep:
        def start(self, *words, env=None):
            return start_process(scheduler_command, ("train", "-m", *words), cwd=home, env=env)

        def __call__(self, *words, env=None, timeout=200):
            return self.start(*words, env=env).wait(timeout)

    return Sweep()


@dataclass(frozen=True)
class Told:
    """A finished sweep of four trials called told: its home, the command there, its line, and what that printed."""

    home: Path
    bestrun: Callable[..., Result]
    line: list[str]
    out: str


@pytest.fixture(scope="module")
def told_once(own_home, tiny_npz):
    home, command = own_home()
    network = ["model.filter_sizes=[3,3]", "model.num_filters=[4,4],[8,4]", "model.fc_size=8", "optimizer=adam,sgd"]
    network.append("training.batch_size=16")
    steps = ["training.max_steps=20", "training.evaluate_every_steps=10", "training.patience_steps=20"]
    line = ["train", "-m", "data=npz", f"data.path={tiny_npz}", *network, *steps, "sweep.name=told"]

    def bestrun(*words):
        return command(*words, env={"BESTRUN_MLRUNS": str(home / "mlruns")})

    result = bestrun(*line)
    assert result.code == 0, result.err
    return Told(home, bestrun, line, result.out)


@pytest.fixture
def told(told_once):
    """The same for each test, whatever another did to it."""
    kept = shutil.copytree(told_once.home, told_once.home.with_name("kept"))
    yield told_once
    shutil.rmtree(told_once.home)
    kept.rename(told_once.home)


# ---- what a sweep left ----


def manifest(home, name):
    return read_json(home / "mlruns" / "sweeps" / name / "manifest.json")


def folders(home, name):
    """The folders of its runs, by trial."""
    runs = [run for trial in manifest(home, name).get("trials", []) for run in trial["runs"]]
    return [RunFolder(home / "mlruns" / "runs" / run["name"]) for run in runs]


def evaluated(home, name):
    """Evaluations of all its runs so far."""
    return sum(len(evaluations(folder)) for folder in folders(home, name))


def report(bestrun, name):
    result = bestrun("sweep", name, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def in_mlflow(uri, name):
    """The runs MLflow has of a sweep: the parents, the children."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.\"bestrun.sweep\" = '{name}'")
    parents = [run for run in found if run.data.tags.get("bestrun.role") == "sweep"]
    return parents, [run for run in found if run not in parents]


def assert_complete(home, name, trials, uri=None):
    """Every trial ran to its end as one run, every evaluation is in MLflow once, and all of it hangs together."""
    uri = uri or sqlite_uri(home)
    (parent,), children = in_mlflow(uri, name)
    assert parent.info.status == "FINISHED"
    assert sorted(int(run.data.tags["bestrun.trial"]) for run in children) == list(range(trials))
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert json.loads(parent.data.tags["bestrun.trials"]) == {"complete": trials}
    found = folders(home, name)
    assert len(found) == trials
    for folder in found:
        assert [line["step"] for line in evaluations(folder)] == [0, 20, 40, 60]
        run = assert_record_agrees(uri, folder)
        assert run.info.status == "FINISHED" and run.data.tags["bestrun.stop_reason"] == "max_steps"
    return parent, children


def run_ids(home, name):
    """Run name -> ID, as far as MLflow has given one."""
    return {folder.name: read_json(folder.mirror).get("run_id") for folder in folders(home, name)}


def free(home, name):
    """Whether no process works on a run of this sweep."""
    return not any(folder.is_owned() for folder in folders(home, name))


# ---- killed ----


def moments():
    for kind in ("grid", "study"):
        for number in range(10):
            is_quick = (kind, number) in (("grid", 0), ("study", 2))
            yield pytest.param(kind, number, id=f"{kind}-{number}", marks=[] if is_quick else [pytest.mark.slow])


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("kind", "number"), list(moments()))
def test_a_sweep_whose_scheduler_was_killed_is_completed_by_the_same_line(sweep, home, lines, kind, number):
    # Killed when this many of all evaluations were made, and a little later
    dice = random.Random(f"{kind} {number}")
    share, late = (number % 4 + dice.random()) / 4, dice.uniform(0, 0.3)
    words = [*lines[kind], "sweep.workers=2", "sweep.name=killed"]
    process = sweep.start(*words)
    until(lambda: evaluated(home, "killed") >= share * 4 * TRIALS, process)
    time.sleep(late)
    process.kill()
    assert process.wait().code in (0, -signal.SIGKILL)
    if number % 2:  # else at once, while they still save
        until(lambda: free(home, "killed"), timeout=30)
    known = run_ids(home, "killed")
    again = sweep(*words)
    assert again.code == 0, again.out + again.err
    assert_complete(home, "killed", TRIALS)
    now = run_ids(home, "killed")
    assert {name: run_id or now[name] for name, run_id in known.items()}.items() <= now.items()
    assert free(home, "killed")


@pytest.mark.slow
def test_a_run_that_a_worker_of_the_killed_scheduler_still_saves_is_waited_for(sweep, start_process, home, network):
    words = [*network, "seed=0,1", "sweep.name=saving"]
    process = sweep.start(*words)
    until(lambda: evaluated(home, "saving") >= 5, process)
    process.kill()
    assert process.wait().code == -signal.SIGKILL
    worker = start_process(own_until_killed, folders(home, "saving")[1].path)
    until(lambda: "owned" in worker.out, worker)
    process = sweep.start(*words)
    until(lambda: "1 of them over" in process.out, process)
    time.sleep(1)
    assert process.poll() is None, process.out
    worker.kill()
    result = process.wait()
    assert result.code == 0, result.out + result.err
    assert_complete(home, "saving", 2)


def _die_before_the_parent_is_written_down(argv):
    from bestrun.sweep import scheduler

    original = scheduler.find_or_create

    def find_or_create(*args):
        original(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    scheduler.find_or_create = find_or_create
    bestrun_command(argv)


def test_a_parent_run_is_found_again_by_a_scheduler_that_had_not_written_it_down(start_process, sweep, home, lines):
    words = [*lines["grid"][:-1], "optimizer.learning_rate=1e-3,2e-3", "sweep.name=early"]
    assert start_process(_die_before_the_parent_is_written_down, ("train", "-m", *words), cwd=home).wait().code == -9
    assert manifest(home, "early")["parent_run_id"] is None
    again = sweep(*words)
    assert again.code == 0, again.err
    assert_complete(home, "early", 2)


ASHA = ["sweep.pruner=SuccessiveHalvingPruner", "sweep.pruner.min_resource=20", "sweep.pruner.reduction_factor=2"]
SERIAL = [
    *("sweep=study", "sweep.n_trials=6", "model.num_filters=[4,8]", "model.fc_size=choice(16,32)"),
    *("optimizer.learning_rate=tag(log,interval(1e-5,1e-2))", "sweep.sampler.n_startup_trials=2", *ASHA),
]


def outcome(home, name):
    """Of every trial: what was proposed, how it ended, each figure."""
    figures = []
    for folder in folders(home, name):
        events = read_journal(folder.journal)[0]
        rows = [(line["step"], line["val/accuracy"], line["val/loss"]) for line in evaluations(folder)]
        figures.append((events[-1].get("reason"), rows))
    return [trial["point"] for trial in manifest(home, name)["trials"]], figures


_undisturbed = {}


@pytest.mark.parametrize("number", [pytest.param(number, marks=pytest.mark.slow) for number in range(4)])
def test_a_serial_study_that_was_killed_proposes_and_prunes_as_one_that_was_not(
    sweep, home, data, number, tmp_path_factory
):
    words = [*data, *SERIAL, "sweep.name=serial"]
    if not _undisturbed:
        place = tmp_path_factory.mktemp("undisturbed")
        assert sweep(*words, env={"BESTRUN_MLRUNS": str(place / "mlruns")}).code == 0
        _undisturbed["it"] = outcome(place, "serial")
    points, figures = _undisturbed["it"]
    assert len({json.dumps(point) for point in points}) == 6
    assert {reason for reason, _ in figures} == {"pruned", "max_steps"}, "the pruner did nothing"
    dice = random.Random(number)
    for share in sorted(dice.uniform(0.1, 0.95) for _ in range(1 + number)):
        process = sweep.start(*words)
        until(lambda share=share: evaluated(home, "serial") >= share * sum(len(f) for _, f in figures), process)
        time.sleep(dice.uniform(0, 0.1))
        process.kill()
        assert process.wait().code == -signal.SIGKILL
    again = sweep(*words)
    assert again.code == 0, again.err
    assert outcome(home, "serial") == (points, figures)


# ---- interrupted ----


def _tell_of_loading(argv):
    """The command, which says when it begins to load what its end needs."""
    from bestrun.sweep import scheduler

    scheduler.load_early = lambda: print("loads", flush=True)
    scheduler_command(argv)


def assert_loaded_beside_the_last_trial(out):
    """That is once two trials are over and a place is free, where the last of three runs still."""
    said = [line.split()[0] for line in out.splitlines() if line.startswith(("loads", "trial"))]
    assert said[:3] == ["trial", "trial", "loads"]


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_ctrl_c_leaves_all_runs_saved_and_killed_in_mlflow_and_the_same_line_goes_on(
    sweep, start_process, home, lines, workers
):
    words = [*lines["grid"], "training.max_steps=200", f"sweep.workers={workers}", "sweep.name=stopped"]
    process = sweep.start(*words)
    until(lambda: evaluated(home, "stopped") >= 3 * workers, process)
    process.kill(signal.SIGINT)
    result = process.wait(60)
    assert result.code == 130, result.out + result.err
    assert "the same line again goes on, with sweep.name=stopped" in result.out
    assert "Traceback" not in result.out + result.err
    (parent,), children = in_mlflow(sqlite_uri(home), "stopped")
    assert parent.info.status == "KILLED"
    known = {run.data.tags["bestrun.trial"]: run.info.run_id for run in children}
    assert len(known) == len(children) == workers
    for run in children:
        assert (run.info.status, run.data.tags["bestrun.stop_reason"]) == ("KILLED", "interrupted")
    again = start_process(_tell_of_loading, ("train", "-m", *words), cwd=home).wait(200)
    assert again.code == 0, again.err
    if workers > 1:
        assert_loaded_beside_the_last_trial(again.out)
    (parent,), children = in_mlflow(sqlite_uri(home), "stopped")
    assert parent.info.status == "FINISHED"
    assert known.items() <= {run.data.tags["bestrun.trial"]: run.info.run_id for run in children}.items()
    assert len(children) == TRIALS and {run.info.status for run in children} == {"FINISHED"}


def _signal_while_data_is_read(argv):
    from bestrun.run import start

    original = start.load_data

    def load_data(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    start.load_data = load_data
    bestrun_command(argv)


def test_ctrl_c_before_the_first_step_is_heard_by_an_inline_run(start_process, home, lines):
    words = [*lines["grid"], "training.max_steps=100000", "training.patience_steps=100000", "sweep.name=early"]
    result = start_process(_signal_while_data_is_read, ("train", "-m", *words), cwd=home).wait(60)
    assert result.code == 130, result.err
    (folder,) = folders(home, "early")
    assert read_journal(folder.journal)[0][-1]["reason"] == "interrupted"
    assert len(evaluations(folder)) <= 1


# ---- a store that is not there yet ----


@pytest.mark.slow  # tests/tracking/test_fresh_store.py has the quick ones
@pytest.mark.parametrize("number", range(11))
def test_two_workers_on_a_fresh_store_make_one_parent_and_eight_children(bestrun, home, network, number):
    (home / "mlruns" / "mlflow.db").unlink()
    words = [*network, "seed=range(0,8)", "sweep.workers=2", "sweep.name=fresh"]
    result = bestrun("train", "-m", *words, timeout=250)  # with a fork server of its own, as a user's
    assert result.code == 0, result.out + result.err
    assert "tried again" not in result.out and "failed" not in result.out, result.out
    assert_complete(home, "fresh", 8)


# ---- each trial is an ordinary run ----


@pytest.mark.slow
def test_trial_of_an_inline_sweep_is_bit_identical_to_the_same_settings_run_alone(bestrun, sweep, home, network):
    result = sweep(*network, "optimizer.learning_rate=1e-3,4e-3", "sweep.name=same")
    assert result.code == 0, result.err
    trials = manifest(home, "same")["trials"]
    assert len(trials) == 2
    for trial in trials[1:]:  # the second, which finds what the first left in the process
        (run,) = trial["runs"]
        alone = {"BESTRUN_MLRUNS": str(home / "alone" / "mlruns")}
        words = [*network, *(f"{key}={value}" for key, value in trial["point"].items()), f"name={run['name']}"]
        words.append("pictures=false")  # as in every sweep
        assert bestrun("train", *words, env=alone).code == 0
        here, there = (place / "mlruns" / "runs" / run["name"] for place in (home, home / "alone"))
        assert same_tensors(here / "last.safetensors", there / "last.safetensors")
        assert RunFolder(here).config.read_text() == RunFolder(there).config.read_text()


def test_groups_and_lists_may_be_tried(told, bestrun, data, home):
    trials = manifest(told.home, "told")["trials"]
    for trial, folder in zip(trials, folders(told.home, "told"), strict=True):
        settings = read_journal(folder.journal)[0][0]["settings"]
        assert settings["optimizer"] == trial["point"]["optimizer"]
        assert settings["model.num_filters"].replace(" ", "") == trial["point"]["model.num_filters"]
    assert len({json.dumps(trial["point"]) for trial in trials}) == 4
    refused = bestrun("train", "-m", *data, "threads=1,2", "sweep.name=threads")
    assert refused.code == 2 and "type sweep.backend=local" in refused.err and refused.err.count("\n") == 1
    assert not (home / "mlruns" / "sweeps" / "threads").exists()


@pytest.mark.slow
def test_threads_may_differ_between_the_processes_of_local_workers(sweep, home, network):
    words = [*network, "training.max_steps=20", "threads=1,2", "sweep.backend=local", "sweep.name=threads"]
    assert sweep(*words).code == 0
    assert [read_journal(folder.journal)[0][0]["threads"] for folder in folders(home, "threads")] == [1, 2]


@pytest.mark.slow  # the sweep that goes on after Ctrl-C is the quick one
def test_what_the_end_needs_is_loaded_while_the_last_trial_runs_beside_a_free_place(start_process, home, network):
    words = [*network, "training.max_steps=20", "seed=0,1,2", "sweep.workers=2", "sweep.threads=1"]
    result = start_process(_tell_of_loading, ("train", "-m", *words), cwd=home).wait(200)
    assert result.code == 0, result.err
    assert_loaded_beside_the_last_trial(result.out)


# ---- pruned ----


@pytest.mark.slow
def test_a_pruned_trial_is_killed_keeps_its_best_and_is_no_failure(bestrun, sweep, home, data):
    words = [*data, *SERIAL, "sweep.max_failures=0", "sweep.name=pruned"]
    result = sweep(*words)
    assert result.code == 0, result.out + result.err
    found = report(bestrun, "pruned")
    assert found["count"].keys() == {"complete", "pruned"} and sum(found["count"].values()) == 6
    assert found["cost"]["steps_saved_by_pruning"] > 0
    trial = next(trial for trial in found["trials"] if trial["state"] == "pruned")
    (row,) = trial["runs"]
    folder = RunFolder(home / "mlruns" / "runs" / row["run_name"])
    assert read_journal(folder.journal)[0][-1]["reason"] == "pruned"
    run = assert_record_agrees(sqlite_uri(home), folder)
    assert (run.info.status, run.data.tags["bestrun.stop_reason"]) == ("KILLED", "pruned")
    restored = bestrun("restore", row["run_name"], "--local", "--json")
    assert restored.code == 0, restored.err
    assert json.loads(restored.out)["validation"]["accuracy"] == row["best"]
    again = sweep(*words)
    assert again.code == 0 and ", 6 of them over" in again.out
    assert sum(event["event"] == "resumed" for event in read_journal(folder.journal)[0]) == 0


# ---- failed ----


def test_diverging_trials_are_failed_max_failures_ends_the_sweep_early_and_without_it_the_others_finish(
    bestrun, sweep, home, network
):
    words = [*(word for word in network if "learning_rate" not in word), "optimizer=sgd", "sweep.name=diverges"]
    words.append("optimizer.learning_rate=1e30,1e31,1e-2")
    early = sweep(*words, "sweep.max_failures=1")
    assert early.code == 1 and "more than sweep.max_failures=1 trials failed" in early.out
    assert report(bestrun, "diverges")["count"] == {"failed": 2, "waiting": 1}
    assert in_mlflow(sqlite_uri(home), "diverges")[0][0].info.status == "FAILED"
    result = sweep(*words)
    assert result.code == 0, result.out + result.err
    found = report(bestrun, "diverges")
    assert found["count"] == {"complete": 1, "failed": 2}
    failed = [trial for trial in found["trials"] if trial["state"] == "failed"]
    assert {trial["settings"]["optimizer.learning_rate"] for trial in failed} == {"1e+30", "1e+31"}
    assert all("the loss is not finite" in trial["runs"][0]["error"] for trial in failed)
    (parent,), children = in_mlflow(sqlite_uri(home), "diverges")
    assert parent.info.status == "FINISHED"
    assert sorted(run.info.status for run in children) == ["FAILED", "FAILED", "FINISHED"]


def test_a_trial_that_cannot_begin_is_failed_and_is_not_waited_for(bestrun, sweep, home, tiny):
    words = [*tiny, "training.batch_size=32,5000", "sweep.name=large"]  # more than there are images
    result = sweep(*words)
    assert result.code == 0, result.out + result.err
    found = report(bestrun, "large")
    assert found["count"] == {"complete": 1, "failed": 1}
    assert "more than the 2,000 training images" in found["trials"][-1]["runs"][0]["error"]


def test_a_sweep_of_failures_alone_is_failed(bestrun, sweep, home, tiny):
    assert sweep(*tiny, "training.batch_size=5000,6000", "sweep.name=hopeless").code == 1
    assert report(bestrun, "hopeless")["count"] == {"failed": 2}


@pytest.mark.slow
def test_values_of_a_study_that_do_not_fit_together_are_a_failed_trial(bestrun, sweep, network):
    # Each is allowed beside the first of the others; patience 20 with an evaluation every 40 steps is not
    together = ["training.patience_steps=choice(40,20)", "training.evaluate_every_steps=choice(10,40)"]
    words = [*network, "training.max_steps=40", *together, "sweep=study"]
    words += ["sweep.sampler=RandomSampler", "sweep.n_trials=8", "sweep.name=misfits", "sweep.pruner=NopPruner"]
    result = sweep(*words)
    assert result.code == 0, result.err
    found = report(bestrun, "misfits")
    misfits = [trial for trial in found["trials"] if list(trial["settings"].values()) == ["20", "40"]]
    assert misfits and found["count"] == {"complete": 8 - len(misfits), "failed": len(misfits)}
    assert all("takes at least training.evaluate_every_steps=40" in trial["runs"][0]["error"] for trial in misfits)


def test_a_sampler_without_more_ideas_ends_the_sweep(bestrun, sweep, tiny):
    words = [*tiny, "training.max_steps=20", "training.patience_steps=20", "sweep=study", "seed=choice(0,1)"]
    words += ["sweep.sampler=BruteForceSampler", "sweep.n_trials=5", "sweep.name=brute"]
    result = sweep(*words)
    assert result.code == 0, result.err
    found = report(bestrun, "brute")
    assert sorted(trial["settings"]["seed"] for trial in found["trials"] if trial["state"] == "complete") == ["0", "1"]


def test_a_damaged_journal_fails_its_trial_and_no_other(told):
    journal = folders(told.home, "told")[0].journal
    whole = journal.read_bytes()
    journal.write_bytes(b"not an event\n" + whole)
    found = report(told.bestrun, "told")
    assert found["count"] == {"complete": 3, "failed": 1}
    (failed,) = [trial for trial in found["trials"] if trial["state"] == "failed"]
    assert "line 1 is damaged" in failed["runs"][0]["error"]
    assert told.bestrun("sweep").code == 0
    again = told.bestrun(*told.line)
    assert "Traceback" not in again.err and "line 1 is damaged" in again.out
    journal.write_bytes(whole)
    assert told.bestrun(*told.line).code == 0
    assert report(told.bestrun, "told")["count"] == {"complete": 4}


def test_a_killed_worker_s_run_is_resumed_and_without_retries_by_the_same_line(bestrun, sweep, home, network):
    words = [*network, "training.max_steps=200", "training.patience_steps=200", "seed=0,1", "sweep.workers=2"]
    words += ["sweep.name=shot"]

    def shoot():
        """Kill the worker of trial 0 in its training."""
        (folder, *_) = folders(home, "shot") or [None]
        until(lambda: folder and len(evaluations(folder)) >= 3, process)
        os.kill(read_json(folder.lock)["pid"], signal.SIGKILL)
        return folder

    process = sweep.start(*words, "sweep.retries=0")
    until(lambda: folders(home, "shot"), process)
    folder = shoot()
    result = process.wait()
    assert result.code == 0, result.err
    assert "killed by signal 9" in result.out
    found = report(bestrun, "shot")
    assert found["count"] == {"complete": 1, "failed": 1}
    assert found["trials"][-1]["runs"][0]["error"].endswith("killed by signal 9")
    _, children = in_mlflow(sqlite_uri(home), "shot")
    assert sorted(run.info.status for run in children) == ["FINISHED", "KILLED"]
    run_id = {run.data.tags["bestrun.trial"]: run.info.run_id for run in children}["0"]

    process = sweep.start(*words, "sweep.retries=1")
    known = len(evaluations(folder))
    until(lambda: len(evaluations(folder)) > known, process)
    os.kill(read_json(folder.lock)["pid"], signal.SIGKILL)
    result = process.wait()
    assert result.code == 0, result.out + result.err
    assert "tried again" in result.out
    assert report(bestrun, "shot")["count"] == {"complete": 2}
    assert assert_record_agrees(sqlite_uri(home), folder).info.run_id == run_id
    assert [line["step"] for line in evaluations(folder)] == list(range(0, 201, 20))


# ---- one sweep, one name ----


@pytest.mark.slow
def test_a_name_means_one_sweep_and_one_scheduler(bestrun, sweep, home, data):
    words = [*data, *STUDY[:2], *STUDY[3:], "sweep.name=only"]
    process = sweep.start(*words, "sweep.n_trials=2", "training.max_steps=200")
    until(lambda: evaluated(home, "only") >= 2, process)
    second = bestrun("train", "-m", *words, "sweep.n_trials=2", "training.max_steps=200")
    assert second.code == 2 and second.err.count("\n") == 1
    assert f"sweep only is in use by process {process.pid}" in second.err
    running = report(bestrun, "only")
    assert running["running"] and running["count"]["running"] == 1
    assert "running now" in bestrun("sweep", "only").out
    assert process.wait().code == 0
    assert not report(bestrun, "only")["running"]

    changed = [word.replace("1e-4", "1e-5") for word in words]
    refused = bestrun("train", "-m", *changed, "sweep.n_trials=2", "training.max_steps=200")
    assert refused.code == 2
    assert "has tag(log,interval(1e-4,1e-2)), given tag(log,interval(1e-5,1e-2))" in refused.err
    fewer = bestrun("train", "-m", *words, "sweep.n_trials=1", "training.max_steps=200")
    assert fewer.code == 2 and "sweep only has 2 trials already" in fewer.err and fewer.err.count("\n") == 1

    before = [folder.journal.read_bytes() for folder in folders(home, "only")]
    more = sweep(*words, "sweep.n_trials=3", "training.max_steps=200")
    assert more.code == 0, more.err
    assert [folder.journal.read_bytes() for folder in folders(home, "only")][:2] == before
    assert report(bestrun, "only")["count"] == {"complete": 3}


# ---- what a sweep says ----


def test_the_report_says_what_the_journals_say(told, bestrun):
    assert "no sweeps yet" in bestrun("sweep").out
    home, bestrun = told.home, told.bestrun
    found = report(bestrun, "told")
    assert (found["kind"], found["running"], found["n_trials"], found["count"]) == ("grid", False, 4, {"complete": 4})
    assert found["cost"]["steps_run"] == 4 * 20
    best = {}
    for folder in folders(home, "told"):
        best[folder.name] = max(line["val/accuracy"] for line in evaluations(folder) if line["step"] > 0)
    assert {trial["runs"][0]["run_name"]: trial["value"] for trial in found["trials"]} == best
    assert [trial["value"] for trial in found["trials"]] == sorted(best.values(), reverse=True)
    assert found["best"] == found["trials"][0]
    parents, children = in_mlflow(sqlite_uri(home), "told")
    assert found["parent_run_id"] == parents[0].info.run_id
    assert parents[0].data.tags["bestrun.best_run"] == found["best"]["runs"][0]["run_id"]
    assert parents[0].data.metrics["best/accuracy"] == found["best"]["value"]
    assert {run.info.run_id for run in children} == {trial["runs"][0]["run_id"] for trial in found["trials"]}
    assert bestrun("sweep", "told").out in told.out
    assert bestrun("sweep").out.split() == ["told", "grid", "4", "complete"]
    unknown = bestrun("sweep", "tolt")
    assert unknown.code == 2 and unknown.err.count("\n") == 1 and "there are: told" in unknown.err


@pytest.mark.slow
def test_replicates_and_seeds_are_told_with_mean_spread_and_worst(bestrun, sweep, home, network):
    words = [
        *network,
        "training.max_steps=20",
        "training.batch_size=32,64",
        "sweep.replicates=2",
        "seed=3",
        "sweep.name=twice",
    ]
    assert sweep(*words).code == 0
    found = report(bestrun, "twice")
    assert len(found["trials"]) == len(found["over_seeds"]) == 2
    for trial in found["trials"]:
        values = [run["best"] for run in trial["runs"]]
        assert len(values) == 2 and trial["value"] == pytest.approx(statistics.mean(values))
        (row,) = [row for row in found["over_seeds"] if row["settings"] == trial["settings"]]
        assert row["mean"] == pytest.approx(sum(values) / 2) and row["worst"] == min(values)
        assert row["spread"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    seeds = [read_journal(folder.journal)[0][0]["settings"]["seed"] for folder in folders(home, "twice")]
    assert seeds == ["3", "4"] * 2
    (parent,), children = in_mlflow(sqlite_uri(home), "twice")
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id} and len(children) == 4

    assert sweep("sweep=seeds", *network, "training.max_steps=20", "seed=range(0,3)", "sweep.name=seeds").code == 0
    found = report(bestrun, "seeds")
    values = [trial["value"] for trial in found["trials"]]
    (row,) = found["over_seeds"]
    assert (row["settings"], row["seeds"], row["worst"]) == ({}, 3, min(values))
    assert row["mean"] == pytest.approx(statistics.mean(values))
    assert row["spread"] == pytest.approx(statistics.stdev(values))


# ---- a tracking server that is away ----


@pytest.fixture
def proxy(mlflow_server):
    proxy = Proxy(mlflow_server.port)
    yield proxy
    proxy.close()


@pytest.mark.slow
def test_a_server_that_is_away_at_the_start_begins_nothing_and_keeps_the_name_free(sweep, home, network, proxy):
    words = [*network, "training.max_steps=20", "seed=0,1", "sweep.name=away"]
    proxy.fail("refuse")
    result = sweep(*words, f"tracking.uri={proxy.uri}", env={"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"})
    assert result.code == 1 and result.err.count("error: ") == 1, result.err
    assert folders(home, "away") == [] and not list((home / "mlruns" / "runs").iterdir())
    again = sweep(*words)  # to another store
    assert again.code == 0, again.err


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_is_told_all_by_sync_and_the_same_line(
    bestrun, start_process, sweep, home, network, proxy
):
    words = [*network, "seed=range(0,3)", "sweep.name=died", f"tracking.uri={proxy.uri}"]
    process = start_process(_impatient, ("train", "-m", *words), cwd=home, env={"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"})
    until(lambda: evaluated(home, "died") >= 5, process)
    proxy.fail("refuse")
    result = process.wait()
    assert result.code == 6, result.out + result.err
    assert report(bestrun, "died")["count"] == {"complete": 3}
    proxy.heal()
    assert bestrun("sync", "--all").code == 0
    again = sweep(*words)
    assert again.code == 0, again.out + again.err
    assert_complete(home, "died", 3, proxy.uri)


def _impatient(argv):
    """The command, which waits for MLflow for 2 seconds where 15 are usual."""
    from bestrun.run import carry
    from bestrun.sweep import scheduler

    carry.MIRROR_SECONDS = scheduler.PARENT_SECONDS = 2.0
    bestrun_command(argv)
