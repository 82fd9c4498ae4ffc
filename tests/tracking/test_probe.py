"""Whether a store takes runs: a real server is written to and left as it was, one that refuses says what and why."""

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from bestrun.errors import SettingsError
from bestrun.run.check_store import store as looked_at
from bestrun.run.check_store import upload
from bestrun.run.findings import FAILED, OK, WARN, looked
from bestrun.tracking import probe
from bestrun.tracking.store import TrackingError
from support.proxy import Proxy


@pytest.fixture
def proxy(mlflow_server):
    proxy = Proxy(mlflow_server.port)
    yield proxy
    proxy.close()


def runs_of(uri, experiment, view=ViewType.ACTIVE_ONLY):
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id], run_view_type=view) if found else []


def test_a_server_that_takes_runs_is_left_without_one(home, mlflow_server):
    first, second = looked_at(mlflow_server.uri, "probed", home)
    assert first.state == second.state == OK
    assert "MLflow 3." in first.said and "may write" in second.said
    assert runs_of(mlflow_server.uri, "probed") == []
    (deleted,) = runs_of(mlflow_server.uri, "probed", ViewType.DELETED_ONLY)
    assert deleted.data.metrics == {"check": 1.0} and deleted.data.tags["bestrun.role"] == "check"
    assert "bestrun.run" not in deleted.data.tags  # no list of runs has it
    folder = mlflow_server.folder / "artifacts" / deleted.info.experiment_id / deleted.info.run_id
    assert not [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("what", ["POST .*/runs/create", "POST .*/runs/log-metric", "PUT .*/mlflow-artifacts/"])
def test_a_user_who_may_only_read_fails_and_leaves_nothing(home, mlflow_server, proxy, what):
    MlflowClient(mlflow_server.uri).get_experiment_by_name("read") or MlflowClient(mlflow_server.uri).create_experiment(
        "read"
    )
    proxy.fail("403", when=what, only=True)
    with pytest.raises(
        probe.ForbiddenError, match=r"may not write there: .*; give user and password, or get the right"
    ):
        probe.try_writing(proxy.uri, "read", home)
    assert runs_of(mlflow_server.uri, "read") == []


def test_a_user_who_may_not_delete_is_told_what_is_left(home, mlflow_server, proxy):
    proxy.fail("403", when="POST .*/runs/delete", only=True)
    *_, line = looked_at(proxy.uri, "kept", home)
    assert line.state == WARN and "not all was deleted: run bestrun-check-" in line.said
    (left,) = runs_of(mlflow_server.uri, "kept")
    assert left.info.status == "FINISHED"


def test_a_user_who_is_not_let_in_fails(home, mlflow_server, proxy):
    proxy.fail("403")
    with pytest.raises(probe.ForbiddenError, match="may not read there"):
        probe.ask(proxy.uri, "any", home)


def test_a_server_that_says_nothing_is_away(home, mlflow_server, proxy, monkeypatch):
    monkeypatch.setattr(probe, "SECONDS", 0.3)
    proxy.fail("hang")
    (line,) = looked_at(proxy.uri, "any", home)
    assert line.state == FAILED and "no answer within 0 s" in line.said and "bestrun sync" in line.remedy
    proxy.heal()
    proxy.fail("404")
    monkeypatch.setattr(probe, "SECONDS", 5.0)
    with pytest.raises(TrackingError):
        probe.ask(proxy.uri, "any", home)


def test_a_server_that_takes_no_file_of_a_checkpoints_size_fails(home, mlflow_server, proxy, tmp_path):
    checkpoint = tmp_path / "last.safetensors"
    checkpoint.write_bytes(b"0" * 1_000_000)
    (line,) = upload(proxy.uri, "sized", home, checkpoint)
    assert line.state == OK and "takes a checkpoint of 1.0 MB in " in line.said
    proxy.fail("413", when="PUT .*/mlflow-artifacts/", only=True)
    (line,) = looked("server", lambda: upload(proxy.uri, "sized", home, checkpoint))
    assert line.state == FAILED and "413" in line.said and "client_max_body_size" in line.remedy
    assert runs_of(mlflow_server.uri, "sized") == []


def test_a_database_of_sqlite_is_looked_at_and_not_written(home, tmp_path):
    database = home / "mlruns" / "mlflow.db"
    before = database.read_bytes()
    assert probe.look_at_sqlite(f"sqlite:///{database}") is True
    assert database.read_bytes() == before
    assert probe.look_at_sqlite(f"sqlite:///{tmp_path / 'new.db'}") is False
    assert not (tmp_path / "new.db").exists()
    (tmp_path / "other.db").write_bytes(b"no database " * 100)
    with pytest.raises(SettingsError, match="is no SQLite database"):
        probe.look_at_sqlite(f"sqlite:///{tmp_path / 'other.db'}")
