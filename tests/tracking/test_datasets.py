"""The data of a run as MLflow's inputs: one a split, and what older runs have is read, too."""

import json
import sqlite3
from types import SimpleNamespace

import numpy as np
import pytest

from bestrun.results.record import from_mlflow
from bestrun.storage.journal import read_journal
from bestrun.tracking.datasets import data_of, digest_of, profile_of, schema
from bestrun.tracking.names import TAG_DATA_DIGEST
from bestrun.tracking.sender import Sender
from bestrun.tracking.store import connect
from support.made_runs import make_run
from support.stores import mlflow_record, run_folder, sqlite_uri

SPLITS = ["train", "validation", "test"]


def test_the_schema_is_mlflow_s_own():
    from mlflow.data.schema import TensorDatasetSchema
    from mlflow.types.schema import Schema, TensorSpec

    theirs = TensorDatasetSchema(
        Schema([TensorSpec(np.dtype("uint8"), (-1, 28, 28, 1))]), Schema([TensorSpec(np.dtype("int64"), (-1,))])
    )
    assert schema([28, 28, 1]) == theirs.to_dict() and TensorDatasetSchema.from_dict(schema([28, 28, 1])) == theirs


def test_a_digest_fits_into_what_mlflow_takes():
    assert max(len(digest_of("f" * 64, split)) for split in SPLITS) <= 36


def test_a_run_has_an_input_for_each_split_and_its_data_is_read_again(copied):
    uri, started = sqlite_uri(copied), read_journal(run_folder(copied, "k").journal)[0][0]
    same = {key: started[key] for key in ("data", "data_digest")}
    Sender(make_run(copied, "other", **same), uri).catch_up()
    run, other = (mlflow_record(uri, name)[0] for name in ("k", "other"))
    inputs = {item.tags[0].value: item.dataset for item in run.inputs.dataset_inputs}
    assert sorted(inputs) == sorted(SPLITS)
    for split, dataset in inputs.items():
        assert dataset.name == started["data"]["name"] and dataset.digest.startswith(started["data_digest"][:24])
        assert json.loads(dataset.profile)["num_rows"] == started["data"][split]
        assert json.loads(dataset.schema) == schema([28, 28, 1])
    assert {dataset.digest for dataset in inputs.values()} == {
        item.dataset.digest for item in other.inputs.dataset_inputs
    }  # the same data is one
    assert data_of(run) == started["data"]
    assert from_mlflow(connect(uri), run).started["data"] == started["data"]


def test_the_one_input_of_a_run_of_before_is_read(copied):
    started = read_journal(run_folder(copied, "k").journal)[0][0]
    with sqlite3.connect(copied / "mlruns" / "mlflow.db") as database:
        others = "SELECT dataset_uuid FROM datasets WHERE digest NOT LIKE '%-train'"
        database.execute(f"DELETE FROM inputs WHERE source_id IN ({others})")
        database.execute(f"DELETE FROM datasets WHERE dataset_uuid IN ({others})")
        database.execute("UPDATE datasets SET digest = ?", [started["data_digest"][:32]])
        database.execute("UPDATE input_tags SET value = 'training'")
    run = mlflow_record(sqlite_uri(copied), "k")[0]
    assert len(run.inputs.dataset_inputs) == 1 and data_of(run) == started["data"]


@pytest.mark.parametrize("digest", ["f" * 24 + "-train", "f" * 32], ids=["now", "before"])
def test_an_input_that_somebody_added_is_not_taken_for_ours(digest):
    profile = {"train": 3, "validation": 2, "test": 1, "image_shape": [2, 2, 1], "num_classes": 2}
    ours = SimpleNamespace(name="d", digest=digest, source='{"uri": "d"}', profile=json.dumps(profile))
    theirs = SimpleNamespace(name="aaa", digest="0", source="{}", profile='{"num_classes": 3}')
    inputs = SimpleNamespace(dataset_inputs=[SimpleNamespace(dataset=each) for each in (theirs, ours)])
    run = SimpleNamespace(inputs=inputs, data=SimpleNamespace(tags={TAG_DATA_DIGEST: "f" * 64}))
    assert data_of(run) == {"name": "d", "source": "d", **profile} and profile_of(run) == ours.profile
