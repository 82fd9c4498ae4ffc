"""Homes, stores and servers, and what MLflow has of a run."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bestrun.guard import guarded
from bestrun.storage.folder import RunFolder
from bestrun.storage.home import address_anew
from bestrun.storage.journal import read_journal
from support.pages import free_port


def make_home(folder: Path, store: Path) -> Path:
    """Make of `folder` a home: an empty, marked `mlruns/` with a copy of `store`."""
    mlruns = folder / "mlruns"
    mlruns.mkdir(parents=True)
    (mlruns / ".bestrun").touch()
    shutil.copyfile(store, mlruns / "mlflow.db")
    return folder


def copy_home(source: Path, home: Path) -> None:
    """Fill `home` with what another home holds, its MLflow's too: milliseconds where a training takes seconds."""
    shutil.rmtree(home / "mlruns", ignore_errors=True)
    shutil.copytree(source / "mlruns", home / "mlruns")
    address_anew(home / "mlruns", home / "mlruns")


class Server:
    """A real `mlflow server` on loopback; after `stop`, `start` brings it back with all it had, at the same address."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder = folder
        shutil.copyfile(store, folder / "mlflow.db")
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._until_stopped = contextlib.ExitStack()

    def start(self) -> None:
        """Start it unless it runs, and wait until it answers, 11 to 15 s."""
        if self._process and self._process.poll() is None:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--workers", "1"]
        command += ["--serve-artifacts", "--artifacts-destination", str(self.folder / "artifacts")]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.folder / "server.log", "ab") as log:
            # However pytest ends, it does not stay behind
            watched = guarded(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
            self._process = self._until_stopped.enter_context(watched)
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                pytest.fail("mlflow server did not start\n" + (self.folder / "server.log").read_text()[-3000:])
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End its whole process group, as uvicorn's workers outlive the process that started them; the guard waits."""
        if not self._process:
            return
        pid = self._process.pid
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                os.killpg(int(child), number)
        self._until_stopped.close()
        self._process = None

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def run_folder(home, name):
    return RunFolder(home / "mlruns" / "runs" / name)


def mlflow_record(uri, name):
    """What MLflow's own client reads of a run: the run, its metric rows by key, its artifacts."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.\"bestrun.run\" = '{name}'")
    rows = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    artifacts = {}
    for folder in client.list_artifacts(run.info.run_id):
        artifacts[folder.path] = [item.path for item in client.list_artifacts(run.info.run_id, folder.path)]
    return run, {key: [(row.step, row.value) for row in found] for key, found in rows.items()}, artifacts


def sqlite_uri(home):
    return f"sqlite:///{home / 'mlruns' / 'mlflow.db'}"


def assert_record_agrees(uri, folder, config_digest_tag=True):
    """MLflow, read by its own client, says what the journal says: every evaluation, once, and one checkpoint."""
    from mlflow import MlflowClient

    events, _ = read_journal(folder.journal)
    evaluations = [event for event in events if event["event"] == "evaluation"]
    run, rows, artifacts = mlflow_record(uri, folder.name)
    for key in ("val/accuracy", "val/loss", "train/accuracy", "train/loss"):
        assert rows[key] == [(e["step"], e[key]) for e in evaluations if e[key] is not None], key
    best = [event for event in evaluations if event["improved"]]
    assert rows["best/step"] == [(event["step"], event["step"]) for event in best]
    assert run.data.metrics["best/accuracy"] == best[-1]["val/accuracy"]
    assert artifacts["checkpoints"] == [f"checkpoints/{best[-1]['checkpoint']}"]
    assert run.data.tags["bestrun.best_checkpoint"] == f"checkpoints/{best[-1]['checkpoint']}"
    assert run.data.tags["bestrun.best_sha256"] == best[-1]["sha256"]
    assert run.data.tags["bestrun.data_digest"] == events[0]["data_digest"]
    inputs = {item.tags[0].value: item.dataset.digest for item in run.inputs.dataset_inputs}
    assert inputs == {part: f"{events[0]['data_digest'][:24]}-{part}" for part in ("train", "validation", "test")}
    assert sorted(artifacts["config"]) == ["config/config.yaml", "config/overrides.yaml"]
    path = MlflowClient(uri).download_artifacts(run.info.run_id, artifacts["checkpoints"][0])
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == best[-1]["sha256"]
    return run
