"""A whole run from the command line: what it leaves in its folder and in MLflow, and that it repeats bit for bit."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bestrun.storage.checkpoint import load
from bestrun.storage.journal import read_journal
from support.lines import SHORT, SMALL_NETWORK, with_pictures
from support.processes import Command, Result
from support.stores import assert_record_agrees, mlflow_record, run_folder, sqlite_uri


@pytest.fixture(scope="module")
def settings(small_mnist_npz):
    return ["data=npz", f"data.path={small_mnist_npz}", *SMALL_NETWORK, *SHORT]


@dataclass(frozen=True)
class Trained:
    """A home with three finished runs, and what their commands printed: first, with pictures; again, the same without
    them, told as JSON; and other, of another seed, which goes by its loss.
    """

    home: Path
    bestrun: Command
    first: Result
    again: Result
    other: Result


@pytest.fixture(scope="module")
def three(own_home, settings):
    home, bestrun = own_home()
    results = (
        bestrun("train", *with_pictures(settings), "name=first", "tags.author=ada", "note=hello"),
        bestrun("train", *settings, "name=again", "--json"),
        bestrun("train", *settings, "name=other", "seed=1", "objective.metric=val/loss"),
    )
    for result in results:
        assert result.code == 0, result.err
    return Trained(home, bestrun, *results)


def test_run_leaves_the_designed_record(three):
    home, result = three.home, three.first
    folder = run_folder(home, "first")
    names = {path.name for path in folder.path.iterdir()}
    best = json.loads(folder.result.read_text())["best"]
    assert names == {
        "config.yaml", "overrides.yaml", "journal.jsonl", best["checkpoint"], "last.safetensors", "run.log", "lock",
        "mirror.json", "result.json", "pictures", "environment.txt",
    } | ({"uncommitted.diff"} & names)  # fmt: skip
    events = [event for event in read_journal(folder.journal)[0] if event["event"] != "picture"]
    assert [event["event"] for event in events] == ["started", *["evaluation"] * 4, "stopped"]
    assert [event["step"] for event in events[1:-1]] == [0, 20, 40, 60]
    assert events[1]["improved"] is False and events[1]["train/loss"] is None
    assert load(folder.path / best["checkpoint"], sha256=best["sha256"]).state.step == best["step"]
    run = assert_record_agrees(sqlite_uri(home), folder)
    assert run.info.status == "FINISHED" and run.data.tags["bestrun.stop_reason"] == "max_steps"
    assert run.data.tags["author"] == "ada" and run.data.tags["mlflow.note.content"].startswith("hello\n")
    assert run.data.params["model.num_filters"] == "[4, 8]" and run.data.params["data"] == "npz"
    assert json.loads(folder.result.read_text())["run_id"] == run.info.run_id
    lines = result.out.splitlines()
    assert any(line.startswith("      60") for line in lines)
    assert lines[-2] == f"restore   bestrun restore {run.info.run_id}"
    assert lines[-1].startswith("page ") and run.info.run_id in lines[-1]


def test_a_real_server_gets_the_same_record_and_restores(bestrun, home, settings, mlflow_server, tmp_path):
    uri = mlflow_server.uri
    assert bestrun("train", *settings, "name=served", f"tracking.uri={uri}").code == 0
    run = assert_record_agrees(uri, run_folder(home, "served"))
    result = bestrun("restore", run.info.run_id, "--tracking-uri", uri, "--json", cwd=tmp_path)
    assert json.loads(result.out)["validation"]["agrees"] is True, result.err
    assert mlflow_record(uri, "served")[0].data.metrics["test/accuracy"] == json.loads(result.out)["test"]["accuracy"]


def test_same_settings_and_seed_give_bit_identical_tensors(three):
    one, two, other = (load(run_folder(three.home, name).last) for name in ("first", "again", "other"))
    assert one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(tensor, two.tensors[name], err_msg=name)
    assert any((one.tensors[name] != tensor).any() for name, tensor in other.tensors.items())


def _train_twice(settings):
    """In one process: another run first, then the one that is compared."""
    from bestrun.run.start import start
    from bestrun.settings.compose import compose
    from bestrun.storage.home import find_home
    from bestrun.views.screen import Screen

    for name, changed in (("before", ["seed=7", "model.filter_sizes=[3,3]"]), ("after", [])):
        start(compose([*settings, f"name={name}", *changed]), home=find_home(), screen=Screen())


@pytest.mark.slow
def test_a_run_after_another_in_one_process_is_bit_identical(bestrun, start_process, home, settings):
    assert bestrun("train", *settings, "name=alone").code == 0
    assert start_process(_train_twice, settings, cwd=home).wait().code == 0
    alone, after = (load(run_folder(home, name).last) for name in ("alone", "after"))
    for name, tensor in alone.tensors.items():
        np.testing.assert_array_equal(tensor, after.tensors[name], err_msg=name)


def test_patience_stops_at_the_first_evaluation_that_far_from_the_best(bestrun, home, settings):
    # A learning rate this small improves nothing for long
    settings = [*settings, "training.max_steps=2000", "optimizer.learning_rate=1e-9", "name=patient"]
    result = bestrun("train", *settings)
    assert result.code == 0, result.err
    outcome = json.loads(run_folder(home, "patient").result.read_text())
    assert outcome["stop_reason"] == "patience"
    assert outcome["steps"] - outcome["best"]["step"] == 60


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["colour npz", "idx"])
def test_images_of_another_size_colour_and_number_of_classes_train(bestrun, home, tmp_path, colour_npz, kind):
    data = ["data=npz", f"data.path={colour_npz}", "data.validation_size=60"]
    if kind == "idx":
        folder = tmp_path / "idx"
        folder.mkdir()
        arrays = np.load(colour_npz)
        for part, file in (("train", "train"), ("test", "t10k")):
            images, labels = arrays[f"x_{part}"][..., 0], arrays[f"y_{part}"].astype("uint8")
            header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in images.shape)
            (folder / f"{file}-images-idx3-ubyte").write_bytes(header + images.tobytes())
            (folder / f"{file}-labels-idx1-ubyte").write_bytes(
                b"\0\0\x08\x01" + len(labels).to_bytes(4, "big") + labels.tobytes()
            )
        data = ["data=idx", f"data.dir={folder}", "data.validation_size=0.2"]
    steps = ["training.max_steps=150", "training.evaluate_every_steps=50", "training.patience_steps=150", *SHORT[-2:]]
    result = bestrun("train", *data, *SMALL_NETWORK, *steps, "name=other", "optimizer.learning_rate=5e-3")
    assert result.code == 0, result.err
    shape = "12 x 10 x 3" if kind == "colour npz" else "12 x 10 x 1"
    assert shape in result.out and "5 classes" in result.out
    assert json.loads(run_folder(home, "other").result.read_text())["best"]["value"] > 0.6
    report = bestrun("restore", "other", "--json")
    assert json.loads(report.out)["validation"]["agrees"] is True, report.err
    assert np.array(json.loads(report.out)["confusion_matrix"]).shape == (5, 5)


def test_an_objective_of_loss_keeps_the_lowest_loss(three):
    folder = run_folder(three.home, "other")
    events, _ = read_journal(folder.journal)
    losses = {event["step"]: event["val/loss"] for event in events if event["event"] == "evaluation" and event["step"]}
    best = json.loads(folder.result.read_text())["best"]
    assert best["value"] == min(losses.values()) and losses[best["step"]] == best["value"]


def test_json_result_is_one_document_on_stdout(three):
    document = json.loads(three.again.out)
    assert document["stop_reason"] == "max_steps" and len(document["run_id"]) == 32
    assert "val acc" in three.again.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["training.batch_size=5000"], 2, "training.batch_size=5000: more than the 2,000 training images"),
        (["data.path=/nowhere/x.npz"], 3, "/nowhere/x.npz"),
        (["training.batch_size=0"], 2, "training.batch_size=0"),
        (["training.batchsize=64"], 2, "training.batch_size"),
    ],
)
def test_refused_command_says_one_line_and_leaves_nothing_on_disk(
    bestrun, home, settings, tmp_path, words, code, message
):
    empty = tmp_path / "empty"
    empty.mkdir()
    result = bestrun("train", *settings, *words, cwd=empty, env={"BESTRUN_MLRUNS": None})
    assert result.code == code
    assert message in result.err and result.err.count("\n") == 1 and "Traceback" not in result.err
    assert list(empty.iterdir()) == []


def test_a_taken_name_is_refused(three, settings):
    result = three.bestrun("train", *settings, "name=first")
    assert result.code == 2 and "bestrun resume first" in result.err


HEAVY = {"tensorflow", "keras", "mlflow", "optuna", "matplotlib", "sklearn"}


@pytest.mark.parametrize(
    ("words", "code"), [(["--help"], 0), (["train", "--help"], 0), (["train", "training.batch_size=0"], 2)]
)
def test_help_and_settings_errors_import_nothing_heavy(tmp_path, words, code):
    script = (
        "import sys\nfrom bestrun.cli.main import main\n"
        f"sys.argv = ['bestrun', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n"
        f"    print('LOADED', end.code, *sorted({HEAVY!r} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout.splitlines()[-1].split() == ["LOADED", str(code)], result.stderr
    assert list(tmp_path.iterdir()) == []
