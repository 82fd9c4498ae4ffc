"""tracking.mirror_last_minutes: a run whose machine is gone goes on elsewhere from its newest state, not its best."""

import contextlib
import os
import shutil
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bestrun.errors import SettingsError
from bestrun.settings.compose import compose
from bestrun.storage.checkpoint import encode, load
from bestrun.storage.files import read_json
from bestrun.storage.folder import RunFolder
from bestrun.storage.journal import read_journal
from bestrun.tracking import last as module
from bestrun.tracking.last import LastMirror
from support.looks import evaluations, figures, same_tensors, until
from support.proxy import Proxy
from support.stores import make_home, run_folder

LAST = "checkpoints/last.safetensors"


@pytest.fixture
def uri(tmp_path, ready_made_store):
    """A store that no home's end takes along."""
    (tmp_path / "store").mkdir()
    shutil.copyfile(ready_made_store, tmp_path / "store" / "mlflow.db")
    return f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"


@pytest.fixture
def line(settings, uri):
    """A run that would last long, and learns so little that it has no better best than its first."""
    left_out = ("max_steps", "patience_steps", "learning_rate")
    kept = [word for word in settings if not any(name in word for name in left_out)]
    steps = ["training.max_steps=100000", "training.patience_steps=100000", "optimizer.learning_rate=1e-7"]
    return ["train", *kept, *steps, "threads=1", "name=r", f"tracking.uri={uri}"]


@pytest.fixture
def elsewhere(tmp_path, ready_made_store):
    """The environment of another machine: a home of its own, without the run's folder."""
    return {"BESTRUN_MLRUNS": str(make_home(tmp_path / "elsewhere", ready_made_store) / "mlruns")}


def in_mlflow(uri):
    """The run as MLflow has it, and its newest state there: None, or the path of the file."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(ids, "tags.\"bestrun.run\" = 'r'")
    path = Path(run.info.artifact_uri.removeprefix("file://")) / LAST
    return run, path if path.exists() else None


def mirrored_step(uri):
    """The step of the state that MLflow has and names, 0 without one."""
    run, path = in_mlflow(uri)
    return load(path).state.step if path and "bestrun.last_sha256" in run.data.tags else 0


def begun(home):
    folder = run_folder(home, "r")
    return folder.exists() and read_json(folder.mirror).get("run_id")


def resumed(folder):
    return [event for event in read_journal(folder.journal)[0] if event["event"] == "resumed"]


def go_on(bestrun, elsewhere, uri, last_step, *words):
    """Resume the run on the other machine to this step; returns its folder there."""
    end = [f"training.max_steps={last_step}", *words]
    result = bestrun("resume", "r", "--tracking-uri", uri, *end, env=elsewhere)
    assert result.code == 0, result.out + result.err
    return RunFolder(Path(elsewhere["BESTRUN_MLRUNS"]) / "runs" / "r"), result


def assert_equals_one_go(bestrun, line, folder, last_step):
    """The run that went on is the one that was never broken off, to the bit."""
    words = [word for word in line if not word.startswith(("name=", "tracking.", "training.max_steps="))]
    result = bestrun(*words, "name=whole", f"training.max_steps={last_step}")
    assert result.code == 0, result.err
    whole = run_folder(bestrun.home, "whole")
    assert same_tensors(folder.last, whole.last)
    assert figures(folder) == figures(whole)


def stop(process, home, least):
    """SIGTERM after so many evaluations; returns the exit code and the step of the state that was saved."""
    until(lambda: len(evaluations(run_folder(home, "r"))) >= least, process)
    process.kill(signal.SIGTERM)
    return process.wait().code, load(run_folder(home, "r").last).state.step


def test_a_run_that_was_stopped_goes_on_elsewhere_from_its_last_step_to_the_bit(bestrun, line, uri, elsewhere):
    # SIGTERM, as a machine that is taken away is told beforehand
    code, step = stop(bestrun.start(*line, "tracking.mirror_last_minutes=1000"), bestrun.home, 5)
    assert code == 143
    best = evaluations(run_folder(bestrun.home, "r"))[-1]
    run, path = in_mlflow(uri)
    assert load(path, sha256=run.data.tags["bestrun.last_sha256"]).state.step == step and not best["improved"]
    shutil.rmtree(bestrun.home / "mlruns" / "runs" / "r")
    last_step = (step // 20 + 3) * 20
    folder, result = go_on(bestrun, elsewhere, uri, last_step)
    assert f"it goes on from its newest state, step {step}" in result.err
    assert [event["at_step"] for event in resumed(folder)] == [step]
    assert_equals_one_go(bestrun, line, folder, last_step)
    run, path = in_mlflow(uri)
    assert path is None and "bestrun.last_sha256" not in run.data.tags  # it is complete


@pytest.mark.parametrize("last_minutes", ["-1", "much", "10001"])
def test_minutes_that_are_none_are_refused_in_one_line(last_minutes):
    with pytest.raises(SettingsError, match="takes a number from 0 to 10000") as refused:
        compose([f"tracking.mirror_last_minutes={last_minutes}"])
    assert len(str(refused.value).splitlines()) == 1


def test_by_default_nothing_of_it_is_in_mlflow(bestrun, line, uri):
    process = bestrun.start(*line)
    until(lambda: len(evaluations(run_folder(bestrun.home, "r"))) >= 3, process)
    process.kill(signal.SIGTERM)
    assert process.wait().code == 143
    run, path = in_mlflow(uri)
    assert path is None and "bestrun.last_sha256" not in run.data.tags


# ---- one at a time ----


class Asked:
    """What LastMirror asks of a Sender."""

    def __init__(self, folder):
        self.folder, self.uri, self.run_id = folder, "sqlite:///nowhere", "0"
        self.has = True

    def has_best(self):
        return self.has

    def clear_torn_uploads(self):
        pass


@pytest.fixture
def sender(tmp_path, monkeypatch):
    """Of a run folder; what sends is a script that `sender.script` says."""
    found = Asked(RunFolder(tmp_path / "r"))
    found.folder.path.mkdir()
    found.folder.last.write_bytes(b"old")
    program = tmp_path / "python"
    program.touch(0o755)
    found.script = lambda text: program.write_text(f"#!/bin/sh\n{text}\n")
    monkeypatch.setattr(module.sys, "executable", str(program))
    monkeypatch.setattr(module, "START_SECONDS", -5.0)  # and five that each upload has
    return found


def ended(mirror):
    until(lambda: mirror._process is None or mirror._process.poll() is not None, timeout=20)


def test_one_is_under_way_at_a_time_it_is_ended_when_its_turn_is_over_and_the_newest_goes_next(sender, tmp_path):
    sender.script("exec sleep 60")
    mirror = LastMirror(sender, 0.4 / 60)
    assert not mirror.hold()  # the first time, too, comes after so many minutes
    time.sleep(0.45)
    assert mirror.hold()
    began = time.monotonic()
    mirror.begin()
    assert time.monotonic() - began < 0.2
    sender.folder.last.unlink()
    sender.folder.last.write_bytes(b"new")
    process = mirror._process
    assert not mirror.hold() and process.poll() is None
    time.sleep(0.45)
    sender.script(f"cat > /dev/null; cp {sender.folder.path}/upload-last/last.safetensors {tmp_path}/seen")
    assert mirror.hold()  # the turn is over; what it had not sent is of no use any more
    assert process.poll() == -signal.SIGKILL
    mirror.begin()
    mirror._process.stdin.close()
    ended(mirror)
    assert (tmp_path / "seen").read_bytes() == b"new"
    mirror.end()


def test_nothing_is_sent_twice_and_nothing_before_its_best_is_there(sender):
    sender.script("read line; echo '{\"error\": null}'")
    mirror = LastMirror(sender, 0.01 / 60)
    time.sleep(0.05)
    sender.has = False
    assert mirror.hold()
    mirror.begin()
    assert mirror._process is None
    sender.has = True
    assert mirror.hold()  # it is due still
    mirror.begin()
    ended(mirror)
    time.sleep(0.05)
    assert not mirror.hold() and not mirror.hold()
    assert not (sender.folder.path / "upload-last").exists()


def test_what_is_refused_for_good_is_told_once_and_not_tried_again(sender, caplog):
    sender.script('read line; echo \'{"error": "too large", "is_permanent": true}\'')
    mirror = LastMirror(sender, 0.01 / 60)
    time.sleep(0.05)
    assert mirror.hold()
    mirror.begin()
    ended(mirror)
    time.sleep(0.05)
    assert not mirror.hold() and not mirror.hold()
    assert [record.getMessage() for record in caplog.records] == [
        "MLflow lacks the newest state, training goes on: too large"
    ]


def test_the_end_of_a_run_ends_what_is_under_way(sender):
    sender.script("exec sleep 60")
    mirror = LastMirror(sender, 0.01 / 60)
    time.sleep(0.05)
    assert mirror.hold()
    mirror.begin()
    process = mirror._process
    mirror.end()
    assert process.poll() == -signal.SIGKILL and not mirror.hold()
    assert os.listdir(sender.folder.path) == ["last.safetensors"]


# ---- kill -9 ----


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_that_was_killed_goes_on_elsewhere_from_what_was_mirrored_to_the_bit(bestrun, line, uri, elsewhere):
    process = bestrun.start(*line, "tracking.mirror_last_minutes=0.02")
    until(lambda: begun(bestrun.home), process)
    until(lambda: mirrored_step(uri) > 20, process, 120)
    first = mirrored_step(uri)
    until(lambda: mirrored_step(uri) > first, process, 120)  # replaced
    process.kill()
    process.wait()
    time.sleep(1)
    step = mirrored_step(uri)
    shutil.rmtree(bestrun.home / "mlruns" / "runs" / "r")
    last_step = (step // 20 + 3) * 20
    last_step = max(last_step, max(line["step"] for line in _rows(uri)) + 20)
    folder, result = go_on(bestrun, elsewhere, uri, last_step)
    assert [event["at_step"] for event in resumed(folder)] == [step], result.err
    assert_equals_one_go(bestrun, line, folder, last_step)
    assert in_mlflow(uri)[1] is None


def _rows(uri):
    from mlflow import MlflowClient

    run, _ = in_mlflow(uri)
    return [{"step": row.step} for row in MlflowClient(uri).get_metric_history(run.info.run_id, "val/accuracy")]


@pytest.mark.slow
def test_a_file_that_is_newer_than_its_tag_is_taken_as_it_proves_itself(bestrun, home, line, uri, elsewhere):
    code, first = stop(bestrun.start(*line, "tracking.mirror_last_minutes=1000"), home, 5)
    assert code == 143 and mirrored_step(uri) == first
    killed = bestrun.start("resume", "r", env={"BESTRUN_FAULT": "F12"})  # between the upload and its tag
    code, second = stop(killed, home, first // 20 + 4)
    assert code == -signal.SIGKILL and second > first
    run, path = in_mlflow(uri)
    assert load(path).state.step == second and load(path).sha256 != run.data.tags["bestrun.last_sha256"]
    shutil.rmtree(home / "mlruns" / "runs" / "r")
    last_step = (second // 20 + 3) * 20
    folder, _ = go_on(bestrun, elsewhere, uri, last_step)
    assert resumed(folder)[-1]["at_step"] == second
    assert_equals_one_go(bestrun, line, folder, last_step)


@pytest.mark.slow
def test_sync_sends_the_newest_state_of_a_dead_run(bestrun, line, uri):
    process = bestrun.start(*line, "tracking.mirror_last_minutes=1000")
    until(lambda: len(evaluations(run_folder(bestrun.home, "r"))) >= 5, process)
    process.kill()
    process.wait()
    assert bestrun("sync", "r").code == 0
    step = load(run_folder(bestrun.home, "r").last).state.step
    assert mirrored_step(uri) == step
    assert bestrun("resume", "r", f"training.max_steps={(step // 20 + 2) * 20}").code == 0
    assert in_mlflow(uri)[1] is None


# ---- what is not taken ----


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["damaged", "gone", "of another run", "no evaluation", "another best"])
def test_what_does_not_hold_together_is_not_used_and_the_best_is(bestrun, home, line, uri, elsewhere, fault):
    code, step = stop(bestrun.start(*line, "tracking.mirror_last_minutes=1000"), home, 5)
    assert code == 143
    run, path = in_mlflow(uri)
    if fault == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
    elif fault == "gone":
        path.unlink()
    elif fault == "of another run":
        assert bestrun(*line, "name=other", "training.max_steps=40").code == 0
        shutil.copyfile(run_folder(home, "other").last, path)
    elif fault == "no evaluation":
        with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
            database.execute("delete from metrics where step = ?", (step // 20 * 20,))
            database.commit()
    else:
        found = load(path)
        stamp = {name: getattr(found, name) for name in ("run_name", "config_digest", "data_digest")}
        path.write_bytes(encode(found.tensors, replace(found.state, best_step=step // 20 * 20), **stamp))
    shutil.rmtree(home / "mlruns" / "runs" / "r")
    folder, result = go_on(bestrun, elsewhere, uri, (step // 20 + 3) * 20)
    assert f"it goes on from its best, step {run.data.metrics['best/step']:.0f}" in result.err
    assert resumed(folder)[0]["at_step"] == run.data.metrics["best/step"]
    assert_equals_one_go(bestrun, line, folder, (step // 20 + 3) * 20)


# ---- a slow link ----


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_over_a_slow_link_metrics_are_not_held_up_and_the_end_is_not_either(bestrun, line, uri, mlflow_server):
    """A network of some megabytes over 100 kB/s: its upload takes longer than the run."""
    from mlflow import MlflowClient

    others = ("fc_size", "tracking.uri", "learning_rate")
    large = [word for word in line if not any(name in word for name in others)]
    proxy = Proxy(mlflow_server.port)
    try:
        words = [*large, "model.fc_size=1024", "optimizer.learning_rate=1e-12", f"tracking.uri={proxy.uri}"]
        process = bestrun.start(*words, "tracking.mirror_last_minutes=0.02")
        folder = run_folder(bestrun.home, "r")
        until(lambda: any("checkpoints/best-20" in request for request, _ in proxy.seen), process)
        proxy.bytes_a_second = 100_000
        until(lambda: (folder.path / "upload-last").exists(), process, 60)
        time.sleep(6)  # its upload is under way
        run_id, client = read_json(folder.mirror)["run_id"], MlflowClient(mlflow_server.uri)
        for _ in range(3):
            step = evaluations(folder)[-1]["step"]
            began = time.monotonic()
            until(lambda step=step: client.get_metric_history(run_id, "val/accuracy")[-1].step >= step, process, 20)
            assert time.monotonic() - began < 10
        assert (folder.path / "upload-last").exists()
        assert not any(item.path == LAST for item in client.list_artifacts(run_id, "checkpoints"))
        process.kill(signal.SIGTERM)
        assert process.wait(40).code == 143  # it does not wait for the rest of it
        proxy.bytes_a_second = None
        assert bestrun("sync", "r").code == 0  # which this sends
        sha256 = client.get_run(run_id).data.tags["bestrun.last_sha256"]
        path = client.download_artifacts(run_id, LAST)
        assert load(Path(path), sha256=sha256).state.step == load(folder.last).state.step
    finally:
        process.end()
        proxy.close()
