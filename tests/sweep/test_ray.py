"""Sweeps on a Ray cluster: two nodes on loopback, a real MLflow server, killed workers, nodes and schedulers."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bestrun.settings.compose import compose
from bestrun.storage.files import read_json
from bestrun.storage.folder import RunFolder
from bestrun.storage.journal import read_journal
from bestrun.sweep.backends.ray import _on_node
from bestrun.sweep.backends.work import Task
from bestrun.sweep.manifest import Manifest, read_manifest, sweep_path
from support.processes import Command, Process
from support.stores import Server

installed = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not installed, reason="Ray is not installed; make setup-ray")
pytestmark = pytest.mark.timeout(600)

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4, "RAY_USAGE_STATS_ENABLED": "0"}
RATES = "optimizer.learning_rate=1e-3,2e-3,3e-3,4e-3,5e-3,6e-3,7e-3,8e-3"

CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster
node = dict(num_cpus=1, node_ip_address="127.0.0.1")
first = {**node, **json.loads(sys.argv[1]), "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=first)
second = cluster.add_node(**node)
print("ADDRESS", cluster.address, flush=True)
for line in sys.stdin:
    if line == "remove\\n":
        cluster.remove_node(second, allow_graceful=False)
    if line == "add\\n":
        second = cluster.add_node(**node)
    print("DONE", flush=True)
cluster.shutdown()
"""


class TwoNodes:
    """A cluster of two nodes of one processor each, the second of which can be taken away and brought back.

    Args:
        first: what the first one has in place of that; Ray believes in graphics cards that are not there.
    """

    def __init__(self, folder: Path, **first: int) -> None:
        with open(folder / "cluster.log", "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", CLUSTER, json.dumps(first)],
                cwd=folder,
                env={**os.environ, **TOKEN},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        address = self._answer("ADDRESS").split()
        if not address:
            pytest.fail("the Ray cluster did not start\n" + (folder / "cluster.log").read_text()[-3000:])
        # Ray would take 127.0.0.1 for the machine's other address, where these nodes do not listen
        self.env = {**TOKEN, "RAY_ADDRESS": address[1], "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

    def _answer(self, word: str) -> str:
        assert self._process.stdout
        return next((line for line in self._process.stdout if line.startswith(word)), "")

    def ask(self, word: str) -> None:
        assert self._process.stdin
        print(word, file=self._process.stdin, flush=True)
        assert self._answer("DONE")

    def end(self) -> None:
        try:
            self._process.communicate(timeout=60)
        finally:
            self._process.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    nodes = TwoNodes(tmp_path_factory.mktemp("ray"))
    yield nodes
    nodes.end()


@pytest.fixture
def cards(tmp_path: Path) -> Iterator[TwoNodes]:
    nodes = TwoNodes(tmp_path, num_cpus=2, num_gpus=2)
    yield nodes
    nodes.end()


@pytest.fixture
def line(small_mnist_npz: Path) -> list[str]:
    """Trials of some seconds, by two workers over Ray."""
    network = ["model.num_filters=[4,8]", "model.fc_size=16"]
    steps = ["training.max_steps=300", "training.evaluate_every_steps=20", "training.patience_steps=2000"]
    sweep = ["sweep.name=s", "sweep.backend=ray", "sweep.workers=2"]
    return ["train", "-m", "data=npz", f"data.path={small_mnist_npz}", *network, *steps, *sweep]


def wait_until(true: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)
    return found


def running(home: Path, process: Process | None = None) -> list[RunFolder]:
    """Runs of living processes that have an evaluation to go on from and an ID in MLflow."""
    if process:
        assert process.poll() is None, process.out + process.err
    folders = [RunFolder(path) for path in (home / "mlruns" / "runs").glob("s-*")]
    return [
        folder
        for folder in folders
        if folder.is_owned() and steps(folder) and steps(folder)[-1] >= 60 and read_json(folder.mirror).get("run_id")
    ]


def steps(folder: RunFolder) -> list[int]:
    return [event["step"] for event in read_journal(folder.journal)[0] if event["event"] == "evaluation"]


def resumed(folder: RunFolder) -> bool:
    return any(event["event"] == "resumed" for event in read_journal(folder.journal)[0])


def assert_complete(home: Path, server: Server, count: int, status: str = "FINISHED") -> tuple[Manifest, Any]:
    """Every trial there once, on disk and in MLflow, with every evaluation once. Returns the parent run, too."""
    from mlflow import MlflowClient

    manifest, client = read_manifest(home / "mlruns", "s"), MlflowClient(server.uri)
    assert manifest.parent_run_id
    parent = client.get_run(manifest.parent_run_id)
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.\"mlflow.parentRunId\" = '{manifest.parent_run_id}'"
    )
    names = sorted(child.data.tags["bestrun.run"] for child in children)
    assert names == [f"s-{number:03d}" for number in range(count)]
    assert {child.info.run_id for child in children} == {run.run_id for run in manifest.runs()} - {None}
    assert {child.info.status for child in children} == {status}
    assert parent.info.status == status
    for run in manifest.runs():
        evaluated = steps(manifest.folder(run))
        assert evaluated == sorted(set(evaluated))
    return manifest, parent


def run_ids(home: Path) -> dict[str, str]:
    folders = [RunFolder(path) for path in (home / "mlruns" / "runs").glob("s-*")]
    return {folder.name: found for folder in folders if (found := read_json(folder.mirror).get("run_id"))}


@pytest.mark.skipif(installed, reason="Ray is installed")
def test_without_ray_one_line_says_what_to_type(bestrun: Command, line: list[str]) -> None:
    result = bestrun(*line, RATES)
    assert result.code == 2
    assert "pip install --require-hashes -r requirements-ray.lock" in result.err
    assert "pip install 'bestrun[ray]'" in result.err
    assert len(result.err.splitlines()) == 1
    assert not (bestrun.home / "mlruns" / "sweeps").exists()


def test_node_that_does_not_see_the_runs_makes_none(tmp_path: Path) -> None:
    ended = _on_node(Task("s-000", compose([]), sweep_path(tmp_path / "mlruns", "s"), {"sweep": "s"}), [], {})
    assert ended.error and "all nodes must share it" in ended.error
    assert not list(tmp_path.iterdir())


@needs_ray
@pytest.mark.slow
def test_local_cluster_works_with_sqlite_and_prints_nothing_of_ray(bestrun: Command, line: list[str]) -> None:
    result = bestrun(*line, "optimizer.learning_rate=1e-3,2e-3,3e-3", env={"RAY_ADDRESS": None}, timeout=300)
    assert result.code == 0, result.err
    manifest = read_manifest(bestrun.home / "mlruns", "s")
    assert manifest.count()["complete"] == 3
    assert "ray" not in (result.out + result.err).lower().replace("sweep.backend=ray", "")
    event = read_journal(manifest.folder(manifest.trials[0].runs[0]).journal)[0][0]
    assert event["threads"] == 1 and "-m" in event["command"]


@needs_ray
@pytest.mark.slow
def test_sqlite_is_refused_on_two_nodes(bestrun: Command, line: list[str], cluster: TwoNodes) -> None:
    result = bestrun(*line, RATES, env=cluster.env)
    assert result.code == 2
    assert "2 nodes cannot share an SQLite store" in result.err and "tracking.uri=http://HOST:PORT" in result.err
    assert len(result.err.splitlines()) == 1
    assert not (bestrun.home / "mlruns" / "sweeps").exists()


@needs_ray
@pytest.mark.slow
def test_cluster_that_is_away_is_named_in_one_line(bestrun: Command, line: list[str]) -> None:
    for address in ("127.0.0.1:9", "ray://127.0.0.1:10001"):
        result = bestrun(*line, RATES, env={**TOKEN, "RAY_ADDRESS": address})
        assert result.code == 2 and "RAY_ADDRESS" in result.err
        assert len(result.err.splitlines()) == 1, result.err


@needs_ray
@pytest.mark.slow
def test_killed_worker_goes_on_as_the_same_run(
    bestrun: Command, line: list[str], cluster: TwoNodes, mlflow_server: Server
) -> None:
    words = [*line, RATES, f"tracking.uri={mlflow_server.uri}"]
    process = bestrun.start(*words, env=cluster.env)
    folder = wait_until(lambda: running(bestrun.home, process))[0]
    before = run_ids(bestrun.home)
    os.kill(read_json(folder.lock)["pid"], signal.SIGKILL)
    result = process.wait(500)
    assert result.code == 0, result.err
    assert_complete(bestrun.home, mlflow_server, 8)
    assert resumed(folder)
    assert before.items() <= run_ids(bestrun.home).items()


@needs_ray
@pytest.mark.slow
def test_lost_node_costs_no_trial(bestrun: Command, line: list[str], cluster: TwoNodes, mlflow_server: Server) -> None:
    process = bestrun.start(*line, RATES, f"tracking.uri={mlflow_server.uri}", env=cluster.env)
    try:
        wait_until(lambda: len(running(bestrun.home, process)) == 2)  # one on each node
        before = run_ids(bestrun.home)
        cluster.ask("remove")
        result = process.wait(500)
    finally:
        cluster.ask("add")
    assert result.code == 0, result.err
    manifest, _ = assert_complete(bestrun.home, mlflow_server, 8)
    assert sum(resumed(manifest.folder(run)) for run in manifest.runs()) == 1
    assert before.items() <= run_ids(bestrun.home).items()


@needs_ray
@pytest.mark.slow
def test_ctrl_c_saves_all_and_the_same_line_goes_on(
    bestrun: Command, line: list[str], cluster: TwoNodes, mlflow_server: Server
) -> None:
    """A third worker than there are processors: one task waits for its place when the signal comes."""
    three = ["optimizer.learning_rate=1e-3,2e-3,3e-3", f"tracking.uri={mlflow_server.uri}", "sweep.workers=3"]
    words = [*(word for word in line if word != "sweep.workers=2"), *three]
    process = bestrun.start(*words, env=cluster.env)
    wait_until(lambda: len(running(bestrun.home, process)) == 2)
    process.kill(signal.SIGINT)
    began = time.monotonic()
    result = process.wait(120)
    assert result.code == 130, result.err
    assert time.monotonic() - began < 60
    assert_complete(bestrun.home, mlflow_server, 2, "KILLED")
    before = run_ids(bestrun.home)
    assert bestrun(*words, env=cluster.env, timeout=300).code == 0
    assert_complete(bestrun.home, mlflow_server, 3)
    assert before.items() <= run_ids(bestrun.home).items()


@needs_ray
@pytest.mark.slow
def test_killed_scheduler_takes_its_tasks_along(
    bestrun: Command, line: list[str], cluster: TwoNodes, mlflow_server: Server
) -> None:
    words = [*line, "optimizer.learning_rate=1e-3,2e-3,3e-3,4e-3", f"tracking.uri={mlflow_server.uri}"]
    process = bestrun.start(*words, env=cluster.env)
    folders = wait_until(lambda: len(found := running(bestrun.home, process)) == 2 and found)
    pids = [read_json(folder.lock)["pid"] for folder in folders]
    process.kill()
    wait_until(lambda: not any(map(alive, pids)), 60)
    before = run_ids(bestrun.home)
    result = bestrun(*words, env=cluster.env, timeout=300)
    assert result.code == 0, result.err
    assert_complete(bestrun.home, mlflow_server, 4)
    assert before.items() <= run_ids(bestrun.home).items()


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@needs_ray
@pytest.mark.slow
def test_study_prunes_over_ray(bestrun: Command, line: list[str], cluster: TwoNodes, mlflow_server: Server) -> None:
    study = ["sweep=study", "sweep.n_trials=4", "sweep.sampler=RandomSampler"]
    study += ["sweep.pruner=ThresholdPruner", "sweep.pruner.lower=0.5", "sweep.pruner.n_warmup_steps=150"]
    study += ["optimizer.learning_rate=choice(1e-7,5e-3)", f"tracking.uri={mlflow_server.uri}"]
    words = [word.replace("max_steps=300", "max_steps=1000") for word in line]
    result = bestrun(*words, *study, env=cluster.env, timeout=300)
    assert result.code == 0, result.out + result.err
    manifest = read_manifest(bestrun.home / "mlruns", "s")
    assert {trial.point["optimizer.learning_rate"]: trial.state for trial in manifest.trials} == {
        "1e-07": "pruned",
        "0.005": "complete",
    }
    assert all(trial.runs[0].step < 1000 for trial in manifest.trials if trial.state == "pruned")


# ---- graphics cards and memory ----


@needs_ray
@pytest.mark.slow
def test_each_run_gets_the_cards_and_the_memory_it_asks_for(
    bestrun: Command, line: list[str], cards: TwoNodes, mlflow_server: Server
) -> None:
    """By two nodes of which one has cards: all runs are there, two at once, and none sees the other's card."""
    wants = ["sweep.gpus=1", "sweep.memory_gb=0.2", f"tracking.uri={mlflow_server.uri}"]
    result = bestrun(*line, "optimizer.learning_rate=1e-3,2e-3,3e-3", *wants, env=cards.env, timeout=400)
    assert result.code == 0, result.err
    manifest, _ = assert_complete(bestrun.home, mlflow_server, 3)
    found = []
    for run in manifest.runs():
        events = read_journal(manifest.folder(run).journal)[0]
        flags = events[0]["machine"]["flags"]
        found.append((flags["CUDA_VISIBLE_DEVICES"], events[0]["time_ms"], events[-1]["time_ms"]))
    assert {card for card, _, _ in found} == {"0", "1"}
    for number, (card, began, ended) in enumerate(found):
        for other, from_, to in found[:number]:
            assert card != other or began > to or from_ > ended, found
    # What no node has is said, and waited for: one that has it may still join
    words = [word.replace("sweep.name=s", "sweep.name=more") for word in line]
    more = [
        "optimizer.learning_rate=1e-3",
        "sweep.gpus=3",
        "sweep.memory_gb=90000",
        f"tracking.uri={mlflow_server.uri}",
    ]
    process = bestrun.start(*words, *more, "seed=0,1", env=cards.env)
    said = "sweep.gpus=3: no node of the cluster has more than 2; runs wait for such a one"
    wait_until(lambda: said in process.out + process.err or process.poll() is not None)
    assert "sweep.memory_gb=90000: no node of the cluster has more than " in process.out + process.err
    time.sleep(5)
    process.kill(signal.SIGINT)
    assert process.wait(60).code == 130
    assert not list((bestrun.home / "mlruns" / "runs").glob("more-*"))


@needs_ray
@pytest.mark.slow
def test_a_cluster_of_its_own_refuses_more_cards_than_this_machine_has(bestrun: Command, line: list[str]) -> None:
    result = bestrun(*line, RATES, "sweep.gpus=1", env={"RAY_ADDRESS": None}, timeout=120)
    assert result.code == 2, result.err
    (said,) = result.err.splitlines()
    assert "sweep.gpus=1 sweep.workers=2: 2 graphics cards at once, and Ray finds 0 on this machine" in said
    assert not (bestrun.home / "mlruns" / "sweeps").exists()
