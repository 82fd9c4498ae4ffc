"""The ground the other tests stand on."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest


def report() -> None:
    print(Path.cwd().name, os.environ.get("COLOUR"), os.environ.get("HOME"))
    print("tensorflow" in sys.modules, os.environ["TF_ENABLE_ONEDNN_OPTS"], os.getpgid(0) == os.getpid())


def compute() -> None:
    import tensorflow as tf
    from tensorflow.python.eager import context

    assert not context.context()._initialized, "an operation has run in the forkserver"
    tf.config.threading.set_intra_op_parallelism_threads(1)
    print(float(tf.reduce_sum(tf.ones((3, 3)))))


def leave(code: object) -> None:
    sys.exit(code)  # type: ignore[arg-type]


def crash() -> None:
    raise ValueError("a mistake")


def sleep() -> None:
    subprocess.Popen(["sleep", "100"])
    print("asleep")
    time.sleep(100)


def wait_for_output(process, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in process.out:
        assert time.monotonic() < deadline and process.poll() is None, process.err
        time.sleep(0.01)


def test_process_has_its_own_folder_environment_and_group(start_process, tmp_path):
    result = start_process(report, cwd=tmp_path, env={"COLOUR": "red", "HOME": None}).wait(20)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [f"{tmp_path.name} red None", "True 1 True"]


def test_tensorflow_starts_fresh_in_each_process(start_process):
    for process in [start_process(compute), start_process(compute)]:
        result = process.wait(60)
        assert (result.code, result.out) == (0, "9.0\n"), result.err


@pytest.mark.parametrize(("given", "code", "err"), [(None, 0, ""), (5, 5, ""), (143, 143, ""), ("bad", 1, "bad\n")])
def test_exit_codes_are_those_of_an_interpreter(start_process, given, code, err):
    result = start_process(leave, given).wait(20)
    assert (result.code, result.err) == (code, err)


def test_uncaught_exception_is_exit_1_with_a_traceback(start_process):
    result = start_process(crash).wait(20)
    assert result.code == 1
    assert result.err.startswith("Traceback (most recent call last):\n")
    assert result.err.endswith("ValueError: a mistake\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_process_reports_its_signal(start_process, number):
    process = start_process(sleep)
    wait_for_output(process, "asleep")
    assert process.poll() is None
    process.kill(number)
    assert process.wait(20).code == -number


def test_end_kills_a_process_and_its_children(start_process):
    process = start_process(sleep)
    wait_for_output(process, "asleep")
    process.end()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # a killed child stays a zombie until somebody reaps it
        left = [path.read_text().split() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
        if not [stat for stat in left if stat[4] == str(process.pid) and stat[2] != "Z"]:
            return
        time.sleep(0.1)
    pytest.fail("a child outlived its group's end")


def test_home_holds_a_store_that_needs_no_migration(home):
    assert Path(os.environ["BESTRUN_MLRUNS"]) == home / "mlruns"
    assert (home / "mlruns/.bestrun").exists()
    assert "MLFLOW_TRACKING_URI" not in os.environ
    with sqlite3.connect(home / "mlruns/mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (0,)
        assert database.execute("select count(*) from experiments").fetchone() == (0,)
        assert len(database.execute("select * from alembic_version").fetchall()) == 1


def test_command_runs_in_a_home(bestrun, home):
    assert bestrun("--version").out.startswith("bestrun")
    refused = bestrun("train", "no_such_setting=1")
    assert refused.code == 2 and "no_such_setting" in refused.err
    assert not (home / "mlruns/runs").exists()


def test_server_stores_runs_and_artifacts(mlflow_server, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    (tmp_path / "note.txt").write_text("kept")
    client = MlflowClient(mlflow_server.uri)
    run = client.create_run(client.create_experiment("of test_fixtures"))
    client.log_artifact(run.info.run_id, str(tmp_path / "note.txt"))
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]


@pytest.mark.slow
def test_server_comes_back_with_what_it_had(mlflow_server):
    from mlflow import MlflowClient

    experiment = MlflowClient(mlflow_server.uri).create_experiment("before the outage")
    mlflow_server.stop(signal.SIGKILL)
    mlflow_server.start()
    assert MlflowClient(mlflow_server.uri).get_experiment(experiment).name == "before the outage"


def test_small_data_has_the_promised_shapes(small_mnist_npz, colour_npz):
    with np.load(small_mnist_npz) as mnist, np.load(colour_npz) as colour:
        assert mnist["x_train"].shape == (2000, 28, 28) and mnist["x_train"].dtype == np.uint8
        assert {len(mnist[f"y_{part}"]) for part in ("val", "test")} == {500}
        assert colour["x_train"].shape == (300, 12, 10, 3) and colour["x_test"].shape == (100, 12, 10, 3)
        assert set(colour["y_train"]) == set(range(5))
