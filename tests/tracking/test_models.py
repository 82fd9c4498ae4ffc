"""Which of a run's models the registry has: those stay, whatever becomes of the run."""

import pytest

from bestrun.storage.files import read_json
from bestrun.storage.history import History
from bestrun.tracking.models import find_model, is_registered
from bestrun.tracking.names import TAG_BEST_SHA256
from bestrun.tracking.sender import Sender
from bestrun.tracking.store import connect, own_store
from support.made_runs import make_run


@pytest.fixture
def logged(home):
    """A store, and in it the LoggedModel of a run's best."""
    folder, store = make_run(home), connect(own_store(home / "mlruns"))
    Sender(folder, store.uri).catch_up()
    run = store.client.get_run(read_json(folder.mirror)["run_id"])
    best = History.read(folder.journal).best["sha256"]
    tags = {TAG_BEST_SHA256: best}
    store.client.create_logged_model(run.info.experiment_id, "m", source_run_id=run.info.run_id, tags=tags)
    return store, find_model(store, run, best)


def test_a_promoted_version_keeps_its_model(logged):
    store, model = logged
    for name in ("digits", "champions", "others"):
        store.client.create_registered_model(name)
    of_another = {"run_id": model.source_run_id, "tags": {TAG_BEST_SHA256: "0" * 64}}
    store.client.create_model_version("others", "file:///elsewhere", **of_another)
    assert not is_registered(store, model)
    of_it = {"run_id": model.source_run_id, "tags": {TAG_BEST_SHA256: model.tags[TAG_BEST_SHA256]}}
    store.client.create_model_version("digits", model.artifact_location, **of_it)
    assert is_registered(store, model)
    store.client.copy_model_version("models:/digits/1", "champions")
    store.client.delete_model_version("digits", "1")
    assert is_registered(store, model)
    store.client.delete_model_version("champions", "1")
    assert not is_registered(store, model)
