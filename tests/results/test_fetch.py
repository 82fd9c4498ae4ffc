"""What `bestrun fetch` hands over: proved, complete or not there at all, and of use to people without this project."""

import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from bestrun.storage.checkpoint import load
from support.looks import tree
from support.processes import forget_bestrun


def fetched(trained, reference, out, *words):
    return trained.bestrun("fetch", reference, "--out", out, *words)


USE = """
import json, sys
import keras, numpy
images = numpy.load(sys.argv[2])["x_test"][:, :, :, None]
try:
    import bestrun
except ImportError:
    model = keras.saving.load_model(sys.argv[1])
    print(json.dumps(model.predict(images, verbose=0).tolist()))
"""


def _use(model, npz):
    """USE, in this process, once bestrun cannot be imported in it."""
    forget_bestrun()
    sys.argv = ["use", model, npz]
    exec(USE, {})


@pytest.fixture(params=["forked", pytest.param("new", marks=pytest.mark.slow)])
def use(request, start_process, without_bestrun, tmp_path):
    """`use(model, npz)`: what USE prints where bestrun is not installed; a new interpreter takes 10 s."""

    def use(*words):
        if request.param == "forked":
            return start_process(_use, *map(str, words), cwd=tmp_path).wait().out
        command = [sys.executable, "-c", USE, *words]
        return subprocess.run(
            command, env=without_bestrun, cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=120
        ).stdout

    return use


@pytest.mark.parametrize("local", [[], pytest.param(["--local"], marks=pytest.mark.slow)])
def test_the_keras_file_needs_none_of_our_code(trained, tmp_path, small_mnist_npz, use, local):
    result = fetched(trained, "trained", tmp_path / "out", "--json", *local)
    assert result.code == 0, result.err
    report = json.loads(result.out)
    best = json.loads((trained.folder / "result.json").read_text())["best"]
    assert report["checkpoint"] == {"step": best["step"], "sha256": best["sha256"]}
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(report["files"])
    assert set(report["files"]) == {"model.keras", "config.yaml", best["checkpoint"]}
    assert load(tmp_path / "out" / best["checkpoint"], sha256=best["sha256"]).state.step == best["step"]
    probabilities = np.array(json.loads(use(tmp_path / "out" / "model.keras", small_mnist_npz)))
    assert probabilities.shape == (500, 10) and np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    restored = json.loads(trained.bestrun("restore", "trained", "--json").out)
    labels = np.load(small_mnist_npz)["y_test"]
    assert (probabilities.argmax(axis=1) == labels).sum() == restored["test"]["correct"]


@pytest.mark.slow
def test_the_lines_it_prints_work_as_they_stand(trained, tmp_path, without_bestrun):
    result = fetched(trained, "trained", tmp_path / "out")
    lines = result.out[result.out.index("import keras") :] + "print(probabilities.shape)"
    used = subprocess.run([sys.executable, "-c", lines], env=without_bestrun, capture_output=True, text=True)
    assert used.stdout.splitlines()[-1] == "(1, 10)", used.stderr


def test_a_refused_fetch_leaves_nothing_and_writes_nowhere_else(trained, tmp_path, changed):
    path = changed(next((trained.artifacts / "checkpoints").iterdir()))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    before = tree(trained.home)
    result = fetched(trained, "trained", tmp_path / "new" / "out")
    assert result.code == 5 and result.err.count("\n") == 1
    assert tree(trained.home) == before and not (tmp_path / "new").exists()


def test_nothing_outside_the_folder_is_written(trained, tmp_path):
    before = tree(trained.home)
    (tmp_path / "out").mkdir()
    assert fetched(trained, "trained", tmp_path / "out").code == 0
    assert tree(trained.home) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_files_is_left_alone(trained, tmp_path):
    (tmp_path / "mine").touch()
    result = fetched(trained, "trained", tmp_path)
    assert result.code == 2 and "has files in it" in result.err and [p.name for p in tmp_path.iterdir()] == ["mine"]


def _fetch_and_measure(out, reference):
    from bestrun.cli.main import main

    sys.argv = ["bestrun", "fetch", reference, "--out", out]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        main()
    finally:
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)


def test_shapes_are_compared_before_memory_is_taken(trained, start_process, tmp_path, changed, database):
    """A terabyte of weights, said by settings and data that the checkpoint does not fit."""
    config = changed(trained.artifacts / "config" / "config.yaml")
    config.write_text(config.read_text().replace("fc_size: 16", "fc_size: 65536"))
    with database:
        database.execute(
            "UPDATE datasets SET dataset_profile = replace(dataset_profile, '[28, 28, 1]', '[8192, 8192, 3]')"
        )
    result = start_process(_fetch_and_measure, str(tmp_path / "out"), "trained", cwd=trained.home).wait(60)
    assert result.code == 5 and "this network has" in result.err and int(result.out.split()[-1]) < 300, result


@pytest.mark.parametrize(
    "shape",
    ["[60000, 60000, 1]", "[28, 28]", "[28, 28, 0]", '[28, 28, "1"]', "[28, 28, 1e9]", "[28, 28, true]", "null"],
)
def test_an_image_shape_that_cannot_be_is_refused(trained, tmp_path, database, shape):
    with database:
        database.execute("UPDATE datasets SET dataset_profile = replace(dataset_profile, '[28, 28, 1]', ?)", [shape])
    result = fetched(trained, "trained", tmp_path / "out")
    assert result.code == 5 and result.err.count("\n") == 1 and not (tmp_path / "out").exists()


def _huge_activations(tensors, shape):
    from bestrun.errors import VerificationError
    from bestrun.training.model import build_restored
    from bestrun.training.networks import cnn
    from bestrun.training.variables import named_variables, read_variables

    network = dict(filter_sizes=(1,) * 12, num_filters=(64,) * 12, fc_size=1)
    small = read_variables(named_variables(cnn.build((4096, 4096, 1), 10, **network)))
    try:
        build_restored("cnn", (4096, 4096, 1), 10, tensors=small, source="it", seed=0, **network)
    except VerificationError as error:
        print(error)


def test_a_small_network_of_huge_images_is_refused(start_process):
    """Its few weights fit, and the first image would take 4 GiB in its first layer."""
    result = start_process(_huge_activations, None, None).wait(60)
    assert "takes 1,073,741,824 values" in result.out, result.err


@pytest.mark.parametrize("place", ["artifact", "folder"])
def test_a_sparse_terabyte_is_not_read(trained, start_process, tmp_path, changed, place):
    folder = trained.artifacts / "checkpoints" if place == "artifact" else trained.folder
    path = changed(next(folder.glob("best-*")))
    os.truncate(path, 1 << 40)
    words = ["--local"] if place == "folder" else []
    result = trained.bestrun("fetch", "trained", "--out", tmp_path / "out", *words, timeout=30)
    assert result.code == 5 and "1,099,511,627,776 bytes" in result.err and not (tmp_path / "out").exists()


def test_a_run_without_a_best_is_refused(trained, tmp_path, database):
    with database:
        database.execute("DELETE FROM tags WHERE key LIKE 'bestrun.best%'")
    result = fetched(trained, "trained", tmp_path / "out")
    assert result.code == 5 and "no best checkpoint" in result.err


def test_a_changed_split_is_named(trained, small_mnist_npz, tmp_path):
    arrays = dict(np.load(small_mnist_npz))
    fewer = {key: values[:400] if key.endswith("test") else values for key, values in arrays.items()}
    np.savez(tmp_path / "fewer.npz", **fewer)
    result = trained.bestrun("restore", "trained", f"data.path={tmp_path / 'fewer.npz'}")
    assert result.code == 3 and "test 400, the run had 500" in result.err
    unsplit = {key: values for key, values in arrays.items() if not key.endswith("val")}
    np.savez(tmp_path / "unsplit.npz", **unsplit)
    result = trained.bestrun("restore", "trained", f"data.path={tmp_path / 'unsplit.npz'}", "data.validation_size=300")
    assert result.code == 3 and "another split: data.validation_size=300, the run had 0.1" in result.err
    np.savez(tmp_path / "other.npz", **arrays | {"y_test": (arrays["y_test"] + 1) % 10})
    result = trained.bestrun("restore", "trained", f"data.path={tmp_path / 'other.npz'}")
    assert result.code == 3 and "other images or labels" in result.err and "--allow-other-data" in result.err


def test_figures_of_other_data_are_not_the_runs(trained, small_mnist_npz, tmp_path):
    from mlflow import MlflowClient

    arrays = dict(np.load(small_mnist_npz))
    np.savez(tmp_path / "other.npz", **arrays | {"y_test": (arrays["y_test"] + 1) % 10})
    before = MlflowClient(trained.uri).get_run(trained.run_id).data.metrics.get("test/accuracy")
    words = ["restore", "trained", f"data.path={tmp_path / 'other.npz'}", "--allow-other-data", "--json"]
    assert json.loads(trained.bestrun(*words).out)["test"]["accuracy"] < 0.2
    assert MlflowClient(trained.uri).get_run(trained.run_id).data.metrics.get("test/accuracy") == before


def test_images_of_another_size_are_refused_even_so(trained, colour_npz):
    result = trained.bestrun(
        "restore", "trained", f"data.path={colour_npz}", "data.validation_size=50", "--allow-other-data"
    )
    assert result.code == 3 and "(12, 10, 3)" in result.err and "(28, 28, 1)" in result.err


def test_a_local_restore_keeps_its_files_too(trained, tmp_path):
    result = trained.bestrun("restore", "trained", "--local", "--out", tmp_path / "kept", "--json")
    assert load(tmp_path / "kept" / json.loads(result.out)["checkpoint"]["path"].rpartition("/")[2])
    assert (tmp_path / "kept" / "config.yaml").is_file()
    shutil.rmtree(tmp_path / "kept")
