"""Which store `sync` sends a run to, and what it finds lacking there."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from bestrun.results.move import carry_out, plan_move
from bestrun.storage.files import read_json
from bestrun.storage.folder import RunFolder
from bestrun.storage.home import identity
from bestrun.storage.journal import Journal
from bestrun.tracking.names import TAG_BEST_CHECKPOINT, TAG_BEST_SHA256, TAG_RUN, TAG_STOP_REASON
from bestrun.tracking.store import connect, own_store
from bestrun.tracking.sync import sync
from support.made_runs import add_evaluation, add_stop, make_run
from support.stores import make_home


@pytest.fixture
def away(home, ready_made_store, tmp_path):
    """A run that was sent to a database on a disk that is not mounted now: its folder, and where the database is."""
    database = tmp_path / "disk" / "store.db"
    database.parent.mkdir()
    shutil.copyfile(ready_made_store, database)
    folder = make_run(home)
    (report,) = sync([folder], home=home / "mlruns", setting=f"sqlite:///{database}")
    assert report["state"] == "complete" and report["error"] is None, report
    database.parent.rename(tmp_path / "unplugged")
    return folder, database


def test_a_database_that_is_not_mounted_is_no_reason_to_send_a_run_elsewhere(bestrun, home, away):
    folder, database = away
    mirror = folder.mirror.read_bytes()
    result = bestrun("sync", "--json")
    (report,) = json.loads(result.out)
    told = f"sqlite:///{database}: is not there; mount it, or say where it is now: --tracking-uri URI"
    assert result.code == 6 and report["error"] == told and report["state"] == "behind"
    assert folder.mirror.read_bytes() == mirror and not database.parent.exists()
    refused = bestrun("resume", "r", "training.max_steps=60")
    assert refused.code == 2 and told in refused.err and folder.mirror.read_bytes() == mirror


def test_an_address_that_is_in_the_environment_takes_the_place_of_a_database_that_is_gone(home, away, monkeypatch):
    folder, database = away
    run_id = read_json(folder.mirror)["run_id"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")  # the very one, as a shell's profile has it
    assert "is not there" in sync([folder], home=home / "mlruns", setting=None)[0]["error"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own_store(home / "mlruns"))
    (report,) = sync([folder], home=home / "mlruns", setting=None)
    assert report["error"] is None and report["run_id"] != run_id


@pytest.fixture
def complete(home):
    """A run that MLflow has whole, with a picture and a keyframe: its folder, `sync`, MLflow's client, its ID."""
    folder = make_run(home, reason=None)
    folder.pictures.mkdir()
    (folder.pictures / "p.png").write_bytes(b"a picture")
    folder.keyframe(30).write_bytes(b"a keyframe")
    folder.environments or (folder.path / "environment.txt").write_text("numpy==2\n")
    folder.keep_code("# of one's own\n")
    with Journal(folder.journal) as journal:
        journal.append("picture", path="pictures/p.png")
        add_evaluation(folder, journal, 40, False, keyframe=folder.keyframe(30).name, confusions=[[1, 0], [0, 1]])
        add_stop(journal, "max_steps")

    def synced():
        return sync([folder], home=home / "mlruns", setting=None)[0]

    report = synced()
    assert (report["state"], report["error"]) == ("complete", None)
    return folder, synced, connect(own_store(home / "mlruns")).client, report["run_id"]


def files(client, run_id):
    run = client.get_run(run_id)
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    return root, {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_artifacts_that_are_gone_are_sent_again(complete, caplog):
    folder, synced, client, run_id = complete
    root, before = files(client, run_id)
    expected = {"pictures/p.png", "keyframes/keyframe-30.safetensors", "code/code.py", "environment.txt"}
    assert before > expected | {"checkpoints/best-20.safetensors", "journal.jsonl", "config/config.yaml"}
    client.delete_run(run_id)
    shutil.rmtree(root)  # as `bestrun gc` does with those of a deleted run
    client.restore_run(run_id)
    assert synced()["state"] == "complete" and files(client, run_id)[1] == before
    assert "MLflow had lost config, code, environment.txt" in caplog.text
    caplog.clear()
    assert synced()["sent"] == 0 and not caplog.text
    for lost in sorted(before - {"checkpoints/best-20.safetensors"}):
        shutil.rmtree(root / lost.split("/")[0]) if "/" in lost else (root / lost).unlink()
        assert synced()["state"] == "complete" and files(client, run_id)[1] == before, lost


def test_a_best_that_is_neither_here_nor_there_makes_no_run_complete(complete):
    folder, synced, client, run_id = complete
    folder.best(20).unlink()
    assert synced()["state"] == "complete"  # MLflow has it
    (files(client, run_id)[0] / "checkpoints" / "best-20.safetensors").unlink()
    for _ in range(2):
        report = synced()
        assert report["state"] == "behind" and "checkpoints/best-20.safetensors: " in report["error"]
        assert "is gone" in report["error"] and read_json(folder.mirror)["missing"]


@pytest.mark.parametrize("tag", [TAG_RUN, TAG_BEST_CHECKPOINT, TAG_BEST_SHA256, TAG_STOP_REASON])
def test_a_tag_that_was_removed_in_the_page_is_said_again(complete, tag):
    _, synced, client, run_id = complete
    before = client.get_run(run_id).data.tags[tag]
    client.delete_tag(run_id, tag)
    assert synced()["state"] == "complete" and client.get_run(run_id).data.tags[tag] == before
    client.set_tag(run_id, tag, "another")
    assert synced()["state"] == "complete" and client.get_run(run_id).data.tags[tag] == before


def test_a_complete_run_costs_one_listing(complete, monkeypatch):
    folder, synced, client, _ = complete
    asked = []
    listed = LocalArtifactRepository.list_artifacts
    monkeypatch.setattr(
        LocalArtifactRepository, "list_artifacts", lambda self, path=None: asked.append(path) or listed(self, path)
    )
    assert synced()["state"] == "complete" and asked == [None]


# ---- whose a run is ----


@pytest.fixture
def shared(home, ready_made_store, tmp_path):
    """A run of this home in a database of several: its folder, the address, and how a copy of the folder comes to a
    colleague's home, with or without what it knows of MLflow.
    """
    uri = f"sqlite:///{shutil.copyfile(ready_made_store, tmp_path / 'server.db')}"
    folder = make_run(home)
    assert sync([folder], home=home / "mlruns", setting=uri)[0]["error"] is None
    theirs = make_home(tmp_path / "theirs", ready_made_store)

    def copied(*left_out):
        copy = RunFolder(theirs / "mlruns" / "runs" / folder.name)
        shutil.copytree(folder.path, copy.path, ignore=shutil.ignore_patterns(*left_out))
        return copy, lambda: sync([copy], home=theirs / "mlruns", setting=uri)[0]

    return folder, uri, copied


def whose(uri, folder):
    tags = connect(uri).client.get_run(read_json(folder.mirror)["run_id"]).data.tags
    return json.loads(tags["bestrun.writer"])["home"], tags["bestrun.folder"]


@pytest.mark.parametrize("left_out", [[], ["mirror.json"]], ids=["a copied home", "an opened archive"])
def test_who_has_nothing_to_add_takes_over_no_run(shared, left_out, home):
    folder, uri, copied = shared
    before = whose(uri, folder)
    assert before == (identity(home / "mlruns"), str(folder.path))
    copy, synced = copied(*left_out)
    for _ in range(2):
        assert synced()["state"] == "complete" and whose(uri, folder) == before
    assert read_json(copy.mirror)["run_id"] == read_json(folder.mirror)["run_id"]
    with Journal(copy.journal) as journal:
        journal.append("resumed", from_step=30, changed={}, versions={})
        add_evaluation(copy, journal, 40, False)
        add_stop(journal, "max_steps")
    assert synced()["state"] == "complete" and whose(uri, folder) == (identity(copy.path.parents[1]), str(copy.path))


def test_a_test_that_mlflow_has_is_nothing_to_add_and_a_new_one_is(shared):
    folder, uri, copied = shared
    before, tested = whose(uri, folder), {"split": "test", "test/accuracy": 0.5, "test/loss": 1.0}
    copy, synced = copied("mirror.json")
    with Journal(folder.journal) as journal:
        journal.append("tested", step=20, **tested)
    sync([folder], home=folder.path.parents[1], setting=uri)
    shutil.copy(folder.journal, copy.journal)
    assert synced()["state"] == "complete" and whose(uri, folder) == before
    with Journal(copy.journal) as journal:
        journal.append("tested", step=30, **tested)
    assert synced()["state"] == "complete" and whose(uri, folder)[1] == str(copy.path)


@pytest.mark.parametrize("is_there", [False, True], ids=["", "opened there before"])
def test_a_moved_run_is_its_new_homes_also_where_mlflow_is_told_later(shared, home, tmp_path, is_there, monkeypatch):
    folder, uri, copied = shared
    target = tmp_path / "theirs" / "mlruns"
    if is_there:
        copied("mirror.json")[1]()
    monkeypatch.setattr("bestrun.results.move.sync", lambda folders, **named: [{"error": "no answer", "state": ""}])
    ((_, told),) = carry_out(plan_move(["r"], home / "mlruns", target))
    assert "no answer" in told
    moved = RunFolder(target / "runs" / "r")
    assert sync([moved], home=target, setting=None)[0]["state"] == "complete"
    assert whose(uri, moved) == (identity(target), str(moved.path)) and "moved_from" not in read_json(moved.mirror)
