"""Hours of a sweep: no trial after them, what runs is saved, and the same line with more of them goes on."""

import json
import os

import pytest

from bestrun.errors import SettingsError
from bestrun.storage.files import read_json
from bestrun.storage.folder import RunFolder
from bestrun.storage.history import History
from bestrun.sweep.space import plan
from support.listener import listening
from support.looks import evaluations
from support.processes import bestrun_command
from support.stores import sqlite_uri


def _by_evaluations(argv):
    """The command, with a clock on which each evaluation of a sweep's runs takes a second."""
    from bestrun.sweep import scheduler

    def count_time(self):
        folders = [self.manifest.folder(run) for run in self.manifest.runs()]
        self.manifest.seconds = float(sum(len(evaluations(folder)) for folder in folders if folder.journal.exists()))

    scheduler.Scheduler.count_time = count_time
    bestrun_command(argv)


@pytest.fixture
def sweep(start_process, home):
    def sweep(*words, target=_by_evaluations, env=None):
        return start_process(target, ("train", "-m", *words), cwd=home, env=env).wait(250)

    return sweep


def manifest(home, name):
    return read_json(home / "mlruns" / "sweeps" / name / "manifest.json")


def states(home, name):
    return [run["state"] for trial in manifest(home, name)["trials"] for run in trial["runs"]]


def folder(home, name):
    return RunFolder(home / "mlruns" / "runs" / name)


def parent_status(home, name):
    from mlflow import MlflowClient

    return MlflowClient(sqlite_uri(home)).get_run(manifest(home, name)["parent_run_id"]).info.status


def hours(seconds):
    return f"sweep.max_hours={seconds / 3600!r}"


def test_a_sweep_ends_with_its_hours_and_the_same_line_with_more_of_them_goes_on(sweep, home, settings):
    """Three trials of four evaluations each, the one at step 0 among them."""
    words = [*settings, "seed=0,1,2", "sweep.name=night"]
    some = sweep(*words, hours(6))
    assert some.code == 0, some.out + some.err
    assert "sweep.max_hours=0.00166667 are over" in some.out and "with sweep.name=night" in some.out
    assert states(home, "night") == ["complete", "interrupted"]
    assert History.read(folder(home, "night-001").journal).stopped["reason"] == "interrupted"
    assert parent_status(home, "night") == "KILLED"
    before = folder(home, "night-001").journal.read_bytes()
    assert sweep(*words, hours(6)).code == 0 and folder(home, "night-001").journal.read_bytes() == before

    whole = sweep(*words, hours(100), "--json")
    assert whole.code == 0 and "are over" not in whole.out + whole.err
    report = json.loads(whole.out)
    assert report["count"] == {"complete": 3} and report["cost"]["steps_run"] == 180
    assert [len(evaluations(folder(home, f"night-00{number}"))) for number in range(3)] == [4, 4, 4]
    assert parent_status(home, "night") == "FINISHED" and os.listdir(home / "mlruns" / "sweeps") == ["night"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [["seed=0,1,2,3", "sweep.workers=2"], ["sweep=study", "sweep.n_trials=4"]])
def test_hours_over_workers_and_studies(sweep, home, settings, words):
    """Four trials of 21 evaluations, a second each."""
    if "sweep=study" in words:
        settings = [word for word in settings if not word.startswith(("model.", "optimizer."))]
        words = [
            *words,
            "optimizer.learning_rate=choice(1e-3,2e-3,3e-3)",
            "model.num_filters=[4,8]",
            "model.fc_size=16",
        ]
        words += ["sweep.pruner=NopPruner", "sweep.sampler=RandomSampler"]
    words = [*settings, *words, "training.max_steps=400", "training.patience_steps=400", "sweep.name=long"]
    for limit in (20, 45, 70):
        result = sweep(*words, hours(limit))
        assert "are over; the same line again" in result.out, result.out + result.err
        assert result.code == (0 if "complete" in states(home, "long") else 1)
        assert set(states(home, "long")) <= {"complete", "interrupted"} and len(states(home, "long")) <= 4
        assert limit <= manifest(home, "long")["seconds"] < limit + 30  # what runs goes on while it is asked to stop
    assert sweep(*words, hours(1000)).code == 0
    assert states(home, "long") == 4 * ["complete"]
    for number in range(4):
        assert [line["step"] for line in evaluations(folder(home, f"long-00{number}"))] == list(range(0, 401, 20))


def test_hours_are_no_part_of_what_a_sweep_is():
    line = ["seed=0,1", "sweep.name=x"]
    assert plan([*line, "sweep.max_hours=8"]).says() == plan(line).says()
    assert plan([*line, "sweep.max_hours=8"]).settings.max_hours == 8.0 and plan(line).settings.max_hours is None


def was_tested(home, name):
    return [event for event in History.read(folder(home, name).journal).events if event["event"] == "tested"]


def test_only_the_winner_of_a_sweep_is_tested_once_nothing_is_left_to_choose(sweep, home, settings):
    words = [*settings, "optimizer.learning_rate=1e-5,5e-3", "training.test_at_end=true", "sweep.name=w", "--json"]
    words = [word for word in words if word != "optimizer.learning_rate=2e-3"]
    with listening() as listener:
        env = {"BESTRUN_NOTIFY": f"http://127.0.0.1:{listener.port}/", "no_proxy": "127.0.0.1"}
        cut = sweep(*words, hours(5), env=env)
    assert listener.bodies == [json.loads(cut.out)], "its runs tell nobody"
    assert cut.code == 0 and json.loads(cut.out)["test"] is None and not was_tested(home, "w-000")
    worked = manifest(home, "w")["seconds"]
    for _ in range(2):
        result = sweep(*words, target=bestrun_command)
        assert result.code == 0, result.out + result.err
        assert manifest(home, "w")["seconds"] > worked, "by the real clock, over all calls"
        worked = manifest(home, "w")["seconds"]
        (line,) = was_tested(home, "w-001")
        report = json.loads(result.out)
        assert not was_tested(home, "w-000") and report["best"]["trial"] == 1
        assert report["test"]["run_name"] == "w-001" and report["test"]["accuracy"] == line["test/accuracy"]
    from mlflow import MlflowClient

    metrics = MlflowClient(sqlite_uri(home)).get_run(report["best"]["runs"][0]["run_id"]).data.metrics
    assert metrics["test/accuracy"] == line["test/accuracy"]


def test_whether_it_is_tested_cannot_be_tried():
    with pytest.raises(SettingsError, match="of a sweep the winner alone is tested"):
        plan(["training.test_at_end=true,false"])
