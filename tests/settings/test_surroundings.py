"""MLflow's environment variables about a new run: heard or refused in one line, never passed over."""

import json

import pytest

from bestrun.errors import SettingsError
from bestrun.settings.compose import compose
from bestrun.storage.history import History
from support.lines import SHORT, TINY_NETWORK
from support.stores import mlflow_record, run_folder, sqlite_uri

ID = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in ("RUN_ID", "EXPERIMENT_ID", "EXPERIMENT_NAME", "RUN_CONTEXT", "TAGS"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)


@pytest.fixture
def settings(tiny_npz):
    return ["data=npz", f"data.path={tiny_npz}", *TINY_NETWORK, *SHORT]


def test_the_experiment_is_that_of_the_variable_where_none_is_typed(monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "Zähler 7")
    assert compose([]).config.experiment == "Zähler 7"
    assert compose(["experiment=mine"]).config.experiment == "mine"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    assert compose([]).config.experiment is None


def test_tags_of_the_variables_are_the_run_s_and_typed_ones_count_before(monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", '{"job": 17, "queue": "night", "gpu": true}')
    monkeypatch.setenv("MLFLOW_TAGS", '{"queue": "day", "team": "vision"}')
    composed = compose(["tags.team=digits"])
    assert composed.config.tags == {"job": "17", "queue": "day", "gpu": "true", "team": "digits"}
    assert composed.overrides == ["tags.team=digits"]


@pytest.mark.parametrize(
    ("name", "value", "words", "says"),
    [
        ("RUN_ID", ID, [], f"bestrun resume {ID}"),
        ("RUN_ID", "two\nlines", ["name=k"], "env -u MLFLOW_RUN_ID"),
        ("EXPERIMENT_ID", "77", [], "type experiment=NAME"),
        ("EXPERIMENT_NAME", "a/b", [], "no / and no dot in front"),
        ("EXPERIMENT_NAME", "x" * 101, [], "type experiment=NAME"),
        ("EXPERIMENT_NAME", "a\nb", [], "on one line"),
        ("TAGS", "team=vision", [], '{"team": "vision"}'),
        ("TAGS", "[" * 100_000, [], "JSON object"),
        ("TAGS", '{"a": {"b": 1}}', [], "of texts"),
        ("TAGS", '{"mlflow.user": "ada"}', [], "neither mlflow. nor bestrun. in front"),
        ("RUN_CONTEXT", '{"bestrun.run": "other"}', [], "MLFLOW_RUN_CONTEXT: tag bestrun.run"),
        ("RUN_CONTEXT", json.dumps({"a": "x" * 5001}), [], "more than 5,000 characters"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(monkeypatch, name, value, words, says):
    monkeypatch.setenv(f"MLFLOW_{name}", value)
    with pytest.raises(SettingsError) as e:
        compose(words)
    (line,) = e.value.args
    assert line.startswith(f"MLFLOW_{name}") and says in line and "\n" not in line and len(line) < 400


def test_a_typed_experiment_counts_before_a_number(monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    assert compose(["experiment=mine"]).config.experiment == "mine"


def test_all_mistakes_come_together(monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", ID)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "a/b")
    with pytest.raises(SettingsError) as e:
        compose(["seed=1", "training.batchsize=3"])
    assert [line.partition("=")[0] for line in e.value.args] == [
        "training.batchsize",
        "MLFLOW_RUN_ID",
        "MLFLOW_EXPERIMENT_NAME",
    ]


def test_a_run_goes_where_the_variables_say_and_is_resumed_by_its_id(bestrun, home, settings):
    env = {"MLFLOW_EXPERIMENT_NAME": "theirs", "MLFLOW_TAGS": '{"team": "vision"}'}
    assert bestrun("train", *settings, "name=k", env=env).code == 0
    run = mlflow_record(sqlite_uri(home), "k")[0]
    started = History.read(run_folder(home, "k").journal).started
    assert started["experiment"] == "theirs" and run.data.tags["team"] == "vision"
    named = {"MLFLOW_RUN_ID": run.info.run_id}
    refused = bestrun("train", *settings, "name=other", env=named)
    assert refused.code == 2 and refused.err.count("\n") == 1 and run.info.run_id in refused.err
    assert bestrun("rerun", "k", env=named).code == 2
    assert not run_folder(home, "other").path.exists()
    more = bestrun("resume", "training.max_steps=80", "training.patience_steps=80", env=named)
    assert more.code == 0, more.err
    assert History.read(run_folder(home, "k").journal).last_evaluation_step == 80
    again = bestrun("rerun", "k", "name=again", env={"MLFLOW_EXPERIMENT_NAME": "elsewhere"})
    assert again.code == 0  # the run has an experiment of its own, which is kept
    assert History.read(run_folder(home, "again").journal).started["experiment"] == "theirs"


def test_a_sweep_stands_in_the_variable_s_experiment_and_goes_on_there_alone(bestrun, home, settings):
    words = ["train", "-m", *settings, "seed=0,1", "sweep.name=two", "training.max_steps=20"]
    assert bestrun(*words, env={"MLFLOW_EXPERIMENT_NAME": "theirs"}).code == 0
    for name in ("two-000", "two-001"):
        assert History.read(run_folder(home, name).journal).started["experiment"] == "theirs"
    told = bestrun(*words)
    assert told.code == 2 and "stands in theirs" in told.err and told.err.count("\n") == 1
