"""Whatever happens to the tracking server, training goes on, nothing is lost and nothing is doubled."""

import json
import sqlite3
import statistics
import sys
import threading
import time
from pathlib import Path

import pytest

from bestrun.errors import SettingsError
from bestrun.storage.files import StorageError, read_json
from bestrun.storage.home import create_home, find_home
from bestrun.storage.journal import Journal, read_journal
from bestrun.tracking.mirror import Mirror
from bestrun.tracking.refusals import is_permanent
from bestrun.tracking.sender import Sender
from bestrun.tracking.sync import sync
from support.lines import SMALL_NETWORK
from support.looks import until
from support.made_runs import add_evaluation, add_stop, make_run
from support.proxy import Proxy
from support.stores import assert_record_agrees, run_folder, sqlite_uri

SHORT = ["training.max_steps=80", "training.evaluate_every_steps=20", "training.patience_steps=80"]
WITHOUT = ["pictures=false", "tracking.log_model=none"]
WITH = ["pictures=true", "tracking.log_model=best"]  # which takes as long as the rest of such a run
QUICK_CLIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}  # the user's environment wins over our 5 s

# When a fault begins: the requests of this pattern meet it first. The same words as in docs/reliability.md.
PHASES = {
    "start": r"^GET \S*experiments/get-by-name",
    "create": r"^POST \S*runs/create",
    "middle": r"^POST \S*log-batch .*val/accuracy",
    "upload": r"^PUT \S*checkpoints/best",
    "end": r"stop_reason|runs/update",
}


@pytest.fixture
def settings(small_mnist_npz):
    return ["data=npz", f"data.path={small_mnist_npz}", *SMALL_NETWORK, *SHORT, *WITHOUT]


@pytest.fixture
def proxy(mlflow_server):
    proxy = Proxy(mlflow_server.port)
    yield proxy
    proxy.close()


def train(seconds, guarded, *words):
    """`bestrun train`, waiting this long at the end for MLflow; `guarded`: the main thread may not speak to it."""
    from bestrun.cli.main import main
    from bestrun.run import carry

    carry.MIRROR_SECONDS = seconds
    if guarded:
        create_home(find_home())
        forbid_tracking_in_the_main_thread()
    sys.argv = ["bestrun", "train", *words]
    main()


def forbid_tracking_in_the_main_thread():
    """Ends the process with 99 when it does; prints the kinds of calls that other threads made."""
    import os

    from mlflow import MlflowClient

    told = set()

    def check(kind):
        if threading.current_thread() is threading.main_thread():
            print(f"MAIN THREAD: {kind}", file=sys.stderr)
            sys.stderr.flush()
            os._exit(99)
        if kind not in told:
            told.add(kind)
            print(f"elsewhere: {kind}", file=sys.stderr)

    def audit(event, args):
        if event in ("socket.connect", "sqlite3.connect"):
            check(event)

    def guard(method):
        def guarded(*args, **kwargs):
            check("client")
            return method(*args, **kwargs)

        return guarded

    sys.addaudithook(audit)
    for name, method in list(vars(MlflowClient).items()):
        if callable(method) and not name.startswith("_"):
            setattr(MlflowClient, name, guard(method))


def said(folder, text):
    return folder.log.read_text().count(text) if folder.log.exists() else 0


def assert_server_has_it(server, folder, status="FINISHED"):
    run = assert_record_agrees(server.uri, folder)  # fails as well where MLflow has two runs of this name
    assert run.info.status == status
    return run


# ---- R8: every fault, in every phase, with and without recovery ----

FAULTS = ["refuse", "die", "500", "502", "503", "504", "429", "hang", "truncated", "late", "lost answer"]
QUICK = {
    ("refuse", "start", "recovers"),
    ("lost answer", "create", "recovers"),
    ("429", "upload", "recovers"),
    ("die", "end", "recovers"),
    ("hang", "middle", "never"),
    ("503", "end", "never"),
}


def cases():
    for mode in FAULTS:
        phases = ["start", "middle", "end"]
        if mode in ("late", "lost answer", "hang", "429"):
            phases += ["create", "upload"]
        for phase in phases:
            for outcome in ("recovers", "never"):
                case = (mode, phase, outcome)
                yield pytest.param(*case, id="-".join(case), marks=[] if case in QUICK else [pytest.mark.slow])


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("mode", "phase", "outcome"), list(cases()))
def test_an_outage_neither_loses_nor_doubles_anything(
    bestrun, start_process, home, settings, mlflow_server, proxy, mode, phase, outcome
):
    name = f"{mode}-{phase}-{outcome}".replace(" ", "-")
    words = [*settings, f"name={name}", f"tracking.uri={proxy.uri}"]
    if phase == "upload" or mode == "late":  # more is sent than checkpoints, or for longer
        words += WITH
    # What the server does late, it does while the run lasts: a second run created after its end nobody could remove
    every = 200 if mode == "late" else 20
    words += [f"training.{key}={4 * every}" for key in ("max_steps", "patience_steps")]
    words.append(f"training.evaluate_every_steps={every}")
    folder = run_folder(home, name)
    proxy.fail(mode, PHASES[phase])
    process = start_process(train, 30 if outcome == "recovers" else 3, False, *words, cwd=home, env=QUICK_CLIENT)
    if outcome == "recovers":
        until(proxy.began.is_set, process)
        until(lambda: said(folder, "MLflow is behind"), process)
        proxy.heal()
    result = process.wait(120)
    assert proxy.faults > 0
    assert result.code == (0 if outcome == "recovers" else 6), result.out + result.err
    events, _ = read_journal(folder.journal)
    assert [event.get("step") for event in events if event["event"] == "evaluation"] == [every * i for i in range(5)]
    assert events[-1]["reason"] == "max_steps"
    assert said(folder, "MLflow is behind") == 1 and "Traceback" not in folder.log.read_text()
    if outcome == "recovers":
        assert said(folder, "MLflow has caught up") == 1
    else:
        assert said(folder, "MLflow has caught up") == 0
        assert f"bestrun sync {name}" in result.out + result.err
        assert bestrun("sync", name, env=QUICK_CLIENT).code == 6  # it is still away
        proxy.heal()
        done = bestrun("sync", name, "--json")
        assert done.code == 0 and json.loads(done.out)[0]["sent"] > 0, done.out + done.err
    assert_server_has_it(mlflow_server, folder)
    again = bestrun("sync", name, "--json")
    assert again.code == 0 and json.loads(again.out)[0]["sent"] == 0
    assert not (folder.path / "upload").exists()


@pytest.mark.slow
def test_a_slow_server_is_no_outage(bestrun, start_process, home, settings, mlflow_server, proxy):
    proxy.fail("slow")
    words = [*settings, "name=slow", f"tracking.uri={proxy.uri}"]
    assert start_process(train, 60, False, *words, cwd=home).wait(120).code == 0
    assert said(run_folder(home, "slow"), "MLflow is behind") == 0
    assert_server_has_it(mlflow_server, run_folder(home, "slow"))


@pytest.mark.slow
def test_a_finished_run_waits_fifteen_seconds_for_mlflow_and_no_longer(bestrun, home, settings, proxy):
    proxy.fail("refuse")
    result = bestrun("train", *settings, "name=patient", f"tracking.uri={proxy.uri}")
    assert result.code == 6
    folder = run_folder(home, "patient")
    ended = read_journal(folder.journal)[0][-1]["time_ms"] / 1000
    assert 14.5 < folder.result.stat().st_mtime - ended < 20


@pytest.mark.slow
def test_a_real_server_killed_and_started_again_catches_up(bestrun, home, settings, mlflow_server):
    """No proxy: SIGKILL for the server's whole process group in the middle of a run."""
    words = [*settings, "training.max_steps=4000", "training.patience_steps=4000", "name=real"]
    folder = run_folder(home, "real")
    process = bestrun.start("train", *words, f"tracking.uri={mlflow_server.uri}")
    try:
        until(lambda: read_json(folder.mirror).get("acknowledged"), process)
        mlflow_server.stop(9)
        until(lambda: said(folder, "MLflow is behind"), process)
    finally:
        mlflow_server.start()
    code = process.wait(200).code
    if code == 6:  # the server took longer than the run and its 15 s
        assert bestrun("sync", "real").code == 0
    assert code in (0, 6)
    assert_server_has_it(mlflow_server, folder)


# ---- training is never held up ----


def test_the_training_thread_makes_no_tracking_call(start_process, home, settings, mlflow_server):
    words = [*settings, *WITH, "name=guarded", f"tracking.uri={mlflow_server.uri}"]
    result = start_process(train, 30, True, *words, cwd=home).wait()
    assert result.code == 0, result.err
    assert "elsewhere: client" in result.err and "elsewhere: socket.connect" in result.err
    assert_server_has_it(mlflow_server, run_folder(home, "guarded"))


@pytest.mark.slow
def test_a_hanging_server_does_not_slow_training(start_process, home, settings, mlflow_server, proxy):
    """Printed for docs/reliability.md; the limit only catches a loop that waits for a request of 5 s."""
    long = ["training.max_steps=1500", "training.evaluate_every_steps=100", "training.patience_steps=1500"]
    seconds = {"healthy": [], "hang": []}
    for turn in range(3):
        for kind, found in seconds.items():
            proxy.heal()
            if kind == "hang":
                proxy.fail("hang", PHASES["middle"])
            words = [*settings, *long, f"name=timed-{kind}-{turn}", f"tracking.uri={proxy.uri}"]
            result = start_process(train, 1 if kind == "hang" else 30, False, *words, cwd=home).wait(150)
            assert result.code == (6 if kind == "hang" else 0), result.out + result.err
            times = [e["time_ms"] for e in read_journal(run_folder(home, f"timed-{kind}-{turn}").journal)[0][1:]]
            found.append((times[-1] - times[0]) / 1000)
    print("seconds of training:", seconds)
    healthy, hang = (statistics.median(seconds[kind]) for kind in ("healthy", "hang"))
    assert hang < 1.5 * healthy + 1


# ---- refusals that will not change ----


@pytest.mark.slow
def test_a_run_deleted_while_it_trains_is_said_once_and_training_finishes(bestrun, home, settings, mlflow_server):
    from mlflow import MlflowClient

    words = [*settings, *WITH, "training.max_steps=400", "training.patience_steps=400", "name=deleted"]
    folder = run_folder(home, "deleted")
    client = MlflowClient(mlflow_server.uri)
    process = bestrun.start("train", *words, f"tracking.uri={mlflow_server.uri}")
    until(lambda: read_json(folder.mirror).get("acknowledged"), process)
    run_id = read_json(folder.mirror)["run_id"]
    client.delete_run(run_id)
    result = process.wait()
    assert result.code == 6, result.err
    assert said(folder, "MLflow refuses this run") == 1 and said(folder, "MLflow is behind") == 0
    assert read_journal(folder.journal)[0][-1]["step"] == 400
    refused = bestrun("sync", "deleted")
    assert refused.code == 6 and f"mlflow runs restore --run-id {run_id}" in refused.out
    client.restore_run(run_id)
    assert bestrun("sync", "deleted").code == 0
    assert_server_has_it(mlflow_server, folder)
    client.delete_run(run_id)
    folder.mirror.unlink()  # what the message offers instead
    assert bestrun("sync", "deleted", "--tracking-uri", mlflow_server.uri).code == 0
    assert assert_server_has_it(mlflow_server, folder).info.run_id != run_id


def test_a_deleted_experiment_is_one_line_and_training_finishes(bestrun, home, settings, mlflow_server):
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server.uri)
    experiment = client.create_experiment("gone")
    client.delete_experiment(experiment)
    result = bestrun("train", *settings, "name=orphan", "experiment=gone", f"tracking.uri={mlflow_server.uri}")
    folder = run_folder(home, "orphan")
    assert result.code == 6, result.err
    lines = [line for line in folder.log.read_text().splitlines() if "refuses this run" in line]
    assert len(lines) == 1 and f"mlflow experiments restore -x {experiment}" in lines[0]
    client.restore_experiment(experiment)
    assert bestrun("sync", "orphan").code == 0
    assert_server_has_it(mlflow_server, folder)


def test_a_server_that_is_no_mlflow_is_named_once(home, mlflow_server, proxy, caplog):
    folder = make_run(home, "wrong")
    proxy.fail("404")
    mirror = Mirror(folder, proxy.uri)
    with caplog.at_level("INFO", "bestrun"):
        mirror.start()
        assert mirror.finish(10) is False
    assert caplog.text.count("MLflow refuses this run") == 1 and "MLflow is behind" not in caplog.text
    assert proxy.uri in caplog.text and "404" in caplog.text
    assert len(proxy.seen) <= 2, "asked again and again"
    (report,) = sync([folder], home=home / "mlruns", setting=mlflow_server.uri)
    assert report["state"] == "complete", report
    assert_server_has_it(mlflow_server, folder)


# ---- where a run's MLflow is, and its password ----


def test_sync_finds_the_server_that_only_the_environment_had_named(bestrun, home, settings, mlflow_server, proxy):
    proxy.fail("refuse")
    words = [*settings, "name=environment"]
    train_env = {"MLFLOW_TRACKING_URI": proxy.uri}
    starter = bestrun.starter(train, 0.5, False, *words, cwd=home, env=train_env)
    assert starter.wait().code == 6
    proxy.heal()
    assert bestrun("sync", "environment").code == 0  # in another shell
    assert_server_has_it(mlflow_server, run_folder(home, "environment"))
    assert sqlite3.connect(home / "mlruns" / "mlflow.db").execute("select count(*) from runs").fetchone() == (0,)


def test_a_password_in_the_address_stands_nowhere(bestrun, start_process, home, settings, mlflow_server, proxy):
    uri = proxy.uri.replace("//", "//ada:s3cr3t-w0rd@")
    words = [*settings, "name=secret", f"tracking.uri={uri}"]
    proxy.fail("503", PHASES["upload"])
    process = start_process(train, 1, False, *words, cwd=home)
    result = process.wait()
    folder = run_folder(home, "secret")
    assert result.code == 6 and said(folder, "MLflow is behind") == 1
    assert any(authorization for _, authorization in proxy.seen), "the password was to be used"
    proxy.heal()
    acknowledged = read_json(folder.mirror)["acknowledged"]
    told = bestrun("sync", "secret")
    assert told.code == 6 and "MLFLOW_TRACKING_URI" in told.out and "--tracking-uri" in told.out
    proxy.fail("refuse")
    away = bestrun("sync", "secret", "--tracking-uri", uri)
    proxy.heal()
    assert away.code == 6
    assert read_json(folder.mirror)["acknowledged"] == acknowledged
    other = bestrun("sync", "secret", env={"MLFLOW_TRACKING_URI": f"sqlite:///{home}/other.db"})
    assert other.code == 6 and not (home / "other.db").exists(), "sent to a store that is not the run's"
    done = bestrun("sync", "secret", "--json", env={"MLFLOW_TRACKING_URI": uri})
    left = len(read_journal(folder.journal, acknowledged)[0])
    assert done.code == 0 and json.loads(done.out)[0]["sent"] == left, "the acknowledged position was forgotten"
    for again in (bestrun("sync", "secret", "--json"), bestrun("sync", "secret", "--json", "--tracking-uri", uri)):
        assert again.code == 0 and json.loads(again.out)[0]["sent"] == 0, again.out
    assert_server_has_it(mlflow_server, folder)
    restored = bestrun("restore", "secret", "--tracking-uri", uri, "--out", "kept")
    assert restored.code == 0, restored.err
    screens = [run.out + run.err for run in (result, told, away, other, done, again, restored)]
    assert not [text for text in screens if "s3cr3t" in text]
    leaks = [
        path
        for root in (home, mlflow_server.folder)
        for path in root.rglob("*")
        if path.is_file() and b"s3cr3t" in path.read_bytes()
    ]
    assert not leaks


@pytest.mark.slow
@pytest.mark.parametrize("how", ["address", pytest.param("user", marks=pytest.mark.slow)])
def test_one_sync_sends_all_runs_of_an_address_whose_password_is_kept_nowhere(
    bestrun, home, settings, mlflow_server, proxy, how
):
    uri = proxy.uri.replace("//", "//ada:w0rd@")
    short = [*settings, "training.max_steps=4", "training.evaluate_every_steps=2"]
    proxy.fail("refuse")
    for name in ("a", "b"):
        process = bestrun.starter(train, 0.5, False, *short, f"name={how}-{name}", f"tracking.uri={uri}", cwd=home)
        assert process.wait().code == 6
    assert bestrun("train", *short, "name=c").code == 0
    proxy.heal()
    told = bestrun("sync", "--all")
    assert told.code == 6 and told.out.count("MLFLOW_TRACKING_URI=ADDRESS bestrun sync") == 1 == told.out.count(
        "as above"
    )
    user = {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "w0rd"}
    done = bestrun("sync", "--all", env={"MLFLOW_TRACKING_URI": uri} if how == "address" else user)
    assert done.code == 0 and done.out.count("complete") == 3, done.out
    for name in ("a", "b"):
        assert_server_has_it(mlflow_server, run_folder(home, f"{how}-{name}"))
    names = sqlite3.connect(home / "mlruns" / "mlflow.db").execute("select name from runs").fetchall()
    assert names == [("c",)]


# ---- the sender alone, no TensorFlow ----


@pytest.fixture
def uri(home):
    return sqlite_uri(home)


@pytest.fixture
def client(uri):
    from mlflow import MlflowClient

    return MlflowClient(uri)


def tables(home):
    """Everything MLflow's database holds, times of its own excepted."""
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as database:
        names = [row[0] for row in database.execute("select name from sqlite_master where type = 'table'")]
        return {name: sorted(map(repr, database.execute(f'select * from "{name}"'))) for name in names}


def artifacts(client, run_id, folder="checkpoints"):
    return [item.path for item in client.list_artifacts(run_id, folder)]


class Once:
    """A client one of whose methods works, and then loses its answer, once."""

    def __init__(self, client, method):
        self._client, self._method = client, method

    def __getattr__(self, name):
        def lossy(*args, **kwargs):
            getattr(self._client, name)(*args, **kwargs)
            self._method = None
            raise ConnectionError("the answer was lost")

        return lossy if name == self._method else getattr(self._client, name)


@pytest.mark.parametrize(
    "method", ["create_run", "log_batch", "log_inputs", "log_artifact", "update_run", "set_terminated"]
)
def test_a_lost_answer_makes_one_run_with_everything_once(home, uri, client, method, monkeypatch):
    from dataclasses import replace

    from bestrun.tracking import sender as module
    from bestrun.tracking.store import Store

    real, repository = module.connect, Store.artifacts
    monkeypatch.setattr(module, "connect", lambda uri: replace(real(uri), client=Once(real(uri).client, method)))
    if method == "log_artifact":
        lossy = []

        def once(store, run):
            lossy.append(Once(repository(store, run), None if lossy else method))
            return lossy[-1]

        monkeypatch.setattr(Store, "artifacts", once)
    folder = make_run(home, reason=None)
    with Journal(folder.journal) as journal:
        journal.append("resumed", from_step=30, changed={}, versions={})
        add_stop(journal, "max_steps")
    sender = Sender(folder, uri)
    with pytest.raises(ConnectionError):
        sender.catch_up()
    assert sender.behind()
    sender.catch_up()
    assert not sender.behind()
    assert_record_agrees(uri, folder)
    assert len(client.search_runs(["1"], run_view_type=3)) == 1  # 3: deleted ones too, as none was to be made


def test_a_crash_after_the_run_was_created_and_before_that_was_noted_makes_one_run(home, uri, client, monkeypatch):
    folder = make_run(home)
    sender = Sender(folder, uri)
    with monkeypatch.context() as patch:
        patch.setattr(sender, "save", lambda: sys.exit("killed"))
        with pytest.raises(SystemExit):
            sender.catch_up()
    assert len(client.search_runs(["1"])) == 1 and not folder.mirror.exists()
    Sender(folder, uri).catch_up()
    assert len(client.search_runs(["1"], run_view_type=3)) == 1
    assert_record_agrees(uri, folder)


def test_a_run_created_late_by_a_request_given_up_is_removed(home, uri, client):
    folder = make_run(home, reason=None)
    sender = Sender(folder, uri)
    sender.catch_up()
    started = read_journal(folder.journal)[0][0]
    twin = client.create_run("1", start_time=started["time_ms"], tags={"bestrun.run": "r"})
    with Journal(folder.journal) as journal:
        add_stop(journal, "patience")
    sender.catch_up()
    assert [run.info.run_id for run in client.search_runs(["1"])] == [sender.run_id]
    assert client.get_run(twin.info.run_id).info.lifecycle_stage == "deleted"


def test_two_machines_may_give_their_runs_the_same_name(home, uri, client, tmp_path):
    one = make_run(home)
    time.sleep(0.002)  # another millisecond, as on another machine
    two = make_run(tmp_path / "other", steps=(0, 10), improved=(10,))
    for folder in (one, two):
        Sender(folder, uri).catch_up()
    runs = client.search_runs(["1"], order_by=["attributes.start_time"])
    assert [run.data.metrics["best/step"] for run in runs] == [20, 10]


@pytest.mark.parametrize("reason", ["max_steps", "interrupted", "diverged"])
def test_replaying_a_whole_journal_changes_nothing(home, uri, client, reason):
    folder = make_run(home, reason=None)
    folder.log.write_text("something\n")
    (folder.path / "picture.png").write_bytes(b"png")
    with Journal(folder.journal) as journal:
        add_stop(journal, "interrupted")
        journal.append("resumed", from_step=30, changed={"training.max_steps": ["30", "40"]}, versions={})
        add_evaluation(folder, journal, 40, True)
        journal.append("diverges", step=40, figures={})
        journal.append("picture", path="picture.png", step=40)
        add_stop(journal, reason)
        journal.append("tested", split="test", step=40, **{"test/accuracy": 0.5, "test/loss": 0.25})
    sender = Sender(folder, uri)
    assert sender.catch_up() == 12
    before, files = tables(home), artifacts(client, sender.run_id)
    assert sender.catch_up() == 0
    for _ in range(2):
        folder.mirror.unlink()
        again = Sender(folder, uri)
        assert again.catch_up() == 12 and again.run_id == sender.run_id
        assert tables(home) == before
        assert artifacts(client, sender.run_id) == files == ["checkpoints/best-40.safetensors"]
    assert_record_agrees(uri, folder)


def test_only_the_last_of_several_bests_is_uploaded_and_older_ones_are_removed(home, uri, client, monkeypatch):
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository as Repository

    uploads = []
    real = Repository.log_artifact
    monkeypatch.setattr(Repository, "log_artifact", lambda *a: (uploads.append(Path(a[1]).name), real(*a))[1])
    folder = make_run(home, improved=(10,), reason=None)
    sender = Sender(folder, uri)
    sender.catch_up()
    with Journal(folder.journal) as journal:
        for step in (40, 50, 60):
            add_evaluation(folder, journal, step, True)
    sender.catch_up()
    assert [name for name in uploads if name.startswith("best-")] == ["best-10.safetensors", "best-60.safetensors"]
    assert artifacts(client, sender.run_id) == ["checkpoints/best-60.safetensors"]
    assert client.get_run(sender.run_id).data.tags["bestrun.best_checkpoint"] == "checkpoints/best-60.safetensors"


def test_a_best_that_is_superseded_before_its_upload_is_skipped(home, uri, client):
    folder = make_run(home, improved=(10,), reason=None)
    folder.best(10).unlink()
    sender = Sender(folder, uri)
    sender.catch_up()
    assert artifacts(client, sender.run_id) == []
    assert "bestrun.best_checkpoint" not in client.get_run(sender.run_id).data.tags
    with Journal(folder.journal) as journal:
        add_evaluation(folder, journal, 40, True)
    sender.catch_up()
    assert artifacts(client, sender.run_id) == ["checkpoints/best-40.safetensors"]


def test_an_artifact_that_cannot_be_removed_at_once_is_removed_later(home, uri, client, monkeypatch):
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository as Repository

    folder = make_run(home, improved=(10,), reason=None)
    sender = Sender(folder, uri)
    sender.catch_up()
    with Journal(folder.journal) as journal:
        add_evaluation(folder, journal, 40, True)
    with monkeypatch.context() as patch:
        patch.setattr(Repository, "delete_artifacts", lambda *_: 1 / 0)
        assert sender.catch_up() == 1
        assert len(artifacts(client, sender.run_id)) == 2
        with Journal(folder.journal) as journal:
            add_stop(journal, "patience")
        with pytest.raises(ZeroDivisionError):  # it is asked for once more at the end, and then let be
            sender.catch_up()
    sender.catch_up()
    assert artifacts(client, sender.run_id) == ["checkpoints/best-40.safetensors"]


def test_what_a_process_killed_in_an_upload_left_is_cleared(home, uri, client):
    folder = make_run(home)
    (folder.path / "upload").mkdir()
    (folder.path / "upload" / "best-1.safetensors").write_bytes(b"old")
    sender = Sender(folder, uri)
    sender.catch_up()
    assert not (folder.path / "upload").exists()
    assert artifacts(client, sender.run_id) == ["checkpoints/best-20.safetensors"]


def test_a_file_system_without_hard_links_uploads_all_the_same(home, uri, client, monkeypatch):
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links here")))
    folder = make_run(home)
    sender = Sender(folder, uri)
    sender.catch_up()
    assert artifacts(client, sender.run_id) == ["checkpoints/best-20.safetensors"]
    folder.best(20).unlink()
    folder.mirror.unlink()
    Sender(folder, uri).catch_up()


def test_what_is_not_a_number_is_never_sent(home, uri, client):
    folder = make_run(home, steps=(0,), improved=(), reason=None)
    with Journal(folder.journal) as journal:
        add_evaluation(folder, journal, 10, False, **{"val/loss": float("nan"), "train/loss": float("inf")})
        add_stop(journal, "diverged")
    sender = Sender(folder, uri)
    sender.catch_up()
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as database:
        rows = database.execute("select key, step, value, is_nan from metrics order by key, step").fetchall()
    assert rows == [
        ("train/accuracy", 10, 0.1, 0), ("val/accuracy", 0, 0.0, 0), ("val/accuracy", 10, 0.1, 0),
        ("val/loss", 0, 1.0, 0),
    ]  # fmt: skip
    assert client.get_run(sender.run_id).info.status == "FAILED"


def test_settings_changed_at_several_resumes_stand_together(home, uri, client):
    folder = make_run(home, reason=None)
    with Journal(folder.journal) as journal:
        for changed in ({"a": ["1", "2"], "b": ["5", "6"]}, {}, {"a": ["2", "3"]}):
            journal.append("resumed", from_step=30, changed=changed, versions={})
    sender = Sender(folder, uri)
    sender.catch_up()
    changed = json.loads(client.get_run(sender.run_id).data.tags["bestrun.changed"])
    assert changed == {"a": ["1", "3"], "b": ["5", "6"]}


def test_a_run_is_told_of_its_children_once_each(home, uri, client):
    mother = Sender(make_run(home, "mother"), uri)
    mother.catch_up()
    for name in ("one", "two"):
        folder = make_run(home, name, parent="mother")
        Sender(folder, uri).catch_up()
        folder.mirror.unlink()
        Sender(folder, uri).catch_up()
    assert client.get_run(mother.run_id).data.tags["bestrun.children"] == "one,two"


@pytest.mark.parametrize("parent", ["nobody", "no/reference"])
def test_a_parent_that_cannot_be_found_stops_nothing(home, uri, parent):
    folder = make_run(home, parent=parent)
    Sender(folder, uri).catch_up()
    assert_record_agrees(uri, folder)


def test_only_an_answer_that_will_not_change_is_permanent():
    from mlflow.exceptions import MlflowException, RestException
    from mlflow.utils.rest_utils import get_error_code

    for status in (400, 401, 403, 404, 409):
        assert is_permanent(MlflowException("", error_code=get_error_code(status))), status
    for status in (408, 429, 500, 502, 503, 504):
        assert not is_permanent(MlflowException("", error_code=get_error_code(status))), status
    assert is_permanent(RestException({"error_code": "INVALID_PARAMETER_VALUE"}))
    assert is_permanent(SettingsError("experiment deleted"))
    for error in (StorageError("disk full"), OSError(), ValueError(), ConnectionError()):
        assert not is_permanent(error)


def test_a_run_remembers_its_store_before_that_has_ever_answered(home, proxy):
    folder = make_run(home)
    proxy.fail("refuse")
    mirror = Mirror(folder, proxy.uri)
    mirror.start()
    assert mirror.finish(0.5) is False
    assert read_json(folder.mirror) == {
        "uri": proxy.uri, "run_id": None, "experiment_id": None, "acknowledged": 0, "acknowledged_sha256": None,
        "best_sha256": None,
    }  # fmt: skip


def test_sync_asks_a_silent_server_once_for_all_runs(home, proxy):
    folders = [make_run(home, name) for name in ("a", "b", "c")]
    proxy.fail("502")
    reports = sync(folders, home=home / "mlruns", setting=proxy.uri)
    assert [report["state"] for report in reports] == ["behind"] * 3 and all("502" in r["error"] for r in reports)
    assert len(proxy.seen) == 1
