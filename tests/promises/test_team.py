"""Real servers: PostgreSQL, MLflow over it, S3. What one person's SQLite file does, a team's servers do."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bestrun.tracking.store import connect
from support.lines import SMALL_NETWORK
from support.looks import evaluations, same_tensors
from support.processes import Command, Starter
from support.stores import assert_record_agrees, make_home, run_folder
from support.team import (
    BUCKET,
    PASSWORD,
    S3,
    Mlflow,
    Postgres,
    environment,
    missing,
    needs,
    s3_environment,
)

SHORT = ["training.max_steps=20", "training.evaluate_every_steps=10", "training.patience_steps=20"]

# Each combination of a store and a place of artifacts; a database cannot pass artifacts on, only a server can
CELLS = {
    "SQLite, folder": ("sqlite", "folder"),
    "SQLite, S3": ("sqlite", "s3"),
    "PostgreSQL, folder": ("postgres", "folder"),
    "PostgreSQL, S3": ("postgres", "s3"),
    "server, folder": ("server", "folder"),
    "server, S3": ("server", "s3"),
    "server, S3 through it": ("server", "proxied"),
}


@dataclass(frozen=True)
class Team:
    """A store, a home and the command, which finds all that is secret in its environment."""

    home: Path
    uri: str
    variables: dict[str, str]
    words: list[str]
    bestrun: Command
    s3: S3

    def run(self, *words: object, code: int = 0, home: Path | None = None, **more: str):
        """`bestrun WORDS`, which ends with this exit code."""
        own = {"BESTRUN_MLRUNS": str((home or self.home) / "mlruns")}
        result = self.bestrun(*words, cwd=home or self.home, env=self.variables | own | more)
        assert result.code == code, result.out + result.err
        return result

    def train(self, *words: object, **more):
        return self.run("train", *self.words, *words, **more)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """One cluster for all tests."""
    if reason := missing("postgres"):
        pytest.skip(reason)
    cluster = Postgres()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    if reason := missing("s3"):
        pytest.skip(reason)
    store = S3(tmp_path_factory.mktemp("s3"))
    try:
        store.start()
        yield store
    finally:
        store.stop()


@pytest.fixture(scope="module")
def tables(postgres: Postgres) -> str:
    """The name of a database with MLflow's tables and no run, to be copied: making them takes 3 s."""
    connect(postgres.make_database("tables"))
    return "tables"


@pytest.fixture(scope="module")
def words(small_mnist_npz: Path) -> list[str]:
    """Settings of a small network on little data, trained for two evaluations after the one at step 0."""
    return ["data=npz", f"data.path={small_mnist_npz}", *SMALL_NETWORK, *SHORT]


@pytest.fixture(scope="module")
def outside() -> Iterator[None]:
    """No address of the environment that the tests run in is heard."""
    with environment(MLFLOW_TRACKING_URI=None, MLFLOW_REGISTRY_URI=None, MLFLOW_RUN_ID=None, BESTRUN_MLRUNS=None):
        yield


@pytest.fixture(scope="module")
def team(request, outside, _forkserver, tmp_path_factory, ready_made_store, words, s3, postgres, tables):
    """One cell of the matrix."""
    store, artifacts = CELLS[request.param]
    folder = tmp_path_factory.mktemp("team")
    home = make_home(folder / "home", ready_made_store)
    variables = s3_environment(s3.uri) if artifacts == "s3" else {}
    server = None
    try:
        if store == "sqlite":
            shutil.copyfile(ready_made_store, folder / "shared.db")
            uri = f"sqlite:///{folder / 'shared.db'}"
        else:
            database = f"team-{folder.name}"
            secret = postgres.copy_database(database, tables)
            uri = postgres.uri(database, password=None)
            variables |= {"PGPASSWORD": PASSWORD}
        if store == "server":
            place = str(folder / "artifacts") if artifacts == "folder" else f"s3://{BUCKET}/{folder.name}"
            options = ["--no-serve-artifacts", "--default-artifact-root", place]
            if artifacts == "proxied":
                options = ["--serve-artifacts", "--artifacts-destination", place]
            server = Mlflow(folder, secret, options, s3_environment(s3.uri))
            server.start()
            uri, variables = server.uri, s3_environment(s3.uri) if artifacts == "s3" else {}
        elif artifacts == "s3":
            with environment(**variables):
                place = f"s3://{BUCKET}/{folder.name}"
                connect(uri).client.create_experiment("npz", artifact_location=place)
        variables["MLFLOW_TRACKING_URI"] = uri
        command = Command(Starter(tmp_path_factory.mktemp("processes")), home)
        yield Team(home, uri, variables, words, command, s3)
        for process in command.starter.started:
            process.end()
    finally:
        if server:
            server.stop()


matrix = pytest.mark.parametrize("team", CELLS, indirect=True, scope="module")


def whole_run(team: Team, name: str):
    """The folder of a finished run of this name, trained where it is not there yet."""
    folder = run_folder(team.home, name)
    if not folder.result.exists():
        team.train(f"name={name}")
    return folder


@needs("postgres", "s3")
@pytest.mark.slow
@matrix
class TestMatrix:
    def test_train(self, team: Team):
        result = team.train("name=one", "--json")
        with environment(**team.variables):
            run = assert_record_agrees(team.uri, run_folder(team.home, "one"))
        assert json.loads(result.out)["mirrored"] is True and run.info.status == "FINISHED"

    def test_kill_and_resume(self, team: Team):
        whole = whole_run(team, "one")
        team.train("name=killed", code=-signal.SIGKILL, BESTRUN_FAULT="F9:2")
        team.run("resume", "killed")
        folder = run_folder(team.home, "killed")
        with environment(**team.variables):
            assert_record_agrees(team.uri, folder)
        assert same_tensors(folder.last, whole.last)
        assert [line["step"] for line in evaluations(folder)] == [0, 10, 20]

    def test_sweep_of_two_workers(self, team: Team):
        team.train("-m", "seed=1,2,3", "sweep.workers=2", "sweep.name=night")
        said = json.loads(team.run("sweep", "night", "--json").out)
        assert [trial["state"] for trial in said["trials"]] == ["complete"] * 3, said
        runs = json.loads(team.run("runs", "--sweep", "night", "--json").out)
        assert {run["state"] for run in runs} == {"finished"} and len(runs) == 3

    def test_restore(self, team: Team, tmp_path):
        whole = whole_run(team, "one")
        elsewhere = make_home(tmp_path / "elsewhere", team.home / "mlruns" / "mlflow.db")
        said = json.loads(team.run("restore", "one", "--json", home=elsewhere).out)
        assert said["validation"]["agrees"] is True and said["run_id"] == json.loads(whole.result.read_text())["run_id"]

    def test_register(self, team: Team, tmp_path):
        whole_run(team, "one")
        team.run("register", "one", "--name", "digits", "--alias", "champion")
        elsewhere = make_home(tmp_path / "elsewhere", team.home / "mlruns" / "mlflow.db")
        said = json.loads(team.run("restore", "digits@champion", "--json", home=elsewhere).out)
        assert said["validation"]["agrees"] is True

    def test_sync(self, team: Team):
        nobody = "http://127.0.0.1:9"
        team.train("name=late", f"tracking.uri={nobody}", code=6)
        team.run("sync", "late", "--tracking-uri", team.uri)
        with environment(**team.variables):
            assert_record_agrees(team.uri, run_folder(team.home, "late"))
        (said,) = json.loads(team.run("sync", "late", "--tracking-uri", team.uri, "--json").out)
        assert said["state"] == "complete" and said["sent"] == 0

    def test_runs(self, team: Team):
        whole_run(team, "one")
        runs = json.loads(team.run("runs", "--json", "--filter", "tags.\"bestrun.run\" = 'one'").out)
        assert [(run["run_name"], run["state"]) for run in runs] == [("one", "finished")]

    def test_best(self, team: Team):
        whole_run(team, "one")
        best = json.loads(team.run("show", "best", "--json").out)
        runs = json.loads(team.run("runs", "--json").out)
        assert best["run_id"] == runs[0]["run_id"]
