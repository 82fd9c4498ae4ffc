"""Real servers: PostgreSQL, MLflow over it, S3. What one person's SQLite file does, a team's servers do."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from bestrun.guard import guarded
from bestrun.run.check_store import upload
from bestrun.run.findings import looked
from bestrun.tracking.store import connect
from support.lines import SMALL_NETWORK
from support.looks import evaluations, same_tensors, until
from support.pages import free_port
from support.processes import Command, Starter
from support.proxy import Proxy
from support.stores import assert_record_agrees, make_home, run_folder
from support.team import (
    BUCKET,
    KEY,
    PASSWORD,
    S3,
    SECRETS,
    Mlflow,
    Nginx,
    Postgres,
    environment,
    missing,
    needs,
    s3_environment,
    where_secrets_stand,
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
    s3: S3 | None

    @property
    def environment(self) -> dict[str, str]:
        return self.variables | {"BESTRUN_MLRUNS": str(self.home / "mlruns")}

    def run(self, *words: object, code: int = 0, home: Path | None = None, **more: str):
        """`bestrun WORDS`, which ends with this exit code."""
        own = {"BESTRUN_MLRUNS": str((home or self.home) / "mlruns")}
        result = self.bestrun(*words, cwd=home or self.home, env=self.environment | own | more)
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


# ---- faults of these servers, in the middle of a run ----

LONG = ["training.max_steps=400", "training.evaluate_every_steps=20", "training.patience_steps=400"]


@pytest.fixture
def people(outside, _forkserver, tmp_path, ready_made_store, words, start_process):
    """`people("ada", uri, PGPASSWORD=...) -> Team`: somebody with a home and an environment of their own."""

    def make(name: str, uri: str, **variables: str) -> Team:
        home = make_home(tmp_path / name, ready_made_store)
        variables |= {"MLFLOW_TRACKING_URI": uri, "USER": name, "LOGNAME": name}
        return Team(home, uri, variables, words, Command(start_process, home), None)

    return make


@pytest.fixture
def server(postgres, s3, tables, tmp_path):
    """`server(*options, users=) -> Mlflow` over a new database, its artifacts in S3 unless the options say else."""
    started: list[Mlflow] = []

    def start(*options: str, **named) -> Mlflow:
        folder = tmp_path / f"server{len(started)}"
        folder.mkdir()
        secret = postgres.copy_database(f"server-{tmp_path.name}-{len(started)}", tables)
        place = f"s3://{BUCKET}/{tmp_path.name}"
        chosen = list(options) or ["--serve-artifacts", "--artifacts-destination", place]
        started.append(Mlflow(folder, secret, chosen, s3_environment(s3.uri), **named))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def nginx(tmp_path):
    started: list[Nginx] = []

    def start(upstream: int, **named) -> Nginx:
        folder = tmp_path / f"nginx{len(started)}"
        folder.mkdir()
        started.append(Nginx(folder, upstream, **named))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.stop()


def assert_each_evaluation_once(person: Team, name: str, uri: str | None = None) -> None:
    with environment(**person.variables):
        assert_record_agrees(uri or person.uri, run_folder(person.home, name))


def evaluated(person: Team, name: str, step: int) -> bool:
    folder = run_folder(person.home, name)
    return folder.journal.exists() and any(line["step"] >= step for line in evaluations(folder))


@needs("postgres", "s3")
@pytest.mark.slow
@pytest.mark.parametrize("behind_a_server", [False, True])
def test_postgres_restarted_in_mid_run_loses_and_doubles_nothing(
    people, postgres, tables, server, tmp_path, behind_a_server
):
    if behind_a_server:
        ada = people("ada", server().uri)
    else:
        postgres.copy_database(f"direct-{tmp_path.name}", tables)
        ada = people("ada", postgres.uri(f"direct-{tmp_path.name}", password=None), PGPASSWORD=PASSWORD)
    process = ada.bestrun.start("train", *ada.words, *LONG, "name=r", env=ada.environment)
    until(lambda: evaluated(ada, "r", 60), process)
    try:
        postgres.stop()
        until(lambda: evaluated(ada, "r", 160), process)  # training does not wait for it
    finally:
        postgres.start()
    result = process.wait()
    assert result.code in (0, 6), result.out + result.err
    ada.run("sync")
    assert_each_evaluation_once(ada, "r")


@needs("s3")
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["refuse", "hang", "503"])
def test_s3_gone_in_mid_run_costs_its_files_until_it_is_back(people, s3, ready_made_store, tmp_path, mode):
    proxy = Proxy(s3.port)
    shutil.copyfile(ready_made_store, tmp_path / "shared.db")
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    ada = people("ada", uri, **s3_environment(proxy.uri))
    connect(uri).client.create_experiment("npz", artifact_location=f"s3://{BUCKET}/{tmp_path.name}")
    try:
        proxy.fail(mode, r"PUT \S*best-[1-9]")
        result = ada.train("name=r", *LONG, code=6)
        waited = time.time() - run_folder(ada.home, "r").result.stat().st_mtime
        assert waited < 20, "it ended and did not end"  # not Amazon's five tries of a minute
        assert proxy.began.is_set() and "bestrun sync r" in result.out + result.err
        assert len(evaluations(run_folder(ada.home, "r"))) == 21
        proxy.heal()
        ada.run("sync", "r")
        assert_each_evaluation_once(ada, "r")
    finally:
        proxy.close()


@needs("postgres", "s3", "auth")
@pytest.mark.slow
def test_a_reader_is_told_so_and_another_account_sends_the_rest(people, server):
    """And a wrong password, which is no outage either."""
    mlflow = server(users="READ")
    mlflow.make_user("ada", "s3cret-0f-ada")
    mlflow.make_user("bob", "s3cret-0f-bob")
    ada = people("ada", mlflow.uri, MLFLOW_TRACKING_USERNAME="ada", MLFLOW_TRACKING_PASSWORD="s3cret-0f-ada")
    bob = people("bob", mlflow.uri, MLFLOW_TRACKING_USERNAME="bob", MLFLOW_TRACKING_PASSWORD="s3cret-0f-bob")
    ada.train("name=hers")
    result = bob.train("name=his", code=6)
    said = result.out + result.err
    assert "MLflow refuses this run, training goes on without it" in said and "403" in said, said
    assert "is behind" not in said and "bestrun sync his" in result.out + result.err
    refused = bob.run("sync", "his", code=6)
    assert "user and password, or get the right to write" in refused.out + refused.err, refused.out + refused.err
    wrong = bob.run("sync", "his", code=6, MLFLOW_TRACKING_PASSWORD="s3cret-wrong")
    assert "401" in wrong.out + wrong.err and "user and password" in wrong.out + wrong.err, wrong.out + wrong.err
    bob.variables.update(MLFLOW_TRACKING_USERNAME="ada", MLFLOW_TRACKING_PASSWORD="s3cret-0f-ada")
    bob.run("sync", "his")
    assert_each_evaluation_once(bob, "his")
    said = bob.train("name=wrong", code=6, MLFLOW_TRACKING_PASSWORD="s3cret-wrong")
    assert said.out.count("MLflow refuses this run") == 1 and "401" in said.out, said.out + said.err
    assert where_secrets_stand(ada.home, bob.home) == []


@needs("postgres", "s3", "nginx")
@pytest.mark.slow
def test_tls_prefix_and_token_are_taken_from_the_environment(people, server, nginx):
    before = nginx(server().port, tls=True, prefix="/mlflow", token="s3cret-0f-the-token")
    known = {"MLFLOW_TRACKING_TOKEN": "s3cret-0f-the-token", "MLFLOW_TRACKING_SERVER_CERT_PATH": str(before.authority)}
    ada = people("ada", before.uri, **known)
    ada.train("name=r")
    assert_each_evaluation_once(ada, "r")
    elsewhere = people("elsewhere", before.uri, **known)
    assert json.loads(elsewhere.run("restore", "r", "--json").out)["validation"]["agrees"] is True
    ada.run("register", "r", "--name", "digits", "--alias", "champion")
    stranger = people("stranger", before.uri, **known | {"MLFLOW_TRACKING_TOKEN": "s3cret-wrong"})
    result = stranger.train("name=s", code=6)
    assert "MLflow refuses this run" in result.out and "401" in result.out, result.out + result.err
    stranger.variables.update(known)
    stranger.run("sync", "s")
    assert_each_evaluation_once(stranger, "s")
    untrusting = people("untrusting", before.uri, MLFLOW_TRACKING_TOKEN="s3cret-0f-the-token")
    result = untrusting.run("runs", code=1)
    assert result.err.count("\n") == 1 and "certificate" in result.err.lower(), result.err
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in result.err, result.err
    assert where_secrets_stand(ada.home, stranger.home, untrusting.home) == []


@needs("postgres", "s3", "nginx")
@pytest.mark.slow
def test_a_file_too_large_for_a_proxy_is_said_once_and_sent_by_sync(people, server, nginx):
    before = nginx(server().port, limit="1m")
    ada = people("ada", before.uri)
    result = ada.train("name=r", "model.fc_size=512", "pictures=false", *LONG, code=6)  # 2.4 MB a checkpoint
    warned = [line for line in result.out.splitlines() if "training goes on" in line]
    assert len(warned) == 1 and "client_max_body_size" in warned[0], result.out
    assert re.search(r"best-\d+.safetensors has \d\.\d MB", warned[0]), warned
    folder = run_folder(ada.home, "r")
    assert sum(line["improved"] for line in evaluations(folder)) > 3  # so it was refused more than once
    client = connect(before.uri).client
    (run,) = client.search_runs(["1"])
    assert run.info.status == "FINISHED" and run.data.tags["bestrun.stop_reason"] == "max_steps"
    assert len(client.get_metric_history(run.info.run_id, "val/accuracy")) == 21
    behind = ada.run("sync", "r", code=6)
    assert "client_max_body_size" in behind.out + behind.err and " MB" in behind.out + behind.err
    before.change(limit="0")
    time.sleep(0.5)
    ada.run("sync", "r")
    assert_each_evaluation_once(ada, "r")


@needs("postgres", "s3")
@pytest.mark.slow
def test_a_slow_link_blocks_no_training(people, server):
    """100 kB/s, a best of 2.4 MB at about every evaluation."""
    mlflow = server()
    large = ["model.fc_size=512", "pictures=false", *LONG]
    quick = people("quick", mlflow.uri)
    quick.train("name=q", *large)
    proxy = Proxy(mlflow.port, bytes_a_second=100_000)
    try:
        slow = people("slow", proxy.uri)
        result = slow.bestrun("train", *slow.words, *large, "name=s", env=slow.environment, timeout=280)
        assert result.code in (0, 6), result.out + result.err
        blocked = trained_seconds(slow, "s") - trained_seconds(quick, "q")
        print(f"trained for {trained_seconds(slow, 's'):.1f} s, {blocked:.1f} s more than on a quick link")
        slow.run("sync")
        assert_each_evaluation_once(slow, "s")
        # Bests that were superseded while another was on its way were never sent
        assert blocked < 1 + 0.25 * trained_seconds(quick, "q"), blocked  # other work on the machine
    finally:
        proxy.close()


def trained_seconds(person: Team, name: str) -> float:
    """From the first evaluation to the last."""
    lines = evaluations(run_folder(person.home, name))
    return (lines[-1]["time_ms"] - lines[0]["time_ms"]) / 1000


# ---- what stands before the first step ----


@needs("postgres")
@pytest.mark.slow
def test_a_new_database_met_by_four_processes_at_once(people, postgres, tmp_path):
    postgres.make_database(f"new-{tmp_path.name}")
    uri = postgres.uri(f"new-{tmp_path.name}", password=None)
    four = [people(name, uri, PGPASSWORD=PASSWORD) for name in ("ada", "bob", "cyd", "dan")]
    started = [each.bestrun.start("train", *each.words, "name=r", env=each.environment) for each in four]
    for process in started:
        result = process.wait()
        assert result.code == 0 and "behind" not in result.out, result.out + result.err
    for each in four:
        runs = json.loads(each.run("runs", "--json", "--mine").out)
        assert [run["user"] for run in runs] == [each.variables["USER"]]


@needs("postgres")
def test_a_database_that_is_away_or_refuses_is_said_in_a_moment(people, postgres):
    """Where MLflow alone tries for two minutes."""
    uri = postgres.uri("nothing", password="s3cret-wrong")
    ada = people("ada", uri)
    began = time.monotonic()
    for words in (["runs"], ["train", *ada.words]):
        result = ada.run(*words, code=1 if words == ["runs"] else 2)
        assert result.err.count("\n") == 1 and "s3cret" not in result.err and "password" in result.err, result.err
    away = ada.run("runs", code=1, MLFLOW_TRACKING_URI="postgresql://mlflow@127.0.0.1:9/x")
    assert away.err.count("\n") == 1 and "onnection refused" in away.err, away.err
    assert time.monotonic() - began < 20
    assert not list((ada.home / "mlruns").glob("runs/*"))


def without(tmp_path: Path, *modules: str) -> dict[str, str]:
    """The environment of a Python that cannot import these."""
    folder = tmp_path / "without"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def find_spec(name, path=None, target=None):\n"
        f"    return None if name.partition('.')[0] in {modules} else find(name, path, target)\n"
        "PathFinder.find_spec = find_spec\n"
    )
    return {"PYTHONPATH": str(folder)}


@needs("postgres", "s3")
@pytest.mark.slow
def test_a_missing_driver_or_library_is_one_line_before_the_first_step(people, server, tmp_path):
    """In a Python that really has neither psycopg nor boto3."""
    mlflow = server("--no-serve-artifacts", "--default-artifact-root", f"s3://{BUCKET}/x")
    bare = os.environ | without(tmp_path, "psycopg", "boto3", "botocore")
    for uri, module in (("postgresql://u:s3cret@127.0.0.1:1/x", "'psycopg[binary]'"), (mlflow.uri, "boto3")):
        ada = people(f"ada{len(module)}", uri)
        command = [sys.executable, "-m", "bestrun", "train", *ada.words, f"tracking.uri={uri!r}"]
        done = subprocess.run(
            command, cwd=ada.home, env=bare | ada.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "s3cret" not in done.stderr, done.stderr
        assert f"pip install {module}" in done.stderr and "pip install 'bestrun[team]'" in done.stderr, done.stderr
        assert not list((ada.home / "mlruns").glob("runs/*"))


# ---- many runs, several people ----


@needs("postgres")
@pytest.mark.slow
def test_two_thousand_runs_are_listed_as_soon_as_twenty(postgres, tables, server, tmp_path, outside):
    from bench.store import make_store
    from bestrun.tracking.by_settings import list_configurations
    from bestrun.tracking.listing import list_runs
    from bestrun.tracking.lookup import Lookup, find_run

    best = Lookup("best", experiment="digits", objective="val/accuracy")
    seconds: dict[int, list[float]] = {}
    for runs in (20, 2000):
        make_store(tmp_path / f"{runs}.db", runs, 10)
        name = f"runs-{runs}-{tmp_path.name}"
        direct = postgres.copy_database(name, tables)
        postgres.take_rows(name, tmp_path / f"{runs}.db")
        (tmp_path / str(runs)).mkdir()
        mlflow = Mlflow(tmp_path / str(runs), direct, ["--artifacts-destination", str(tmp_path / "artifacts")])
        try:
            mlflow.start()
            for store in (connect(direct), connect(mlflow.uri)):
                for look in (lambda: list_runs(store), lambda: find_run(store, best)):  # noqa: B023
                    look()
                    took = []
                    for _ in range(3):
                        began = time.monotonic()
                        look()
                        took.append(time.monotonic() - began)
                    seconds.setdefault(runs, []).append(min(took))
            if runs == 2000:
                found = list_configurations(connect(mlflow.uri), experiment="digits", most=10_000)
                assert sum(each.seeds + each.left_out for each in found) > 1500
        finally:
            mlflow.stop()
    print(f"runs and best, PostgreSQL and server: 20 runs {seconds[20]}, 2,000 runs {seconds[2000]}")
    assert all(many - few < 1 for few, many in zip(seconds[20], seconds[2000], strict=True)), seconds


@needs("postgres", "s3", "auth")
@pytest.mark.slow
def test_two_people_with_the_same_names_each_find_their_own(people, server):
    mlflow = server(users="EDIT")
    for name in ("ada", "bob", "cyd"):
        mlflow.make_user(name, f"s3cret-0f-{name}")
    ada, bob, cyd = (
        people(name, mlflow.uri, MLFLOW_TRACKING_USERNAME=name, MLFLOW_TRACKING_PASSWORD=f"s3cret-0f-{name}")
        for name in ("ada", "bob", "cyd")
    )
    ids = {}
    for seed, person in enumerate((ada, bob)):
        done = person.train("name=one", f"seed={seed}", "--json")
        ids[person.variables["USER"]] = json.loads(done.out)["run_id"]
        person.train("-m", f"seed={seed},{seed + 5}", "sweep.workers=2", "sweep.name=night")
    for person in (ada, bob):
        user = person.variables["USER"]
        for words in (["restore", "one", "--json"], ["show", "one", "--json"]):
            assert json.loads(person.run(*words).out)["run_id"] == ids[user]
        mine = json.loads(person.run("runs", "--mine", "--json").out)
        assert {run["user"] for run in mine} == {user} and len(mine) == 3
        of_sweep = json.loads(person.run("runs", "--sweep", "night", "--json").out)
        assert [run["user"] for run in of_sweep] == [user] * 2
    refused = cyd.run("restore", "one", code=2)
    assert refused.err.count("\n") == 1, refused.err
    for user, run_id in ids.items():
        assert re.search(rf"{run_id} \(one, {user}'s of \d{{4}}-", refused.err), refused.err
    refused = cyd.run("runs", "--sweep", "night", code=2)
    assert "ada's of" in refused.err and "bob's of" in refused.err
    assert json.loads(cyd.run("restore", ids["bob"], "--json").out)["run_id"] == ids["bob"]
    assert where_secrets_stand(ada.home, bob.home, cyd.home) == []


@needs("postgres", "s3")
@pytest.mark.slow
def test_no_password_stands_anywhere(people, postgres, tables, tmp_path):
    """It is typed in the address here, so it is in the command's own line; in those of what it starts it is not."""
    secret = postgres.copy_database(f"secret-{tmp_path.name}", tables)
    ada = people("ada", secret)
    process = ada.bestrun.start("train", "-m", *ada.words, "seed=1,2", "sweep.workers=2", env=ada.environment)
    seen: set[str] = set()
    while process.poll() is None:
        seen |= set(where_secrets_stand())
        time.sleep(0.2)
    assert process.wait().code == 0 and seen == set()
    ada.train("name=r", f"tracking.uri='{secret}'", "--json")
    ada.run("runs")
    ada.run("register", "r", "--name", "digits")
    assert where_secrets_stand(ada.home) == []
    with postgres.connect(f"secret-{tmp_path.name}") as connection:
        for table in (
            "tags",
            "params",
            "experiment_tags",
            "experiments",
            "runs",
            "registered_models",
            "model_versions",
        ):
            rows = str(connection.execute(f"SELECT * FROM {table}").fetchall())
            assert "s3cret" not in rows, table


# ---- docs/team.md to the letter ----

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "team.md"
COMPOSE = ROOT / "docs" / "team" / "compose.yaml"


def blocks(kind: str) -> list[str]:
    """The blocks of the page that are for the shell: `server` in the background, `person` for each of the two."""
    return re.findall(rf"^```bash{' ' + kind if kind else ''}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@needs("postgres", "s3", "auth")
@pytest.mark.slow
@pytest.mark.timeout(500)
def test_the_page_for_teams_is_followed_to_the_letter(postgres, s3, tmp_path, ready_made_store, outside):
    """On other ports, with a bucket of its own, and without the installation, which `make setup-team` has done."""
    port, name = free_port(), f"page-{tmp_path.name}"
    postgres.make_database(name)
    s3.client().create_bucket(Bucket=name.replace("_", "-"))
    places = {":5000": f":{port}", "--port 5000": f"--port {port}", ":9000": f":{s3.port}"}
    places |= {":5432/mlflow": f":{postgres.port}/{name}", "s3://mlflow": f"s3://{name.replace('_', '-')}"}

    def here(block: str) -> str:
        for there, ours in places.items():
            block = block.replace(there, ours)
        return block

    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_", "BESTRUN_"))}
    clean |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"}
    secret = {"POSTGRES_PASSWORD": PASSWORD, "S3_KEY": KEY[0], "S3_SECRET": KEY[1]}

    def shell(block: str, folder: Path, **variables: str) -> str:
        script = ["bash", "-euc", here(block)]
        done = subprocess.run(script, cwd=folder, env=clean | variables, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    install, secrets, accounts = blocks("")
    assert install.startswith("pip install")
    folder = tmp_path / "server"
    folder.mkdir()
    shell(secrets, folder, **secret)
    assert (folder / "secrets.env").stat().st_mode & 0o077 == 0
    (start,) = blocks("server")
    with (
        open(folder / "server.log", "wb") as log,
        guarded(["bash", "-euc", here(start)], cwd=folder, env=clean, stdout=log, stderr=log),
    ):
        until(lambda: is_answering(f"http://127.0.0.1:{port}/health"), timeout=150)
        passwords = dict(line.split() for line in shell(accounts, folder).splitlines())
        login, address, sweep, others = blocks("person")
        said = {}
        for user in ("ada", "bob"):
            home = make_home(tmp_path / user, ready_made_store)
            cache = str(Path.home() / ".cache")
            own = {"HOME": str(home), "USER": user, "LOGNAME": user, "XDG_CACHE_HOME": cache}
            shell(login, home, PASSWORD=passwords[user], **own)
            said[user] = shell(f"{address}\n{sweep}", home, **own)
            assert "MLflow does not have everything" not in said[user], said[user]
        for user in ("ada", "bob"):
            own |= {"HOME": str(tmp_path / user), "USER": user, "LOGNAME": user}
            seen = shell(f"{address}\n{others}", tmp_path / user, **own)
            assert len(re.findall("^first ", seen, re.MULTILINE)) == 2, seen  # both runs of that name
            secrets_here = (*passwords.values(), PASSWORD, KEY[1])
            ours = where_secrets_stand(tmp_path / user / "mlruns", secrets=secrets_here)
            assert ours == [], ours
    assert where_secrets_stand(secrets=tuple(passwords.values())) == []


def is_answering(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_compose_says_what_the_page_says():
    """Docker does not run here: what it would start is held to what the test above starts by hand."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    script = services["mlflow"]["command"][-1]
    (start,) = blocks("server")

    def command(text: str) -> str:
        found = re.search(r"mlflow server.*", text.replace("\\\n", " "))
        assert found
        return re.sub(r"127\.0\.0\.1(?=:5432)|postgres(?=:5432)|(?<=--host )\S+|\s+", " ", found[0]).strip()

    assert command(script) == command(start)
    (install, *_) = blocks("")
    versions = re.findall(r"'([\w.\[\]=]+)'", install)
    assert re.findall(r"'([\w.\[\]]+==[\w.]+)'", script) == versions
    lock = (ROOT / "requirements-team.lock").read_text()
    for version in versions:
        assert "\n" + re.sub(r"\[.*?\]", "", version) + " " in lock, version
    page = PAGE.read_text()
    users = yaml.safe_load(COMPOSE.read_text())["configs"]["users"]["content"]
    assert users.replace("@postgres:", "@127.0.0.1:").strip() in page
    assert not re.search(r"(PASSWORD|SECRET\w*|KEY\w*): (?!\$\{\w+:\?)", COMPOSE.read_text())


# ---- before the night ----


def server_lines(person: Team, *, code: int, **more: str) -> list[str]:
    """What `bestrun check --quick` says of the server, and whether anything of it stays in the home."""
    result = person.run("check", "--quick", *person.words, "--json", code=code, **more)
    lines = [line for line in json.loads(result.out) if line["check"] == "server"]
    assert not where_secrets_stand(person.home) and not any(secret in result.out for secret in SECRETS)
    return [f"{line['state']} {line['said']}; {line['remedy']}" for line in lines]


@needs("postgres", "s3", "auth")
@pytest.mark.slow
def test_check_tells_who_may_write_who_may_only_read_and_whom_nobody_knows(people, server):
    mlflow = server(users="READ")
    for name in ("ada", "bob"):
        mlflow.make_user(name, f"s3cret-0f-{name}")
    ada = people("ada", mlflow.uri, MLFLOW_TRACKING_USERNAME="ada", MLFLOW_TRACKING_PASSWORD="s3cret-0f-ada")
    bob = people("bob", mlflow.uri, MLFLOW_TRACKING_USERNAME="bob", MLFLOW_TRACKING_PASSWORD="s3cret-0f-bob")
    there, written = server_lines(ada, code=0)
    assert there.startswith("OK ") and "MLflow 3." in there
    assert written.startswith("OK may write: a run and an artifact in experiment npz, deleted again"), written
    there, written = server_lines(bob, code=2)
    assert there.startswith("OK ") and written.startswith("FAILED ") and "may not write there" in written, written
    assert "get the right to write there" in written
    (stranger,) = server_lines(bob, code=2, MLFLOW_TRACKING_PASSWORD="s3cret-wrong")
    assert stranger.startswith("FAILED ") and "401" in stranger and "give user and password" in stranger, stranger


@needs("postgres")
@pytest.mark.slow
def test_check_looks_at_a_database_that_is_opened_directly(people, postgres, tables):
    uri = postgres.copy_database("checked", tables)
    ada = people("ada", uri)
    there, written = server_lines(ada, code=0)
    assert there.startswith("OK ") and written.startswith("OK may write"), (there, written)
    assert not [path for path in (ada.home / "mlruns" / "artifacts").rglob("*") if path.name != "npz"]
    (wrong,) = server_lines(ada, code=2, MLFLOW_TRACKING_URI=uri.replace(PASSWORD, "s3cret-wrong"))
    assert wrong.startswith("FAILED ") and "authentication failed" in wrong, wrong


@needs("postgres", "s3", "nginx")
@pytest.mark.slow
def test_check_sends_what_a_proxy_refuses_before_a_run_does(people, server, nginx, tmp_path):
    before = nginx(server().port, limit="1m")
    ada, checkpoint = people("ada", before.uri), tmp_path / "last.safetensors"
    checkpoint.write_bytes(b"0" * 2_400_000)
    with environment(**ada.environment):
        (line,) = looked("server", lambda: upload(before.uri, "npz", ada.home / "mlruns", checkpoint))
        assert line.state == "FAILED" and "413" in line.said and "client_max_body_size" in line.remedy
        before.change(limit="0")
        time.sleep(0.5)
        (line,) = looked("server", lambda: upload(before.uri, "npz", ada.home / "mlruns", checkpoint))
        assert line.state == "OK" and "takes a checkpoint of 2.4 MB" in line.said
