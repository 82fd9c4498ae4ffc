"""The parent run of a sweep whose scheduler was killed: `bestrun sync` closes it, the same line opens it again."""

import json
import shutil
import signal
import time

import pytest

from bestrun.storage.files import read_json, write_json
from bestrun.storage.journal import read_journal
from support.lines import TINY_NETWORK
from support.looks import own_until_killed, until
from support.proxy import Proxy
from support.stores import sqlite_uri

WORDS = ["sweep.name=s", "seed=0,1"]


@pytest.fixture
def long(settings):
    """Trials of which one takes some seconds."""
    longer = [
        word.replace("max_steps=60", "max_steps=600").replace("patience_steps=60", "patience_steps=600")
        for word in settings
    ]
    return [word.replace("every_steps=20", "every_steps=5") for word in longer]


def manifest_path(home):
    return home / "mlruns" / "sweeps" / "s" / "manifest.json"


def parent_of(home, uri=None):
    from mlflow import MlflowClient

    client = MlflowClient(uri or sqlite_uri(home))
    return client.get_run(read_json(manifest_path(home))["parent_run_id"])


def lines_of(home):
    found = []
    for path in sorted((home / "mlruns" / "runs").glob("s-*")):
        found += read_journal(path / "journal.jsonl")[0]
    return found


def synced(bestrun, *words, code=0):
    result = bestrun("sync", *words)
    assert result.code == code, result.out + result.err
    return result.out


def kill_in_the_middle(bestrun, words, least=3):
    process = bestrun.start(*words)
    until(lambda: sum(line["event"] == "evaluation" for line in lines_of(bestrun.home)) >= least, process)
    process.kill()
    assert process.wait().code == -signal.SIGKILL


def test_the_parent_of_a_killed_sweep_is_closed_by_sync_and_open_again_when_it_goes_on(bestrun, home, long):
    words = ["train", "-m", *long, *WORDS]
    kill_in_the_middle(bestrun, words)
    assert parent_of(home).info.status == "RUNNING"
    assert f"{'s':<24} {'sweep was dead: KILLED':<32}" in synced(bestrun)
    parent = parent_of(home)
    assert parent.info.status == "KILLED"
    assert json.loads(parent.data.tags["bestrun.trials"]) == {"interrupted": 1, "waiting": 1}
    assert parent.info.end_time == max(line["time_ms"] for line in lines_of(home) if line["event"] == "evaluation")
    assert "sweep was dead" not in synced(bestrun)  # once

    process = bestrun.start(*words)
    until(lambda: parent_of(home).info.status == "RUNNING", process)
    process.kill()
    process.wait()
    assert "sweep was dead: KILLED" in synced(bestrun)


@pytest.mark.slow
def test_a_sweep_that_is_at_work_is_left_alone_as_are_its_workers_after_it(bestrun, home, start_process, long):
    process = bestrun.start("train", "-m", *long, *WORDS)
    until(lambda: len(lines_of(home)) > 3, process)
    assert "sweep was dead" not in synced(bestrun)
    assert parent_of(home).info.status == "RUNNING" and process.poll() is None
    process.kill()
    process.wait()
    worker = start_process(own_until_killed, home / "mlruns" / "runs" / "s-000")  # it saves still
    until(lambda: "owned" in worker.out, worker)
    assert "sweep was dead" not in synced(bestrun)
    worker.kill()
    worker.wait()
    assert "sweep was dead: KILLED" in synced(bestrun)


@pytest.fixture
def complete(bestrun, home, settings):
    """A sweep that has ended, and the function that makes of it one that was killed just before."""
    result = bestrun("train", "-m", *settings, *TINY_NETWORK, *WORDS)
    assert result.code == 0, result.err
    assert read_json(manifest_path(home))["closed"] == read_json(manifest_path(home))["ended"] == "FINISHED"

    def as_if_killed(**changes):
        from mlflow import MlflowClient

        run_id = parent_of(home).info.run_id
        MlflowClient(sqlite_uri(home)).update_run(run_id, status="RUNNING")
        shutil.rmtree(home / "mlruns" / "artifacts" / "npz" / run_id)
        values = read_json(manifest_path(home)) | {"closed": None, "ended": None} | changes
        write_json(manifest_path(home), values)

    return as_if_killed


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "FINISHED"),
        ({"n_trials": 3}, "KILLED"),
        ({"wants_finals": True}, "KILLED"),  # none of which had begun
        ({"ended": "FAILED"}, "FAILED"),  # it said so itself: given up
    ],
)
def test_what_a_dead_sweep_is_in_mlflow_follows_from_its_trials(bestrun, home, complete, changes, status):
    complete(**changes)
    out = synced(bestrun)
    assert f"sweep was dead: {status}" in out
    parent = parent_of(home)
    assert parent.info.status == status
    pictures = home / "mlruns" / "artifacts" / "npz" / parent.info.run_id / "artifacts" / "pictures"
    assert pictures.is_dir() == (status == "FINISHED")
    assert read_json(manifest_path(home))["closed"] == status


def test_a_copied_folder_of_a_sweep_closes_nothing_and_goes_nowhere(bestrun, home, complete, settings, start_process):
    """Two folders hold one sweep: the parent run belongs to the scheduler that works in the original."""
    complete()
    sweeps = home / "mlruns" / "sweeps"
    shutil.copytree(sweeps / "s", sweeps / "again")
    scheduler = start_process(own_until_killed, sweeps / "s")
    until(lambda: "owned" in scheduler.out, scheduler)
    assert "sweep was dead" not in synced(bestrun)
    assert parent_of(home).info.status == "RUNNING"
    line = bestrun("train", "-m", *settings, *TINY_NETWORK, "sweep.name=again", "seed=0,1")
    moved = bestrun("move", "--sweep", "again", "--to", "elsewhere/mlruns", "--yes")
    for result in (line, moved):
        assert (result.code, result.out) == (2, "") and result.err.count("\n") == 1
        assert f"sweep again: {sweeps / 'again'} is a copy of sweep s" in result.err and "sweep.name=s" in result.err
    scheduler.kill()
    scheduler.wait()
    assert synced(bestrun).count("sweep was dead: FINISHED") == 1


def test_a_sweep_whose_folder_was_renamed_goes_on_and_is_asked_for_by_both_names(bestrun, home, complete, settings):
    sweeps, values = home / "mlruns" / "sweeps", read_json(manifest_path(home))
    write_json(manifest_path(home), values | {"trials": values["trials"][:1]})  # the second one had not begun
    shutil.rmtree(home / "mlruns" / "runs" / "s-001")
    (sweeps / "s").rename(sweeps / "n")
    again = bestrun("train", "-m", *settings, *TINY_NETWORK, "sweep.name=n", "seed=0,1", "--json")
    assert again.code == 0 and json.loads(again.out)["count"] == {"complete": 2}, again.err
    for name in ("s", "n"):
        listed = bestrun("runs", "--sweep", name, "--json")
        assert {run["run_name"] for run in json.loads(listed.out)} == {"s-000", "s-001"}


@pytest.mark.slow
def test_a_manifest_of_an_older_version_is_read_and_its_closed_parent_stays(bestrun, home, complete):
    values = read_json(manifest_path(home))
    write_json(
        manifest_path(home),
        {key: value for key, value in values.items() if key not in ("closed", "ended", "wants_finals")},
    )
    before = parent_of(home).info
    assert "sweep was dead" not in synced(bestrun)
    assert vars(parent_of(home).info) == vars(before)


@pytest.mark.slow
def test_the_sweep_of_another_home_is_not_closed_from_a_copy(bestrun, home, long, mlflow_server, tmp_path):
    uri = f"tracking.uri={mlflow_server.uri}"
    kill_in_the_middle(bestrun, ["train", "-m", *long, *WORDS, uri])
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    result = bestrun("sync", cwd=copy, env={"BESTRUN_MLRUNS": str(copy / "mlruns")})
    assert "sweep was dead" not in result.out
    assert parent_of(home, mlflow_server.uri).info.status == "RUNNING"
    assert "sweep was dead: KILLED" in synced(bestrun)
    assert parent_of(home, mlflow_server.uri).info.status == "KILLED"


@pytest.mark.slow
def test_where_mlflow_is_away_the_next_sync_closes_it(bestrun, home, long, mlflow_server):
    proxy = Proxy(mlflow_server.port)
    try:
        kill_in_the_middle(bestrun, ["train", "-m", *long, *WORDS, f"tracking.uri={proxy.uri}"])
        proxy.fail("503")
        time.sleep(0.1)
        out = synced(bestrun, code=6)
        assert any(line.startswith("s ") and "behind" in line for line in out.splitlines())
        proxy.heal()
        assert "sweep was dead: KILLED" in synced(bestrun)
        assert parent_of(home, mlflow_server.uri).info.status == "KILLED"
    finally:
        proxy.close()
