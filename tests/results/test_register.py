"""MLflow models of our runs: made once, of proved checkpoints alone, and served where bestrun is not installed."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pytest

from bestrun.storage.journal import read_journal
from support.looks import tree
from support.pages import free_port
from support.processes import forget_bestrun
from support.stores import assert_record_agrees, mlflow_record, run_folder, sqlite_uri

CHAMPION = ["--name", "digits", "--alias", "champion"]


def client_of(uri):
    from mlflow import MlflowClient

    return MlflowClient(uri)


def logged_models(uri, run):
    """The LoggedModels of a run, the earliest first."""
    client = client_of(uri)
    every = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_logged_models(every, f"source_run_id = '{run.info.run_id}'")
    return sorted(found, key=lambda model: model.creation_timestamp)


def logged_model(trained):
    """The one LoggedModel of `trained`, and where its files are."""
    (model,) = logged_models(trained.uri, mlflow_record(trained.uri, "trained")[0])
    return model, files_of(model)


def files_of(model):
    return Path(model.artifact_location.removeprefix("file://"))


def versions(uri, name):
    return client_of(uri).search_model_versions(f"name = '{name}'")


@pytest.fixture(scope="module")
def champion(trained):
    """`trained` registered as digits@champion; forgotten after these tests."""
    result = trained.bestrun("register", "trained", *CHAMPION, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report.pop("function")["is_same"] is not False
    yield report
    client_of(trained.uri).delete_registered_model("digits")


def test_a_registered_run_says_what_it_is(trained, champion):
    version = client_of(trained.uri).get_model_version_by_alias("digits", "champion")
    best = json.loads((trained.folder / "result.json").read_text())["best"]
    tags = {"bestrun.run": "trained", "bestrun.best_sha256": best["sha256"], "bestrun.best_step": str(best["step"])}
    assert version.tags == tags and version.run_id == trained.run_id and best["sha256"] in version.description
    assert champion == {
        "name": "digits", "alias": "champion", "version": 1, "uri": "models:/digits@champion",
        "run_id": trained.run_id, "run_name": "trained",
        "checkpoint": {"step": best["step"], "sha256": best["sha256"]},
    }  # fmt: skip


def test_registered_once_more_it_is_the_same_version(trained, champion):
    before = tree(logged_model(trained)[1])
    again = json.loads(trained.bestrun("register", "digits@champion", *CHAMPION, "--json").out)
    other = json.loads(trained.bestrun("register", "trained", "--name", "digits", "--alias", "next", "--json").out)
    for report in (again, other):
        assert report.pop("function") == {"is_same": None, "words": "its MLflow model is the one that was made before"}
    assert again == champion and other == champion | {"alias": "next", "uri": "models:/digits@next"}
    assert len(versions(trained.uri, "digits")) == 1 and tree(logged_model(trained)[1]) == before


def test_a_damaged_model_is_made_anew(trained, champion):
    (network,) = logged_model(trained)[1].rglob("model.keras")
    whole = network.read_bytes()
    network.write_bytes(whole[:-1] + b"!")
    again = json.loads(trained.bestrun("register", "trained", *CHAMPION, "--json").out)
    assert again.pop("function")["words"].endswith("bit by bit") and again == champion
    assert network.stat().st_size == len(whole) and network.read_bytes()[-1:] != b"!"


def test_nothing_is_set_if_verification_fails(trained, changed):  # noqa: F811
    path = changed(next((trained.artifacts / "checkpoints").iterdir()))
    path.write_bytes(path.read_bytes()[:-1])
    result = trained.bestrun("register", "trained", "--name", "unproved", "--alias", "champion")
    assert result.code == 5 and result.err.count("\n") == 1
    assert "unproved" not in [model.name for model in client_of(trained.uri).search_registered_models()]


@pytest.mark.parametrize("name", ["a/b", "a:b", "..", "", "a b", "ü", "-a", "a\n", "a" * 300])
def test_a_bad_name_is_refused(trained, name):
    result = trained.bestrun("register", "trained", f"--name={name}", "--alias", "champion")
    assert result.code == 2 and result.err.count("\n") == 1 and "as in --name digits" in result.err


@pytest.mark.parametrize("alias", ["latest", "LATEST", "v1", "V2", "a@b", "a.b", "", "a" * 300])
def test_a_bad_alias_is_refused(trained, alias):
    result = trained.bestrun("register", "trained", "--name", "digits", f"--alias={alias}")
    assert result.code == 2 and result.err.count("\n") == 1 and "as in --alias champion" in result.err


def test_an_alias_is_a_run_everywhere(trained, champion, tmp_path):
    restored = json.loads(trained.bestrun("restore", "digits@champion", "--json").out)
    fetched = trained.bestrun("fetch", "digits@champion", "--out", tmp_path / "out", "--json")
    assert restored["run_id"] == json.loads(fetched.out)["run_id"] == trained.run_id
    resumed = trained.bestrun("resume", "digits@champion")
    assert resumed.code == 2 and "run trained is complete" in resumed.err


def test_an_alias_is_refused_when_its_run_has_another_best(trained, champion, database, tmp_path):  # noqa: F811
    with database:
        database.execute("UPDATE tags SET value = ? WHERE key = 'bestrun.best_sha256'", ["ab" * 32])
    result = trained.bestrun("fetch", "digits@champion", "--out", tmp_path / "out")
    assert result.code == 5 and "abababab" in result.err and result.err.count("\n") == 1
    assert f"bestrun register {trained.run_id} --name digits --alias champion" in result.err


def test_an_alias_of_a_deleted_run_says_how_to_bring_it_back(trained, champion, database):  # noqa: F811
    with database:
        database.execute("UPDATE runs SET lifecycle_stage = 'deleted'")
    result = trained.bestrun("restore", "digits@champion")
    assert result.code == 2 and f"mlflow runs restore --run-id {trained.run_id}" in result.err


def test_an_alias_of_another_experiment_is_refused(trained, champion, database):  # noqa: F811
    with database:
        database.execute("INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (7, 'other', 'active')")
    result = trained.bestrun("restore", "digits@champion", "--experiment", "other")
    assert result.code == 2 and "not in this experiment" in result.err


# ---- tracking.log_model ----


def test_a_finished_run_logs_its_model_once_and_pickles_nothing(trained):
    events, _ = read_journal(trained.folder / "journal.jsonl")
    (made,) = [event for event in events if event["event"] == "model"]
    run = mlflow_record(trained.uri, "trained")[0]
    model, folder = logged_model(trained)
    assert model.status == "READY" and model.name == "trained" and model.params == run.data.params
    assert model.tags["bestrun.best_sha256"] == made["best_sha256"] == run.data.tags["bestrun.best_sha256"]
    assert [(each.model_id, each.step) for each in run.outputs.model_outputs] == [(model.model_id, made["step"])]
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "serving.py", "model.keras",
        "input_example.json", "serving_input_example.json",
    }  # fmt: skip
    requirements = (folder / "requirements.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in requirements] == ["mlflow", "tensorflow", "keras", "numpy", "pandas"]
    assert all(line.partition("==")[2] for line in requirements)


def test_its_metrics_are_the_runs_each_with_the_data_it_was_measured_on(trained):
    model, _ = logged_model(trained)
    run = mlflow_record(trained.uri, "trained")[0]
    best = json.loads((trained.folder / "result.json").read_text())["best"]
    assert trained.bestrun("restore", "trained").code == 0  # tests it, which the model shows from then on
    (model,) = logged_models(trained.uri, run)
    found = {metric.key: metric for metric in model.metrics}
    assert {metric.step for metric in model.metrics} == {best["step"]} and len(found) == len(model.metrics)
    rows = mlflow_record(trained.uri, "trained")[0].data.metrics
    assert found.keys() == {key for key in rows if key.startswith(("train/", "val/", "test/"))}
    assert found["val/accuracy"].value == best["value"] and found["test/loss"].value == rows["test/loss"]
    known = {(each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs}
    assert {(metric.dataset_name, metric.dataset_digest) for metric in model.metrics} <= known
    by_accuracy = "metrics.`val/accuracy` >= 0"
    assert [each.model_id for each in client_of(trained.uri).search_logged_models(["1"], by_accuracy)]


CALLS = (
    "get_run", "search_logged_models", "create_logged_model", "set_logged_model_tags", "log_batch", "log_outputs",
    "finalize_logged_model",
)  # fmt: skip


class Losing:
    """MLflow's client, whose call of one name is lost once: on its way there, or with its answer."""

    def __init__(self, client, name, answer):
        self.client, self.name, self.answer = client, name, answer

    def __getattr__(self, name):
        def call(*args, **named):
            if name != self.name:
                return getattr(self.client, name)(*args, **named)
            self.name = None
            if self.answer:
                getattr(self.client, name)(*args, **named)
            raise ConnectionError("lost")

        return call


@pytest.fixture
def another_run(trained):
    """A store, and a run in it that has no model yet, in an experiment of its own."""
    from bestrun.tracking.store import connect

    store = connect(trained.uri)
    experiment = store.client.create_experiment(f"of {time.time_ns()}", (trained.home / "elsewhere").as_uri())
    return store, store.client.create_run(experiment, tags={"bestrun.run": "another.run"})


@pytest.mark.parametrize("answer", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_whatever_call_is_lost_there_is_one_model_and_it_is_whole(trained, another_run, tmp_path, name, answer):
    from bestrun.tracking.models import Row, is_whole, send_model

    store, run = another_run
    source = next((trained.folder / "model").iterdir())
    words = (run.info.run_id, source, "ab" * 32, 20, [Row("val/accuracy", 0.5, 1, 20)])
    with pytest.raises(ConnectionError):
        send_model(dataclasses.replace(store, client=Losing(store.client, name, answer)), *words)
    model = send_model(store, *words)
    (again,) = logged_models(trained.uri, run)
    assert again.model_id == model.model_id and is_whole(store, again, tmp_path / "there")
    assert [metric.value for metric in again.metrics] == [0.5]
    outputs = store.client.get_run(run.info.run_id).outputs.model_outputs
    assert [each.model_id for each in outputs] == [model.model_id]


@pytest.mark.parametrize("then, now", [("true", "best"), ("false", "none"), ("none", "none")])
def test_the_setting_is_read_as_it_was_written_once(then, now):
    from bestrun.settings.compose import compose
    from bestrun.settings.config import flatten
    from bestrun.storage.history import History

    config = compose([f"tracking.log_model={then}"]).config
    history = History([{"event": "started", "settings": flatten(config) | {"tracking.log_model": then}}])
    assert config.tracking.log_model == history.settings["tracking.log_model"] == now


@pytest.mark.slow
def test_a_model_made_while_the_server_is_away_is_sent_by_sync(bestrun, home, settings, mlflow_server):
    mlflow_server.stop()
    try:
        words = [*settings, "name=later", "tracking.log_model=best", f"tracking.uri={mlflow_server.uri}"]
        result = bestrun("train", *words, timeout=200)
        assert result.code == 6, result.err
    finally:
        mlflow_server.start()
    assert bestrun("sync", "later").code == 0
    run = assert_record_agrees(mlflow_server.uri, run_folder(home, "later"))
    at_server = ["--tracking-uri", mlflow_server.uri, "--name", "later", "--alias", "champion", "--json"]
    first = bestrun("register", "later", *at_server)
    assert first.code == 0, first.err
    assert json.loads(bestrun("register", "later@champion", *at_server).out) == json.loads(first.out)
    (version,) = versions(mlflow_server.uri, "later")
    (model,) = logged_models(mlflow_server.uri, run)
    assert version.source == model.artifact_location and version.run_id == run.info.run_id
    restored = bestrun("restore", "later@champion", "--tracking-uri", mlflow_server.uri, "--json")
    assert json.loads(restored.out)["run_id"] == run.info.run_id


def test_a_model_is_made_when_a_run_is_finished_and_superseded_by_a_better_best_except_where_it_is_registered(
    bestrun, home, settings
):
    words = [*settings, "objective.metric=val/loss", "name=it", "tracking.log_model=best"]
    assert bestrun("train", *words, env={"BESTRUN_FAULT": "F9:3"}).code == -signal.SIGKILL
    uri, folder = sqlite_uri(home), run_folder(home, "it")
    assert not (folder.path / "model").exists()
    assert bestrun("resume", "it").code == 0
    run = mlflow_record(uri, "it")[0]
    (first,) = logged_models(uri, run)

    def go_on(steps):
        assert bestrun("resume", "it", f"training.max_steps={steps}", f"training.patience_steps={steps}").code == 0
        assert len(list((folder.path / "model").iterdir())) == 1
        *kept, last = logged_models(uri, run)
        assert last.status == "READY"
        return kept, last

    kept, second = go_on(120)
    assert kept == [] and second.model_id != first.model_id and not files_of(first).exists()
    assert bestrun("register", "it", *CHAMPION).code == 0
    kept, third = go_on(180)
    assert [model.model_id for model in kept] == [second.model_id] != [third.model_id] and files_of(second).exists()
    assert json.loads(bestrun("register", "it", *CHAMPION, "--json").out)["version"] == 2
    events, _ = read_journal(folder.journal)
    made = [event["best_sha256"] for event in events if event["event"] == "model"]
    bests = [event["best"]["sha256"] for event in events if event["event"] == "stopped"]
    assert made == list(dict.fromkeys(bests)) and len(made) == 3


def test_a_model_that_cannot_be_made_is_a_warning_at_the_end_of_a_whole_run(bestrun, home, settings):
    folder = run_folder(home, "unwritable")
    process = bestrun.start("train", *settings, "name=unwritable", "tracking.log_model=best")
    while not folder.log.exists():
        time.sleep(0.02)
    (folder.path / "model").touch()  # a file where a folder is to be
    result = process.wait()
    assert result.code == 0 and "bestrun register unwritable" in result.err + result.out
    assert json.loads(folder.result.read_text())["stop_reason"] == "max_steps"
    assert bestrun("register", "unwritable", *CHAMPION).code == 0


# ---- used by others ----

LOAD = """
import json, sys
import mlflow, numpy
try:
    import bestrun
except ImportError:
    mlflow.set_tracking_uri(sys.argv[1])
    model = mlflow.pyfunc.load_model("models:/digits@champion")
    images = numpy.load(sys.argv[2])["x_test"][:100, :, :, None]
    answer = model.predict(images)
    import mlflow.keras
    network = mlflow.keras.load_model("models:/digits@champion")
    assert numpy.allclose(network.predict(images, verbose=0), numpy.stack(answer["probabilities"]), rtol=0, atol=1e-6)
    print(answer.to_json(orient="split", double_precision=15))
"""


def _load_it(uri, npz):
    """LOAD, in this process, once bestrun cannot be imported in it."""
    forget_bestrun()
    warnings.filterwarnings("error", category=UserWarning, module=r"mlflow\Z")
    sys.argv = ["load", uri, npz]
    exec(LOAD, {})


def test_others_load_it_without_bestrun(trained, champion, small_mnist_npz, start_process, tmp_path):
    result = start_process(_load_it, trained.uri, str(small_mnist_npz), cwd=tmp_path).wait()
    assert result.code == 0, result.err
    assert_answers_are_those_of_predict(trained, small_mnist_npz, tmp_path, result.out)


def assert_answers_are_those_of_predict(trained, npz, tmp_path, out):
    answer = json.loads(out.splitlines()[-1])
    assert answer["columns"] == ["class", "probabilities"] and len(answer["data"]) == 100
    assert_answers_equal_predictions(trained, npz, tmp_path, answer["data"])


@pytest.mark.slow
def test_others_load_it_with_mlflow_alone(trained, champion, small_mnist_npz, without_bestrun, tmp_path):
    words = [sys.executable, "-W", "error::UserWarning:mlflow", "-c", LOAD, trained.uri, small_mnist_npz]
    used = subprocess.run(words, env=without_bestrun, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert_answers_are_those_of_predict(trained, small_mnist_npz, tmp_path, used.stdout)


def assert_answers_equal_predictions(trained, npz, tmp_path, answers):
    """What MLflow answers for the first 100 test images, and what `bestrun predict` says of them."""
    np.savez(tmp_path / "hundred.npz", x=np.load(npz)["x_test"][:100])
    result = trained.bestrun("predict", "trained", tmp_path / "hundred.npz", "--json")
    predictions = json.loads(result.out)["predictions"]
    assert [label for label, _ in answers] == [row["class"] for row in predictions]
    assert np.allclose([row for _, row in answers], [row["probabilities"] for row in predictions], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_mlflow_serves_what_predict_predicts(trained, champion, small_mnist_npz, without_bestrun, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/digits@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow looks there for uvicorn
    environment = without_bestrun | {"MLFLOW_TRACKING_URI": trained.uri, "PATH": path}
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server, tmp_path / "log")
        images = np.load(small_mnist_npz)["x_test"][:100, :, :, None]
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": images.tolist()}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answers = json.load(response)["predictions"]
    finally:
        end(server)
    rows = [(row["class"], row["probabilities"]) for row in answers]
    assert_answers_equal_predictions(trained, small_mnist_npz, tmp_path, rows)


def wait_for(url, server, log):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                return response.status
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"mlflow models serve did not start\n{log.read_text()[-3000:]}")


def end(server):
    """The whole process group: workers outlive the process that started them."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
