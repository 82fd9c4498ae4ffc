"""`bestrun predict`: what the proved best says of images from anywhere, scaled to what the network takes."""

import json

import numpy as np
import pytest
from PIL import Image

from support.looks import tree


@pytest.fixture
def digits(small_mnist_npz):
    """Test images (500, 28, 28) of which the network knows most, with labels."""
    arrays = np.load(small_mnist_npz)
    return arrays["x_test"], arrays["y_test"]


def predicted(trained, *words):
    result = trained.bestrun("predict", "trained", *words, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_predictions_are_those_that_restore_counted(trained, digits, tmp_path):
    images, labels = digits
    np.savez(tmp_path / "all.npz", x=images)
    report = predicted(trained, tmp_path / "all.npz")
    best = json.loads((trained.folder / "result.json").read_text())["best"]
    assert report["run_id"] == trained.run_id and report["run_name"] == "trained"
    assert report["checkpoint"] == {"step": best["step"], "sha256": best["sha256"]}
    rows = report["predictions"]
    assert [row["image"] for row in rows] == [f"{tmp_path / 'all.npz'}[{number}]" for number in range(500)]
    test = json.loads(trained.bestrun("restore", "trained", "--json").out)["test"]
    assert sum(row["class"] == label for row, label in zip(rows, labels.tolist(), strict=True)) == test["correct"]
    for row in rows:
        assert len(row["probabilities"]) == 10 and abs(sum(row["probabilities"]) - 1) < 1e-12
        assert row["class"] == int(np.argmax(row["probabilities"]))


def test_local_and_mlflow_say_the_same(trained, digits, tmp_path):
    Image.fromarray(digits[0][0]).save(tmp_path / "one.png")
    assert predicted(trained, tmp_path / "one.png") == predicted(trained, tmp_path / "one.png", "--local")


@pytest.fixture(scope="module")
def pictures(trained, small_mnist_npz, tmp_path_factory):
    """One test image as people may have it: a folder of files, and what one call says of them, by their names."""
    folder, image = tmp_path_factory.mktemp("pictures"), np.load(small_mnist_npz)["x_test"][3]
    Image.fromarray(image).save(folder / "a.png")
    Image.fromarray(image).save(folder / "a.jpg", quality=100)
    np.savez(folder / "a.npz", x=image[None])
    Image.fromarray(image).resize((280, 280)).save(folder / "large.png")
    Image.fromarray(255 - image).save(folder / "dark.png")
    names = ["a.png", "a.jpg", "a.npz", "large.png"]
    return folder, dict(zip(names, predicted(trained, *(folder / name for name in names))["predictions"], strict=True))


def test_png_jpeg_and_npz_of_one_image_agree(pictures):
    png, jpeg, npz = (pictures[1][f"a.{kind}"] for kind in ("png", "jpg", "npz"))
    assert png["probabilities"] == npz["probabilities"] and png["class"] == jpeg["class"]
    assert np.allclose(png["probabilities"], jpeg["probabilities"], atol=0.05)


def test_larger_pictures_are_scaled_and_dark_digits_inverted(trained, pictures):
    folder, said = pictures
    (dark,) = predicted(trained, folder / "dark.png", "--invert")["predictions"]
    assert dark["probabilities"] == said["a.png"]["probabilities"] and said["large.png"]["class"] == dark["class"]


def test_people_read_the_two_best_classes(trained, pictures):
    folder, said = pictures
    heading, line = trained.bestrun("predict", "trained", folder / "a.png").out.splitlines()
    assert heading.split() == ["image", "class", "probability", "second", "probability"]
    probabilities = said["a.png"]["probabilities"]
    order = np.argsort(probabilities)[::-1]
    first, second = (f"{100 * probabilities[label]:.2f}" for label in order[:2])
    assert line.split() == [str(folder / "a.png"), str(order[0]), first, "%", str(order[1]), second, "%"]


@pytest.mark.parametrize("content", [None, b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused_and_nothing_is_printed(trained, digits, tmp_path, content):
    Image.fromarray(digits[0][0]).save(tmp_path / "good.png")
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    result = trained.bestrun("predict", "trained", tmp_path / "good.png", tmp_path / "bad.png", "--json")
    assert (result.code, result.out) == (3, "") and str(tmp_path / "bad.png") in result.err


def test_a_damaged_checkpoint_predicts_nothing(trained, digits, tmp_path, changed):  # noqa: F811
    Image.fromarray(digits[0][0]).save(tmp_path / "good.png")
    path = changed(next((trained.artifacts / "checkpoints").iterdir()))
    path.write_bytes(path.read_bytes()[:-1])
    result = trained.bestrun("predict", "trained", tmp_path / "good.png")
    assert (result.code, result.out) == (5, "") and result.err.count("\n") == 1


def test_nothing_is_written(trained, digits, tmp_path):
    Image.fromarray(digits[0][0]).save(tmp_path / "one.png")
    before = tree(trained.home)
    predicted(trained, tmp_path / "one.png")
    assert tree(trained.home) == before and [path.name for path in tmp_path.iterdir()] == ["one.png"]


def _batches(images):
    """How many images the network saw at once, when its settings ask for a million and memory for fewer."""
    from types import SimpleNamespace

    from bestrun.results import predict, restore
    from bestrun.training import device, evaluation, model
    from bestrun.training.networks import cnn

    device.prepare(None)
    seen = []
    original = evaluation.compile_predict
    evaluation.compile_predict = lambda network, size: seen.append(size) or original(network, size)
    network = cnn.build((28, 28, 1), 10, filter_sizes=(5,), num_filters=(4,), fc_size=4)
    predict.rebuild = lambda fetched, **_: restore.Rebuilt(network, None)
    model.MAX_VALUES = 100 * 28 * 28 * 4
    training, data = SimpleNamespace(evaluation_batch_size=10**6), SimpleNamespace()
    config = SimpleNamespace(threads=None, training=training, data=data, model=SimpleNamespace(name="cnn"))
    checkpoint = SimpleNamespace(state=SimpleNamespace(step=1), sha256="")
    fetched = restore.Fetched("", "", config, checkpoint, "", {}, None, (28, 28, 1), 10, {})
    print(len(predict.predict(fetched, [images])["predictions"]), *seen)


def test_a_batch_is_bounded_whatever_the_settings_ask_for(start_process, digits, tmp_path):
    np.savez(tmp_path / "all.npz", x=digits[0])
    result = start_process(_batches, str(tmp_path / "all.npz")).wait()
    assert result.out.split()[-2:] == ["500", "100"], result.err
