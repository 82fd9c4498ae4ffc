"""Look-ups without MLflow: what the reader of an SQLite store answers is what MLflow's own client answers."""

import functools
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from bench.store import make_store
from bestrun.errors import SettingsError
from bestrun.tracking import database, datasets
from bestrun.tracking.lookup import OURS
from bestrun.tracking.reader import Reader
from bestrun.tracking.store import connect, reading
from support.stores import make_home, sqlite_uri


@pytest.fixture(scope="module")
def uri(tmp_path_factory, ready_made_store):
    """300 runs, as years leave them, of few settings."""
    home = make_home(tmp_path_factory.mktemp("home"), ready_made_store)
    make_store(home / "mlruns" / "mlflow.db", 300, evaluations=2, settings=5)
    return sqlite_uri(home)


@pytest.fixture(scope="module")
def mlflow(uri):
    return connect(uri).client


@pytest.fixture
def alone(uri):
    """The reader, for which MLflow must not be asked."""
    found = reading(uri).client
    assert isinstance(found, Reader)
    found._connect = lambda: pytest.fail("MLflow was asked")
    return found


@pytest.fixture(scope="module")
def experiments(mlflow):
    return [experiment.experiment_id for experiment in mlflow.search_experiments()]


@pytest.fixture(scope="module")
def answered(mlflow, experiments):
    """`answered(filter)`: what MLflow answers, who is asked once."""
    return functools.cache(lambda filtered: mlflow.search_runs(experiments, filtered))


def facts(run):
    """All that look-ups read of a run; NaN as text, as it is not equal to itself."""
    names = ("run_id", "run_name", "experiment_id", "status", "start_time", "end_time", "lifecycle_stage")
    metrics = {key: "NaN" if math.isnan(value) else value for key, value in run.data.metrics.items()}
    info = [getattr(run.info, name) for name in (*names, "artifact_uri")]
    return info, dict(run.data.params), metrics, dict(run.data.tags)


FILTERS = [
    "",
    OURS,
    f"{OURS} and attributes.status = 'FINISHED'",
    "attributes.status != 'FINISHED' AND tags.author = 'ada'",
    "attributes.start_time >= 1700000100000 and attributes.start_time < 1700000200000",
    'metrics."best/accuracy" > 0.5 and params."objective.metric" = \'val/accuracy\'',
    'metrics."best/accuracy" != 0.5',
    'metrics."best/accuracy" != 0',
    'metrics."best/accuracy" <= 0',
    'metrics."best/loss" < 1e300 and metrics."best/loss" > -1e300',
    'metrics."test/accuracy" >= 0.250',
    'params.seed = "1"',
    "params.seed != '1' and tags.\"bestrun.sweep\" != 'night1'",
    "tags.\"bestrun.versions\" != ''",
]
ORDERS = [
    [],
    ["attributes.start_time ASC"],
    ["attributes.start_time DESC"],
    ["attributes.start_time desc"],
    ["attributes.run_id ASC"],
    ['metrics."best/accuracy" DESC', "attributes.start_time ASC"],
    ['metrics."best/loss" ASC', "attributes.start_time ASC"],
    ['metrics."test/accuracy" ASC'],
    ['params."seed" ASC'],
    ['tags."author" DESC'],
]


@pytest.mark.parametrize("filtered", FILTERS)
def test_a_filter_lets_through_what_it_lets_through_in_mlflow(alone, answered, experiments, filtered):
    expected = answered(filtered)
    assert list(map(facts, alone.search_runs(experiments, filtered))) == list(map(facts, expected))


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("filtered", ["", "metrics.\"best/accuracy\" != 0.5 and tags.author = 'ada'"])
def test_runs_are_in_mlflows_order(alone, mlflow, experiments, order, filtered):
    expected = mlflow.search_runs(experiments, filtered, order_by=order)
    found = alone.search_runs(experiments, filtered, order_by=order)
    assert [run.info.run_id for run in found] == [run.info.run_id for run in expected]


def test_the_filters_tell_runs_apart(answered):
    counts = {filtered: len(answered(filtered)) for filtered in FILTERS}
    assert min(counts.values()) > 0 and len(set(counts.values())) > 8, counts


def test_pages_follow_each_other_and_the_last_one_says_so(alone, mlflow, experiments):
    pages = {}
    for client in (alone, mlflow):
        found, token = [], None
        while token or not found:
            page = client.search_runs(experiments, OURS, max_results=100, page_token=token)
            found, token = [*found, [run.info.run_id for run in page]], page.token
        pages[client] = found
    assert pages[alone] == pages[mlflow] and [len(page) for page in pages[alone]][:2] == [100, 100]
    count = len(mlflow.search_runs(experiments, OURS))
    assert alone.search_runs(experiments, OURS, max_results=count).token is None


def test_a_part_of_a_run_id_finds_it(alone, mlflow, experiments):
    run_id = mlflow.search_runs(experiments, max_results=1)[0].info.run_id
    for part in (run_id, run_id[:8], "f" * 31):
        filtered = f"attributes.run_id LIKE '{part}%'"
        expected = [run.info.run_id for run in mlflow.search_runs(experiments, filtered)]
        assert [run.info.run_id for run in alone.search_runs(experiments, filtered)] == expected


@pytest.mark.parametrize(
    "filtered",
    [
        "metrics.loss > 1e+300",
        "params.seed = 1",
        "metrics.loss = '1'",
        "params.seed LIKE '1%'",
        "attributes.start_time > 1.5",
        "attributes.run_name = 'run-00000'",
        "attributes.run_id LIKE '%a'",
        "params.seed = '1' or params.seed = '2'",
        "params.seed = '1' and",
        "and params.seed = '1'",
        "params.seed = '1'; drop table runs",
        "tags.author = 'a\"b'",
        "metric.loss > 1",
        " params.seed = '1'",
        "dataset.name = 'mnist'",
    ],
)
def test_other_words_are_left_to_mlflow(alone, experiments, filtered):
    asked = []

    class Mlflow:
        def search_runs(self, *given):
            asked.append(given[1])

    alone._connect = Mlflow
    alone.search_runs(experiments, filtered)
    assert asked == [filtered]


def test_experiments_runs_and_histories_are_mlflows(alone, mlflow, experiments):
    told = ("experiment_id", "name", "artifact_location", "lifecycle_stage")

    def row(experiment):
        return [getattr(experiment, name) for name in told]

    assert list(map(row, alone.search_experiments())) == list(map(row, mlflow.search_experiments()))
    for known in experiments:
        assert row(alone.get_experiment(known)) == row(mlflow.get_experiment(known))
    assert row(alone.get_experiment_by_name("digits")) == row(mlflow.get_experiment_by_name("digits"))
    assert alone.get_experiment_by_name("none") is None
    run = mlflow.search_runs(experiments, max_results=1)[0]
    assert facts(alone.get_run(run.info.run_id)) == facts(mlflow.get_run(run.info.run_id))
    for key in ("val/accuracy", "best/step", "none"):
        rows = [
            [
                (each.key, each.value, each.timestamp, each.step)
                for each in client.get_metric_history(run.info.run_id, key)
            ]
            for client in (alone, mlflow)
        ]
        assert rows[0] == rows[1] and (rows[0] or key != "val/accuracy")


def test_a_run_that_is_not_there_is_refused_in_mlflows_words(uri):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="Run with id=none not found"):
        reading(uri).client.get_run("none")


def test_the_data_of_a_run_is_read_from_its_inputs(tmp_path, ready_made_store):
    uri = sqlite_uri(make_home(tmp_path, ready_made_store))
    client = connect(uri).client
    run = client.create_run("0", tags={"bestrun.run": "a", "bestrun.data_digest": "d" * 64})
    data = {"name": "digits", "source": "/x", "train": 5, "validation": 3, "test": 2, "image_shape": [2, 2, 1]}
    started = {"data": {**data, "num_classes": 10}, "data_digest": "d" * 64}
    client.log_inputs(run.info.run_id, datasets.datasets_of(started))
    ours, theirs = reading(uri).client.get_run(run.info.run_id), client.get_run(run.info.run_id)
    assert datasets.data_of(ours) == datasets.data_of(theirs) == started["data"]
    assert sorted(datasets.datasets_by_context(ours)) == ["test", "train", "validation"]
    (without,) = [client.create_run("0", tags={"bestrun.run": "b"})]
    assert datasets.data_of(reading(uri).client.get_run(without.info.run_id)) == {}


# ---- which stores it reads ----


def test_a_schema_is_read_from_the_migrations_as_alembic_reads_them(monkeypatch):
    database._revisions.cache_clear()
    read = database._revisions()
    monkeypatch.setattr(database.re, "findall", lambda *_: [])  # written in a way that is not known
    database._revisions.cache_clear()
    assert database._revisions() == read and len(read[1]) > 60
    database._revisions.cache_clear()


def test_a_store_of_another_mlflow_is_none_of_the_readers(tmp_path, ready_made_store):
    path = tmp_path / "mlflow.db"
    with pytest.raises(SettingsError, match="there are no runs here yet"):
        reading(f"sqlite:///{path}")
    path.touch()
    assert not database.is_of_this_mlflow(path)
    path.write_text("no database at all, but a text of some length")
    assert not database.is_of_this_mlflow(path)
    shutil.copyfile(ready_made_store, path)
    assert isinstance(reading(f"sqlite:///{path}").client, Reader)
    assert not isinstance(reading(f"sqlite:///{path}?timeout=3").client, Reader)
    with sqlite3.connect(path) as opened:
        opened.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        opened.execute("INSERT INTO experiments (name) VALUES ('old')")
    opened.close()
    with pytest.raises(SettingsError, match="has schema 451aebb31d03"):
        reading(f"sqlite:///{path}")


def test_what_cannot_be_looked_at_is_left_to_who_says_why(tmp_path, ready_made_store, monkeypatch):
    path = tmp_path / "mlflow.db"
    shutil.copyfile(ready_made_store, path)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    assert database.is_of_this_mlflow(path)
    monkeypatch.setattr(Path, "is_file", refuse)
    assert not database.is_of_this_mlflow(path)


def test_workspaces_are_mlflows(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    asked = []
    monkeypatch.setattr("bestrun.tracking.store.connect", lambda *given, **named: asked.append((given, named)))
    reading(uri)
    assert asked == [((uri,), {"create": False})]


def test_a_list_of_runs_writes_nothing_into_a_store(tmp_path, ready_made_store):
    home = make_home(tmp_path, ready_made_store)
    make_store(home / "mlruns" / "mlflow.db", 20, evaluations=1)
    before = (home / "mlruns" / "mlflow.db").read_bytes()
    environment = {**os.environ, "BESTRUN_MLRUNS": str(home / "mlruns")}
    command = [sys.executable, "-m", "bestrun", "runs", "--csv"]
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert len(told.splitlines()) > 15
    assert (home / "mlruns" / "mlflow.db").read_bytes() == before
