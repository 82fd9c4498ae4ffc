"""MLflow's record of a run in another store: what MLflow's own client reads there is what it read here."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from bestrun.errors import VerificationError
from bestrun.storage.files import StorageError
from bestrun.tracking import transfer
from bestrun.tracking.store import connect
from bestrun.tracking.transfer import NOT_TAKEN, TABLES, read_record, registered_as, remove_record, write_record

NAMES_RUNS = {"run_uuid", "run_id", "source_run_id"}


def tables(database: Path) -> dict[str, list[str]]:
    """Table -> its columns."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")] for name in names}


def rows(database: Path) -> dict[str, list[str]]:
    """Every row of a store but those of experiments, in words."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        found = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables(database)}
    return {name: sorted(map(repr, each)) for name, each in found.items() if each and "experiment" not in name}


def test_every_table_that_names_a_run_is_known(ready_made_store):
    """Where a new MLflow has another one, it is to be decided whether it goes along."""
    naming = {name for name, columns in tables(ready_made_store).items() if NAMES_RUNS & set(columns)}
    assert naming == {
        "runs", "tags", "params", "metrics", "latest_metrics", "logged_models", "logged_model_metrics", *NOT_TAKEN,
    }  # fmt: skip
    of_models = {name for name, columns in tables(ready_made_store).items() if "model_id" in columns}
    assert of_models == {name for name in TABLES if name.startswith("logged_model")}
    assert set(TABLES) <= set(tables(ready_made_store))


@pytest.fixture
def stores(tmp_path, ready_made_store):
    """Two stores of which the first has two runs of the same data, one of them with a model of its own."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric

    paths = [tmp_path / name / "mlflow.db" for name in ("first", "second")]
    for path in paths:
        path.parent.mkdir()
        shutil.copyfile(ready_made_store, path)
    first, second = (connect(f"sqlite:///{path}").client for path in paths)
    second.create_experiment("other")  # the IDs are others there
    experiment = first.create_experiment("e", artifact_location=f"file://{tmp_path}/first/artifacts/e")
    first.set_experiment_tag(experiment, "view", "best first")
    data = DatasetInput(Dataset("d", "0" * 32, "local", "{}", profile="{}"), [InputTag("mlflow.data.context", "t")])
    ids = []
    for name in ("goes", "stays"):
        run = first.create_run(
            experiment, run_name=name, tags={"bestrun.run": name, "bestrun.folder": "/old", "mine": "é"}
        )
        ids.append(run.info.run_id)
        first.log_inputs(ids[-1], [data])
        first.log_param(ids[-1], "seed", "0")
        for step in range(3):
            first.log_metric(ids[-1], "val/accuracy", step / 3, step=step, timestamp=step)
        first.log_metric(ids[-1], "not a number", float("nan"))
        first.set_terminated(ids[-1])
    model = first.create_logged_model(experiment, "m", ids[0], tags={"t": "1"}, params={"p": "2"})
    first.log_outputs(ids[0], [LoggedModelOutput(model.model_id, 3)])
    first.log_batch(ids[0], metrics=[Metric("val/loss", 0.5, 9, 9, model_id=model.model_id, run_id=ids[0])])
    return paths, (first, second), ids, model.model_id


def what_a_client_reads(client, run_id, model_id):
    run = client.get_run(run_id)
    found = {
        **run.data.to_dictionary(),
        "status": run.info.status,
        "start": run.info.start_time,
        "name": run.info.run_name,
    }
    found["metrics"] = {key: repr(value) for key, value in found["metrics"].items()}
    found["rows"] = {
        key: [(row.step, repr(row.value), row.timestamp) for row in client.get_metric_history(run_id, key)]
        for key in found["metrics"]
    }
    found["data"] = [
        (item.dataset.name, item.dataset.digest, [tag.value for tag in item.tags]) for item in run.inputs.dataset_inputs
    ]
    found["outputs"] = [(item.model_id, item.step) for item in run.outputs.model_outputs]
    model = client.get_logged_model(model_id)
    found["model"] = (model.name, model.tags, model.params, [(row.key, row.value, row.step) for row in model.metrics])
    return found


def test_a_run_is_in_the_other_store_all_that_it_was_here(stores):
    (source, target), (first, second), (goes, stays), model_id = stores
    before, other = what_a_client_reads(first, goes, model_id), rows(source)
    experiment = second.create_experiment("e", artifact_location="file:///there/e")
    record = read_record(source, goes)
    assert record.experiment == "e" and len(record.rows["metrics"]) == 5

    def here(address):
        return address.replace(record.artifact_uri.rpartition(f"/{goes}")[0], "file:///there/e")

    write_record(target, record, experiment, here, {"bestrun.folder": "/new", "not there": "x"})
    after = what_a_client_reads(second, goes, model_id)
    assert after.pop("tags") == before.pop("tags") | {"bestrun.folder": "/new"} and after == before
    run = second.get_run(goes)
    assert run.info.artifact_uri == f"file:///there/e/{goes}/artifacts" and run.info.experiment_id == experiment
    assert second.get_logged_model(model_id).artifact_location.startswith("file:///there/e/models/")
    assert second.get_experiment(experiment).tags["view"] == "best first"
    assert [run.info.run_id for run in second.search_runs([experiment], 'metrics."val/accuracy" > 0.5')] == [goes]
    assert rows(source) == other

    # A second one of the same data finds that there; then both are what they were
    write_record(target, read_record(source, stays), experiment, here, {})
    assert len(rows(target)["datasets"]) == 1 and len(second.get_run(stays).inputs.dataset_inputs) == 1

    remove_record(source, goes)
    left = repr(rows(source))
    assert goes not in left and model_id not in left and stays in left
    assert len(first.get_run(stays).inputs.dataset_inputs) == 1  # their data is the same
    assert read_record(source, goes) is None
    remove_record(source, goes)  # once more changes nothing
    remove_record(source, stays)
    assert set(rows(source)) <= {"alembic_version", "workspaces"}


def test_what_is_not_read_again_as_it_was_written_is_refused(stores, monkeypatch):
    (source, target), (_, second), (goes, _), _ = stores
    record, experiment = read_record(source, goes), second.create_experiment("e")
    insert = transfer._insert

    def loses(connection, table, row):
        if table != "params":
            insert(connection, table, row)

    monkeypatch.setattr(transfer, "_insert", loses)
    before = rows(target)
    with pytest.raises(VerificationError, match="does not hold what it was given"):
        write_record(target, record, experiment, str, {})
    assert rows(target) == before


def test_killed_in_the_middle_nothing_is_there(stores, monkeypatch):
    (source, target), (_, second), (goes, _), _ = stores
    record, experiment, before = read_record(source, goes), second.create_experiment("e"), rows(target)
    insert = transfer._insert

    def dies(connection, table, row):
        if table == "inputs":
            raise KeyboardInterrupt
        insert(connection, table, row)

    monkeypatch.setattr(transfer, "_insert", dies)
    with pytest.raises(KeyboardInterrupt):
        write_record(target, record, experiment, str, {})
    assert rows(target) == before


def test_what_is_registered_is_told(stores, tmp_path):
    (source, _), (first, _), (goes, stays), _ = stores
    first.create_registered_model("digits")
    for _ in range(2):
        first.create_model_version("digits", "file:///x", goes)
    assert registered_as(source, goes) == ["digits version 1", "digits version 2"]
    first.delete_model_version("digits", "1")
    assert registered_as(source, goes) == ["digits version 2"] and registered_as(source, stays) == []
    assert registered_as(tmp_path / "none.db", goes) == [] and read_record(tmp_path / "none.db", goes) is None
    (tmp_path / "no.db").write_bytes(b"no database at all, " * 100)
    with pytest.raises(StorageError, match="no.db: "):
        read_record(tmp_path / "no.db", goes)
