"""What look-ups ask of `MlflowClient`, answered from an SQLite store itself: importing MLflow takes ten times as long.

It only reads, and only a database that has the tables of the MLflow installed here. What it does not understand, a
search in words that are not ours or a run that is not there, goes to MLflow's client, whose refusals stay as they are.
"""

import re
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .database import asked

NAME = r"[\w./: -]+"  # what MLflow lets metrics, settings and tags be called
CLAUSE = re.compile(
    rf"""(?P<kind>tags|params|metrics|attributes)\.(?P<quoted>"(?P<name>{NAME})"|(?P<word>\w+))\s*
    (?P<operator>!=|>=|<=|=|>|<|LIKE\b)\s*((?P<quote>['"])(?P<text>[^'"\\\n]*)(?P=quote)|(?P<number>-?\d+(\.\d+)?(e-?\d+)?))(?=\s|$)""",
    re.VERBOSE,
)
AND = re.compile(r"\s+and\s+", re.IGNORECASE)
ORDER = re.compile(
    rf"""(?P<kind>tags|params|metrics|attributes)\.("(?P<name>{NAME})"|(?P<word>\w+)) (?P<way>ASC|DESC)""", re.I
)
TABLES = {"tags": "tags", "params": "params", "metrics": "latest_metrics"}
ATTRIBUTES = {"run_id": "run_uuid", "status": "status", "start_time": "start_time"}  # those that look-ups use
AT_ONCE = 500  # parameters of one statement; SQLite of old took 999

ACTIVE_ONLY = 1  # MLflow's ViewType
INFO = ("run_uuid", "name", "experiment_id", "status", "start_time", "end_time", "lifecycle_stage", "artifact_uri")
EXPERIMENT = ("experiment_id", "name", "artifact_location", "lifecycle_stage")


class Page(list[Any]):
    """Some of the runs that were searched for. `token`: where the next ones begin; None where these are the last."""

    token: str | None = None


@dataclass(frozen=True)
class Run:
    """As MLflow's `Run`: `info`, `data` and, asked for when wanted, `inputs`."""

    info: SimpleNamespace
    data: SimpleNamespace
    database: Path

    @cached_property
    def inputs(self) -> SimpleNamespace:
        query = """
            SELECT inputs.input_uuid, datasets.name, digest, dataset_source, dataset_schema, dataset_profile,
                   input_tags.name, input_tags.value
            FROM inputs JOIN datasets ON source_id = dataset_uuid
            LEFT JOIN input_tags ON input_tags.input_uuid = inputs.input_uuid
            WHERE destination_type = 'RUN' AND destination_id = ?"""
        found: dict[str, SimpleNamespace] = {}
        with asked(self.database) as database:
            for key, *dataset, tag, value in database.execute(query, [self.info.run_id]):
                names = ("name", "digest", "source", "schema", "profile")
                dataset = SimpleNamespace(**dict(zip(names, dataset, strict=True)))
                item = found.setdefault(key, SimpleNamespace(dataset=dataset, tags=[]))
                item.tags += [SimpleNamespace(key=tag, value=value)] if tag else []
        return SimpleNamespace(dataset_inputs=list(found.values()))


class Reader:
    """A client of one SQLite store.

    Args:
        mlflow: gives MLflow's own client, for all else; it is asked once.
    """

    def __init__(self, path: Path, mlflow: Callable[[], Any]) -> None:
        self._path, self._connect = path, mlflow

    @cached_property
    def _mlflow(self) -> Any:
        return self._connect()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mlflow, name)

    def search_experiments(self, page_token: None = None) -> Any:
        """The active experiments, all on one page."""
        return Page(self._experiments("lifecycle_stage = 'active'"))

    def get_experiment(self, experiment_id: str) -> Any:
        found = self._experiments("experiment_id = ?", experiment_id)
        return found[0] if found else self._mlflow.get_experiment(experiment_id)

    def get_experiment_by_name(self, name: str) -> Any | None:
        found = self._experiments("name = ?", name)
        return found[0] if found else None

    def _experiments(self, condition: str, *values: str) -> list[Any]:
        query = f"SELECT {', '.join(EXPERIMENT)} FROM experiments WHERE {condition} ORDER BY last_update_time DESC"
        with asked(self._path) as database:
            rows = database.execute(f"{query}, experiment_id", values).fetchall()
        return [SimpleNamespace(**dict(zip(EXPERIMENT, (str(row[0]), *row[1:]), strict=True))) for row in rows]

    def get_run(self, run_id: str) -> Any:
        with asked(self._path) as database:
            found = self._runs(database, "WHERE run_uuid = ?", [run_id])
        return found[0] if found else self._mlflow.get_run(run_id)

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        query = """
            SELECT key, value, is_nan, timestamp, step FROM metrics
            WHERE run_uuid = ? AND key = ? ORDER BY timestamp, step, value"""
        with asked(self._path) as database:
            return [
                SimpleNamespace(key=key, value=float("nan") if is_nan else value, timestamp=timestamp, step=step)
                for key, value, is_nan, timestamp, step in database.execute(query, [run_id, key])
            ]

    def search_runs(
        self,
        experiment_ids: Sequence[str],
        filter_string: str = "",
        run_view_type: int = ACTIVE_ONLY,
        max_results: int = 1000,
        order_by: Sequence[str] | None = None,
        page_token: str | None = None,
    ) -> Any:
        """A page of the active runs that a filter lets through."""
        condition, order = _condition(filter_string), _order(order_by or ())
        if condition is None or order is None or run_view_type != ACTIVE_ONLY:
            given = (experiment_ids, filter_string, run_view_type, max_results, order_by, page_token)
            return self._mlflow.search_runs(*given)
        offset, marks = int(page_token or 0), ",".join("?" * len(experiment_ids))
        words = f"{order.joins} WHERE experiment_id IN ({marks}) AND lifecycle_stage = 'active'{condition.words}"
        words += f" ORDER BY {order.words} LIMIT ? OFFSET ?"
        values = [*order.values, *map(int, experiment_ids), *condition.values, max_results + 1, offset]
        with asked(self._path) as database:
            found = Page(self._runs(database, words, values))
        if len(found) > max_results:
            del found[max_results:]
            found.token = str(offset + max_results)
        return found

    def _runs(self, database: sqlite3.Connection, words: str, values: Sequence[Any]) -> list[Run]:
        columns = ", ".join(f"runs.{name}" for name in INFO)
        infos = [
            SimpleNamespace(
                **dict(zip(("run_id", "run_name", *INFO[2:]), (*row[:2], str(row[2]), *row[3:]), strict=True))
            )
            for row in database.execute(f"SELECT {columns} FROM runs {words}", values)
        ]
        ids = [info.run_id for info in infos]
        of = {kind: _of_runs(database, table, ids) for kind, table in TABLES.items()}
        for info in infos:  # of MLflow 1 the column is empty
            info.run_name = info.run_name or of["tags"][info.run_id].get("mlflow.runName")
        return [
            Run(info, SimpleNamespace(**{kind: of[kind][info.run_id] for kind in TABLES}), self._path) for info in infos
        ]


def _of_runs(database: sqlite3.Connection, table: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The tags, settings or last metrics of runs."""
    found: dict[str, dict[str, Any]] = {run: {} for run in ids}
    value = "CASE WHEN is_nan THEN NULL ELSE value END" if table == "latest_metrics" else "value"
    for first in range(0, len(ids), AT_ONCE):
        some = ids[first : first + AT_ONCE]
        query = f"SELECT run_uuid, key, {value} FROM {table} WHERE run_uuid IN ({','.join('?' * len(some))})"
        for run, key, each in database.execute(query, some):
            found[run][key] = float("nan") if each is None and table == "latest_metrics" else each
    return found


@dataclass(frozen=True)
class Part:
    """A part of a statement, and the values for its question marks."""

    words: str
    values: list[Any]
    joins: str = ""


def _condition(filter: str) -> Part | None:
    """MLflow's words of a filter as a condition of SQL; None for what is not surely understood as MLflow does.

    A run without a tag, setting or metric fits no clause about it. Of NaN, which is kept as 0, only != is true.
    """
    part = Part("", [])
    at = 0
    while at < len(filter):
        clause = CLAUSE.match(filter, at)
        found = _clause(clause) if clause else None
        joint = AND.match(filter, clause.end()) if clause else None
        if not clause or not found or not (joint or clause.end() == len(filter)):
            return None
        part = Part(f"{part.words} AND {found.words}", part.values + found.values)
        at = joint.end() if joint else clause.end()
        if joint and at == len(filter):
            return None
    return part


def _clause(clause: re.Match[str]) -> Part | None:
    kind, name, operator = clause["kind"], clause["name"] or clause["word"], clause["operator"]
    text, number = clause["text"], clause["number"]
    if kind == "attributes":
        column = None if clause["name"] else ATTRIBUTES.get(name)
        if operator == "LIKE" and column == "run_uuid" and re.fullmatch(r"[0-9a-f]+%", text or ""):
            return Part("substr(run_uuid, 1, ?) = ?", [len(text) - 1, text[:-1]])
        is_right = number.isdecimal() if column == "start_time" and number else operator in ("=", "!=") and text
        if not column or not is_right or (column == "start_time") != bool(number):
            return None
        return Part(f"runs.{column} {operator} ?", [int(number) if number else text])
    if operator == "LIKE" or (kind == "metrics") != bool(number) or (text is not None and operator not in ("=", "!=")):
        return None
    words, values = f"value {operator} ?", [name, float(number) if number else text]
    if kind == "metrics":
        words = f"({words} OR is_nan)" if operator == "!=" else f"{words} AND NOT is_nan"
    return Part(f"EXISTS (SELECT 1 FROM {TABLES[kind]} WHERE run_uuid = runs.run_uuid AND key = ? AND {words})", values)


def _order(order_by: Sequence[str]) -> Part | None:
    """MLflow's order: runs without the value last, NaN before them, ties by the later start and then by the run ID."""
    words, values, joins = [], [], ""
    for number, each in enumerate(order_by):
        if not (found := ORDER.fullmatch(each)):
            return None
        kind, name, way = found["kind"], found["name"] or found["word"], found["way"]
        if kind == "attributes":
            if found["name"] or name not in ATTRIBUTES:
                return None
            words += [f"runs.{ATTRIBUTES[name]} IS NULL", f"runs.{ATTRIBUTES[name]} {way}"]
            continue
        joins += (
            f" LEFT JOIN {TABLES[kind]} AS by{number} ON by{number}.run_uuid = runs.run_uuid AND by{number}.key = ?"
        )
        values.append(name)
        is_nan = f"WHEN by{number}.is_nan THEN 1 " if kind == "metrics" else ""
        words += [f"CASE {is_nan}WHEN by{number}.value IS NULL THEN 2 ELSE 0 END", f"by{number}.value {way}"]
    if not any(each.startswith("attributes.start_time ") for each in order_by):
        words.append("runs.start_time DESC")
    return Part(", ".join([*words, "runs.run_uuid"]), values, joins)
