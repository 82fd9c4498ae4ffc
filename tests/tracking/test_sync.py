"""Which store `sync` sends a run to, and what it finds lacking there."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from bestrun.storage.files import read_json
from bestrun.storage.journal import Journal
from bestrun.tracking.names import TAG_BEST_CHECKPOINT, TAG_BEST_SHA256, TAG_RUN, TAG_STOP_REASON
from bestrun.tracking.store import connect, own_store
from bestrun.tracking.sync import sync
from support.made_runs import add_evaluation, add_stop, make_run


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
