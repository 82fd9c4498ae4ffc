"""Wherever a class is told of, it is told by its name; and no name, whoever chose it, does more than be read."""

import json
import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bestrun.class_names import cleaned, labels
from bestrun.storage.journal import read_journal
from support.hostile_names import HOSTILE, TAGS, assert_tame
from support.processes import Command, Starter
from support.stores import copy_home, make_home, mlflow_record, run_folder, sqlite_uri

NAMES = [*map(cleaned, HOSTILE)]
NETWORK = ["model.filter_sizes=[3,3]", "model.num_filters=[2,2]", "model.fc_size=8", "optimizer.learning_rate=1e-3"]
STEPS = [
    "training.max_steps=4",
    "training.evaluate_every_steps=2",
    "training.patience_steps=4",
    "training.batch_size=8",
]


def settings(path, *more):
    return ["data=npz", f"data.path={path}", "data.validation_size=40", *NETWORK, *STEPS, *more]


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """Noise of ten classes, which have hostile names: nothing to learn, so all of them are confused."""
    random, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 100), ("test", 60)):
        arrays[f"x_{part}"] = random.integers(0, 256, (count, 8, 8)).astype(np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % len(HOSTILE)
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, **arrays, class_names=np.array(HOSTILE))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory, ready_made_store):
    return make_home(tmp_path_factory.mktemp("home"), ready_made_store)


@pytest.fixture(scope="module")
def bestrun(_forkserver, home, tmp_path_factory):
    command = Command(Starter(tmp_path_factory.mktemp("processes")), home)

    def run(*words, **how):
        result = command(*words, **how)
        assert result.code == 0, result.out + result.err
        return result.out

    return run


@pytest.fixture(scope="module")
def runs(bestrun, npz):
    bestrun("train", *settings(npz, "name=one", "tracking.log_model=best"))
    bestrun("train", *settings(npz, "name=two", "seed=1", "pictures=false", "tracking.log_model=none"))


@pytest.fixture(scope="module")
def said(bestrun, home, runs, npz, tmp_path_factory):
    """`said(place)`: all that was printed or written there, by one command, which is typed once."""
    out, folder = tmp_path_factory.mktemp("out"), run_folder(home, "one")
    run, _, _ = mlflow_record(sqlite_uri(home), "one")
    np.savez(out / "all.npz", x=np.load(npz)["x_test"])
    elsewhere = {"cwd": out, "env": {"MLFLOW_TRACKING_URI": sqlite_uri(home), "BESTRUN_MLRUNS": str(out / "mlruns")}}
    places = {
        "predict": lambda: bestrun("predict", "one", out / "all.npz"),
        "predict --json": lambda: bestrun("predict", "one", out / "all.npz", "--json"),
        "restore": lambda: bestrun("restore", "one", "--out", out / "restored"),
        "restore --json": lambda: bestrun("restore", "one", "--json"),
        "show": lambda: bestrun("show", "one"),
        "show --json": lambda: bestrun("show", "one", "--json"),
        "show of MLflow": lambda: bestrun("show", run.info.run_id, "--json", **elsewhere),
        "compare": lambda: bestrun("compare", "one", "two"),
        "compare --json": lambda: bestrun("compare", "one", "two", "--json"),
        "report": lambda: (
            bestrun("report", "one", "two", "--out", out / "r.html") and (out / "r.html").read_text("utf-8")
        ),
        "fetch": lambda: bestrun("fetch", "one", "--out", out / "fetched"),
        "check": lambda: bestrun("check", "--quick", *settings(npz)),
        "class_names.json": lambda: said("fetch") and (out / "fetched" / "class_names.json").read_text("utf-8"),
        "description": lambda: run.data.tags["mlflow.note.content"],
        "run.log": lambda: folder.log.read_text("utf-8"),
        "journal": lambda: folder.journal.read_text("utf-8"),
    }

    @cache
    def said(place):
        return places[place]()

    return said


PLACES = ["predict", "predict --json", "restore", "restore --json", "show", "show --json", "show of MLflow", "compare"]
PLACES += ["compare --json", "report", "fetch", "check", "class_names.json", "description", "run.log", "journal"]
SILENT = ("fetch", "run.log", "check")  # prints or writes no name, or of so many classes one or two


def _places(names):
    """The report takes longest to draw; what it shows of names is held by tests/cli/test_report.py as well."""
    return [pytest.param(name, marks=pytest.mark.slow) if name == "report" else name for name in names]


@pytest.mark.parametrize("place", _places(PLACES))
def test_no_name_does_more_than_be_read(said, place):
    assert_tame(said(place))
    if place in ("report", "description"):  # what a browser shows
        assert TAGS[:8] not in said(place) and "<img src=x" not in said(place)
    if place == "description":
        assert "](javascript" not in said(place).replace("\\", "|") and "**c**" not in said(place)


@pytest.mark.parametrize("place", _places(place for place in PLACES if place not in SILENT))
def test_each_place_tells_classes_by_their_names(said, place):
    text = said(place)
    if place in ("predict", "compare"):  # which tell of some of them
        told = text.partition("minus one")[2] if place == "compare" else text
        assert sum(name in told for name in labels(NAMES, len(NAMES))) > 1
    elif place == "restore":
        assert all(text.count(name) == 2 for name in labels(NAMES, len(NAMES)))
    elif place == "report":
        assert "two lines run forged" in text
    elif place in ("show", "description"):
        assert "two lines run forged" in text and re.search(r"and \d+ more", text)
    else:
        assert json.loads(json.dumps(NAMES[1])) in text and json.dumps(NAMES[0])[1:-1] in text


def test_what_is_printed_stands_in_columns_and_in_100_characters(said):
    lines = said("predict").splitlines()
    assert {line.count(" %") for line in lines[1:]} == {2} and max(map(len, lines)) < 220
    assert max(len(line) for line in said("show").splitlines() if line.startswith("classes")) <= 100


def test_predictions_say_number_name_and_probabilities(said):
    report = json.loads(said("predict --json"))
    assert report["class_names"] == NAMES
    for row in report["predictions"]:
        assert row["class_name"] == NAMES[row["class"]] and len(row["probabilities"]) == len(NAMES)


def test_records_from_the_folder_and_from_mlflow_have_the_same_names(said):
    here, there = (json.loads(said(place))["data"] for place in ("show --json", "show of MLflow"))
    assert here["class_names"] == there["class_names"] == NAMES
    assert json.loads(said("compare --json"))["class_names"] == NAMES
    assert json.loads(said("class_names.json")) == NAMES == json.loads(said("restore --json"))["class_names"]


def test_pictures_were_drawn_and_none_complained(said, home):
    folder = run_folder(home, "one")
    assert "not drawn" not in said("run.log") and "Glyph" not in said("run.log")
    drawn = [path for path in folder.pictures.glob("*.png") if path.name != "curves.png"]
    assert {path.name.partition("-")[0] for path in drawn} >= {"confusion_matrix", "example_errors"}
    for path in drawn:
        with Image.open(path) as picture:
            picture.verify()


def test_mlflow_has_the_names_in_a_file_and_in_no_tag(home, runs):
    run, _, artifacts = mlflow_record(sqlite_uri(home), "one")
    assert "config/class_names.json" in artifacts["config"]
    inputs = [item.dataset for item in run.inputs.dataset_inputs]
    assert inputs and not any("class_names" in dataset.profile for dataset in inputs)  # which are ones for many runs
    assert all(len(value) < 6001 for value in run.data.tags.values()) and len(NAMES) == len(HOSTILE)


LOAD = """
import json, sys
import mlflow, numpy
try:
    import bestrun
except ImportError:
    model = mlflow.pyfunc.load_model(sys.argv[1])
    answer = model.predict(numpy.load(sys.argv[2])["x_test"][:, :, :, None])
    print(json.dumps([model.metadata.signature.outputs.input_names(), answer.to_dict("list")]))
"""


def _without_bestrun(program, *words):
    """Run it as a Python would that has TensorFlow and MLflow, and no bestrun."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "bestrun"]:
        del sys.modules[name]
    sys.modules["bestrun"] = None
    sys.argv = ["-c", *map(str, words)]
    exec(program, {"__name__": "__main__"})


def test_the_registered_model_answers_number_name_and_probabilities(home, runs, said, npz, start_process):
    (model,) = (home / "mlruns").glob("artifacts/*/models/m-*/artifacts")
    used = start_process(_without_bestrun, LOAD, model, npz).wait()
    columns, answer = json.loads(used.out.splitlines()[-1]) if used.code == 0 else pytest.fail(used.err)
    assert columns == list(answer) == ["class", "class_name", "probabilities"]
    predicted = json.loads(said("predict --json"))["predictions"]
    assert answer["class"] == [row["class"] for row in predicted]
    assert answer["class_name"] == [row["class_name"] for row in predicted]


def test_the_lines_of_fetch_print_a_name(said, start_process):
    used = start_process(_without_bestrun, said("fetch")[said("fetch").index("import json") :]).wait()
    assert used.code == 0 and used.out.splitlines()[-1].encode() in [name.encode() for name in NAMES], used.err


def test_a_run_rebuilt_from_mlflow_keeps_its_names_whatever_its_file_says_now(bestrun, home, runs, npz, tmp_path):
    arrays = dict(np.load(npz)) | {"class_names": np.array([f"other {number}" for number in range(10)])}
    np.savez(tmp_path / "renamed.npz", **arrays)
    more = ["training.max_steps=6", "training.patience_steps=6"]
    run_id = json.loads(run_folder(home, "two").mirror.read_text())["run_id"]
    (copy,) = (home / "mlruns" / "artifacts").rglob(f"{run_id}/artifacts/journal.jsonl")
    copy.unlink()  # else it is taken, names and all
    bestrun("resume", "two", "--from-mlflow", f"data.path={tmp_path / 'renamed.npz'}", *more)
    (started, *_), _ = read_journal(run_folder(home, "two").journal)
    assert started["rebuilt"] and started["data"]["class_names"] == NAMES
    assert json.loads(bestrun("show", "two", "--json"))["data"]["class_names"] == NAMES


def _names_gone_on_with(home, name, *words):
    from bestrun.run import resume
    from bestrun.views.screen import Screen

    resume.carry_through = lambda prepared, *_, **__: print(json.dumps(prepared.data.class_names))
    resume.resume(run_folder(Path(home), name), words, home=Path(home, "mlruns"), screen=Screen(quiet=True))


def test_a_resumed_run_goes_on_with_the_names_it_began_with(start_process, home, runs, npz, tmp_path):
    arrays = dict(np.load(npz)) | {"class_names": np.array([f"other {number}" for number in range(10)])}
    np.savez(tmp_path / "renamed.npz", **arrays)
    copy_home(home, tmp_path)
    words = [f"data.path={tmp_path / 'renamed.npz'}", "training.max_steps=6", "training.patience_steps=6"]
    result = start_process(_names_gone_on_with, str(tmp_path), "one", *words, cwd=tmp_path).wait()
    assert result.code == 0 and json.loads(result.out.splitlines()[-1]) == NAMES, result.err


def test_names_change_no_digest_and_no_result(bestrun, home, runs, npz):
    bestrun("train", *settings(npz, "name=other", "pictures=false", "data.class_names=[a,b,c,d,e,f,g,h,i,j]"))
    (one, *lines), (other, *others) = (read_journal(run_folder(home, name).journal)[0] for name in ("one", "other"))
    assert other["data"]["class_names"] == list("abcdefghij")
    assert (one["data_digest"], one["config_digest"]) == (other["data_digest"], other["config_digest"])
    figures = [[line["val/loss"] for line in each if line["event"] == "evaluation"] for each in (lines, others)]
    assert figures[0] == figures[1]
    restored = bestrun("restore", "one", "data.class_names=[a,b,c,d,e,f,g,h,i,j]")
    assert re.search(r"^j +[-\d]", restored, re.MULTILINE) and "forged" not in restored


@pytest.mark.parametrize("words", [["data.class_names=[a,b]"], ["data.class_names=[a,a]"], ["data.class_names=a"]])
def test_names_that_do_not_fit_are_one_line_and_leave_nothing(home, runs, npz, tmp_path_factory, words):
    before = sorted((home / "mlruns" / "runs").iterdir())
    result = Command(Starter(tmp_path_factory.mktemp("processes")), home)("train", *settings(npz, "name=never", *words))
    assert (result.code, result.out) == (2, "") and result.err.count("\n") == 1 and "data.class_names" in result.err
    assert sorted((home / "mlruns" / "runs").iterdir()) == before and "Traceback" not in result.err
