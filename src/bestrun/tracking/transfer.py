"""MLflow's record of a run, taken from the store in one home to the store in another: the run keeps its ID.

MLflow itself can only make a new run. So what stands here is known of its inside: in which tables a run is. Both stores
have the schema of this MLflow, see database.py; tests/tracking/test_transfer.py fails where a new version has a table
more in which a run is named.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import VerificationError
from ..storage.files import StorageError
from .names import TAG_FOLDER, TAG_WRITER

Row = dict[str, Any]

# Table -> which of its rows are a run's
_MODELS = "SELECT model_id FROM logged_models WHERE source_run_id = :run"
_INPUTS = "destination_id = :run OR source_id = :run"
TABLES = {  # in the order in which they are deleted: what others are found by goes last
    "tags": "run_uuid = :run",
    "params": "run_uuid = :run",
    "metrics": "run_uuid = :run",
    "latest_metrics": "run_uuid = :run",
    "logged_model_tags": f"model_id IN ({_MODELS})",
    "logged_model_params": f"model_id IN ({_MODELS})",
    "logged_model_metrics": f"model_id IN ({_MODELS})",
    "logged_models": "source_run_id = :run",
    "input_tags": f"input_uuid IN (SELECT input_uuid FROM inputs WHERE {_INPUTS})",
    "inputs": _INPUTS,
    "runs": "run_uuid = :run",
}
# The data of a run is that of others, too: a row for all of them in an experiment
_DATASETS = f"dataset_uuid IN (SELECT source_id FROM inputs WHERE {_INPUTS})"
DATA = ("inputs", "logged_model_metrics")  # name data sets, of which each store has its own
OF_A_PLACE = ("experiment_id", "artifact_uri", "artifact_location", TAG_FOLDER, TAG_WRITER)  # columns, and tags
NOT_TAKEN = ("assessments", "issues", "model_versions")  # name runs: what people said of traces; the registry


@dataclass(frozen=True)
class MlflowRecord:
    """What a store holds of one run.

    Attributes:
        experiment: its name.
        experiment_tags: of the experiment, such as the views of its page.
        rows: table -> its rows; `datasets` among them.
    """

    run_id: str
    experiment: str
    experiment_tags: dict[str, str]
    rows: dict[str, list[Row]]

    @property
    def artifact_uri(self) -> str:
        return str(self.rows["runs"][0]["artifact_uri"])

    @property
    def tags(self) -> dict[str, str]:
        return {row["key"]: row["value"] for row in self.rows["tags"]}


def read_record(database: Path, run_id: str) -> MlflowRecord | None:
    """What the store in a home has of a run; None where it has no such run, or there is no store."""
    if not database.exists():
        return None
    with _opened(database) as connection:
        connection.execute("BEGIN")  # all of one moment
        found = connection.execute(
            "SELECT experiment_id, name FROM experiments WHERE experiment_id IN "
            "(SELECT experiment_id FROM runs WHERE run_uuid = ?)",
            (run_id,),
        ).fetchone()
        if found is None:
            return None
        tags = connection.execute(
            "SELECT key, value FROM experiment_tags WHERE experiment_id = ?", (found["experiment_id"],)
        ).fetchall()
        return MlflowRecord(
            run_id, found["name"], {tag["key"]: tag["value"] for tag in tags}, _rows(connection, run_id)
        )


def is_same_record(one: MlflowRecord, other: MlflowRecord) -> bool:
    """Whether two stores hold the same of a run, but for what its place decides."""
    return all(_anywhere(one, table) == _anywhere(other, table) for table in TABLES if table not in DATA)


def is_older_record(one: MlflowRecord, other: MlflowRecord) -> bool:
    """Whether all that the one store holds of a run's figures stands in the other, too."""
    return all(set(_anywhere(one, table)) <= set(_anywhere(other, table)) for table in ("params", "metrics"))


def _anywhere(record: MlflowRecord, table: str) -> list[str]:
    """The rows of a table without what is another one in each home."""
    rows = [row for row in record.rows[table] if not (table == "tags" and row["key"] in OF_A_PLACE)]
    return sorted(repr({key: value for key, value in row.items() if key not in OF_A_PLACE}) for row in rows)


def write_record(
    database: Path, record: MlflowRecord, experiment_id: str, here: Callable[[str], str], tags: Mapping[str, str]
) -> None:
    """Put a run into the store in another home, all of it in one transaction, in which it is read again.

    Args:
        experiment_id: of the experiment there that it belongs to.
        here: an address of an artifact, as it is there.
        tags: those that are others there.

    Raises:
        VerificationError: the store does not hold what it was given.
    """
    rows = {table: [_as_there(row, experiment_id, here) for row in found] for table, found in record.rows.items()}
    rows["tags"] = [row | {"value": tags.get(row["key"], row["value"])} for row in rows["tags"]]
    with _opened(database) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for key, value in record.experiment_tags.items():  # those that are there may have been changed since
            connection.execute("INSERT OR IGNORE INTO experiment_tags VALUES (?, ?, ?)", (key, value, experiment_id))
        uuids = {row["dataset_uuid"]: _dataset(connection, row) for row in rows.pop("datasets")}
        for row in rows["inputs"]:
            row["source_id"] = uuids.get(row["source_id"], row["source_id"])
        for row in rows["logged_model_metrics"]:
            row["dataset_uuid"] = uuids.get(row["dataset_uuid"], row["dataset_uuid"])
        for table, found in rows.items():
            for row in found:
                _insert(connection, table, row)
        there = _rows(connection, record.run_id)
        if any(sorted(map(repr, there[table])) != sorted(map(repr, found)) for table, found in rows.items()):
            raise VerificationError(f"{database}: does not hold what it was given of run {record.run_id}")
        connection.execute("COMMIT")


def remove_record(database: Path, run_id: str) -> None:
    """Remove all that the store in a home holds of a run, in one transaction; nothing where it holds nothing."""
    with _opened(database) as connection:
        connection.execute("BEGIN IMMEDIATE")
        named = {"run": run_id}
        datasets = [row["dataset_uuid"] for row in _select(connection, "datasets", _DATASETS, named)]
        for table, which in TABLES.items():
            connection.execute(f"DELETE FROM {table} WHERE {which}", named)
        for uuid in datasets:
            connection.execute(
                "DELETE FROM datasets WHERE dataset_uuid = ? AND dataset_uuid NOT IN (SELECT source_id FROM inputs)",
                (uuid,),
            )
        connection.execute("COMMIT")


def registered_as(database: Path, run_id: str) -> list[str]:
    """The versions of registered models that are this run's, as `NAME version 1`."""
    if not database.exists():
        return []
    with _opened(database) as connection:
        found = _select(
            connection, "model_versions", "run_id = :run AND current_stage IS NOT 'Deleted_Internal'", run_id
        )
        return [f"{row['name']} version {row['version']}" for row in found]


@contextlib.contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    """The database, which is not made; what is not committed is undone.

    Raises:
        StorageError: it cannot be read or written.
    """
    try:
        connection = sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=20, isolation_level=None)
        connection.row_factory = sqlite3.Row
        with contextlib.closing(connection):
            yield connection
    except sqlite3.Error as error:
        raise StorageError(f"{database}: {error}; mend that, then: the same again") from error


def _select(connection: sqlite3.Connection, table: str, which: str, run: str | dict[str, str]) -> list[Row]:
    named = {"run": run} if isinstance(run, str) else run
    return [dict(row) for row in connection.execute(f"SELECT * FROM {table} WHERE {which}", named)]


def _rows(connection: sqlite3.Connection, run_id: str) -> dict[str, list[Row]]:
    tables = TABLES | {"datasets": _DATASETS}
    return {table: _select(connection, table, which, run_id) for table, which in tables.items()}


def _as_there(row: Row, experiment_id: str, here: Callable[[str], str]) -> Row:
    there = dict(row)
    if "experiment_id" in there:
        there["experiment_id"] = int(experiment_id)
    for column in ("artifact_uri", "artifact_location"):
        if there.get(column):
            there[column] = here(there[column])
    return there


def _dataset(connection: sqlite3.Connection, row: Row) -> str:
    """The ID of a data set in its experiment there, where it is put unless a run of that has it already."""
    same = "experiment_id = :experiment_id AND name = :name AND digest = :digest"
    found = connection.execute(f"SELECT dataset_uuid FROM datasets WHERE {same}", row).fetchone()
    if found is None:
        _insert(connection, "datasets", row)
        return str(row["dataset_uuid"])
    return str(found["dataset_uuid"])


def _insert(connection: sqlite3.Connection, table: str, row: Row) -> None:
    columns, places = ", ".join(f'"{name}"' for name in row), ", ".join(f":{name}" for name in row)
    connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})", row)
