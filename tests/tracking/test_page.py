"""What MLflow's page shows: views with the best first, links that open them, descriptions. The page itself is looked
at by test_browser.py.
"""

import base64
import json
import zlib

import pytest

from bestrun.class_names import cleaned
from bestrun.storage.journal import Journal
from bestrun.tracking import page
from bestrun.tracking.sender import Sender
from bestrun.tracking.store import connect
from support.hostile_names import HOSTILE, assert_tame
from support.made_runs import add_stop, make_run
from support.stores import mlflow_record, sqlite_uri


def state(tag: str) -> dict:
    """A view as the page unpacks it."""
    packed = json.loads(tag)["state"]
    return json.loads(zlib.decompress(base64.b64decode(packed.removeprefix("deflate;"))))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("objective", "key", "column", "ascending"),
    [
        ([], "bestrun-accuracy", "metrics.`best/accuracy`", False),
        (["objective.metric=val/loss", "objective.direction=minimize"], "bestrun-loss", "metrics.`best/loss`", True),
    ],
)
def test_a_run_leaves_a_view_with_the_best_first_a_link_to_its_page_and_its_result_below_the_user_s_own_words(
    bestrun, home, settings, objective, key, column, ascending
):
    result = bestrun("train", *settings, *objective, "name=k", "note=my words")
    assert result.code == 0, result.err
    run = mlflow_record(sqlite_uri(home), "k")[0]
    experiment = connect(sqlite_uri(home)).client.get_experiment(run.info.experiment_id)
    view = state(experiment.tags[f"mlflow.sharedViewState.{key}"])
    assert (view["orderByKey"], view["orderByAsc"]) == (column, ascending)
    assert {column, "metrics.`best/step`", "tags.`bestrun.stop_reason`"} <= set(view["selectedColumns"])
    (line,) = [line for line in result.out.splitlines() if line.startswith("page ")]
    assert f"/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}?workflowType=" in line
    note, ours = run.data.tags["mlflow.note.content"].split(page.RULE)
    assert note == "my words" and "max_steps" in ours and "`bestrun restore k`" in ours
    best, kind = run.data.metrics, key.removeprefix("bestrun-")
    told = f"{100 * best['best/accuracy']:.2f} %" if kind == "accuracy" else f"{best['best/loss']:.4f}"
    assert f"{told} at step {best['best/step']:.0f}" in ours


def test_charts_stand_in_the_order_people_look():
    found = page.charts("val/loss")
    sections = [section["name"] for section in found["compareRunSections"]]
    assert sections == ["val", "train", "best", "test", "Model metrics"] and found["isAccordionReordered"] is True
    of_section = {section["uuid"]: section["name"] for section in found["compareRunSections"]}
    shown = [(of_section[chart["metricSectionId"]], chart["metricKey"]) for chart in found["compareRunCharts"]]
    assert shown[0] == ("val", "val/loss") and ("best", "best/step") in shown
    assert [key for name, key in shown if name == "train"] == ["train/loss", "train/accuracy"]
    assert len({chart["uuid"] for chart in found["compareRunCharts"]}) == len(shown)
    client = type("Client", (), {"set_experiment_tag": lambda self, *tag: tags.append(tag)})()
    tags: list = []
    page.save_view(client, type("Experiment", (), {"tags": {}, "experiment_id": "1"})(), "val/accuracy")
    assert len(tags[0][2]) < 5000  # more MLflow does not take


def test_a_view_and_a_description_that_a_person_changed_are_left_alone(home):
    folder, client = make_run(home, reason=None), connect(sqlite_uri(home)).client
    sender = Sender(folder, sqlite_uri(home))
    sender.catch_up()
    changed = "mlflow.sharedViewState.bestrun-accuracy"
    assert changed in client.get_experiment(sender.experiment_id).tags
    client.set_experiment_tag(sender.experiment_id, changed, "mine")
    client.set_tag(sender.run_id, "mlflow.note.content", "rewritten by a person")
    with Journal(folder.journal) as journal:
        add_stop(journal, "max_steps")
    sender.catch_up()
    Sender(make_run(home, "other"), sqlite_uri(home)).catch_up()
    run = client.get_run(sender.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["mlflow.note.content"] == "rewritten by a person"
    assert client.get_experiment(sender.experiment_id).tags[changed] == "mine"


def test_a_sweep_leaves_a_view_of_its_runs_and_a_link_to_it(bestrun, home, settings):
    short = ["training.max_steps=20", "training.patience_steps=20"]
    result = bestrun("train", "-m", *settings, *short, "seed=0,1", "sweep.name=two")
    assert result.code == 0, result.err
    (line,) = [line for line in result.out.splitlines() if line.startswith("page ")]
    assert "viewStateShareKey=bestrun-accuracy-two&workflowType=machine_learning" in line
    (experiment,) = [e for e in connect(sqlite_uri(home)).client.search_experiments() if e.name == "npz"]
    view = state(experiment.tags["mlflow.sharedViewState.bestrun-accuracy-two"])
    assert "params.`seed`" in view["selectedColumns"] and "'two'" in view["searchFilter"]


def test_a_server_s_address_has_no_credentials():
    assert page.server("https://ada:secret@host:8080/base?token=x") == "https://host:8080/base"
    assert page.server("sqlite:////x/mlflow.db", 5001) == "http://127.0.0.1:5001"


def test_a_description_tells_names_of_classes_as_text_and_a_thousand_of_them_short():
    settings = {"objective.metric": "val/accuracy", "model": "cnn", "optimizer": "adam", "seed": "0"}
    data = {"name": "d", "train": 1, "validation": 1, "test": 1, "image_shape": [2, 2, 1]}
    started = {"name": "k", "settings": settings | {"optimizer.learning_rate": "1"}}
    for names in ([cleaned(name) for name in HOSTILE], [f"{'word ' * 15}{number}" for number in range(1000)]):
        told = {"data": data | {"num_classes": len(names), "class_names": names}}
        text = page.description(started | told, None, None)
        assert f"{len(names)} classes: " in text and " more" in text and len(text) < 1500
        assert "<script" not in text and "<img" not in text and "](java" not in text and "`b`" not in text
        assert_tame(text)
    wrong = {"data": data | {"num_classes": 2, "class_names": ["a"]}}
    assert "2 classes. Network" in page.description(started | wrong, None, None)
