"""Pictures of a run while it learns: which sets there are, that MLflow's slider finds them, that they cost no run."""

import contextlib
import json

import numpy as np
import pytest
from PIL import Image

from bestrun.data.dataset import Dataset, Split
from bestrun.data.order import batch_indices
from bestrun.settings.compose import compose
from bestrun.storage.folder import RunFolder
from bestrun.storage.journal import Journal, read_journal
from bestrun.views import tiles
from support.lines import SMALL_NETWORK, with_pictures
from support.stores import copy_home, mlflow_record, run_folder, sqlite_uri

WORDS = [*SMALL_NETWORK, "augmentation=images", "training.max_steps=80", "training.evaluate_every_steps=10"]
WORDS += ["training.patience_steps=80", "tracking.log_model=none"]
KEYS = {"confusion matrix", "example errors", "filters layer_conv1", "filters layer_conv2"}


@pytest.fixture
def settings(settings):
    return with_pictures(settings)


@pytest.fixture(scope="module")
def words(small_mnist_npz):
    return ["data=npz", f"data.path={small_mnist_npz}", *WORDS]


@pytest.fixture(scope="module")
def drawn(own_home, words):
    """A home with a run k that has drawn its pictures."""
    home, bestrun = own_home()
    result = bestrun("train", *words, "name=k")
    assert result.code == 0, result.err
    return home


def events(folder, kind):
    return [event for event in read_journal(folder.journal)[0] if event["event"] == kind]


def sets(folder) -> dict[int, set[str]]:
    """Step -> what was drawn there."""
    found: dict[int, set[str]] = {}
    for event in events(folder, "picture"):
        if "key" in event:
            found.setdefault(event["step"], set()).add(event["key"])
    return found


def test_a_run_has_at_most_six_sets_of_pictures_the_last_of_the_best(drawn):
    folder = run_folder(drawn, "k")
    best, found = json.loads(folder.result.read_text())["best"]["step"], sets(folder)
    assert 0 in found and max(found) == best and 3 <= len(found) <= 6
    assert all(keys == KEYS for keys in found.values())
    improved = {line["step"] for line in events(folder, "evaluation") if line["improved"]}
    assert found.keys() - {0} <= improved
    for due in (5, 10, 20, 40):  # of 80 steps; the first improvement from there on, or the best
        later = {step for step in improved if step >= due}
        assert not later or min(later) in found or max(later) in found
    for event in events(folder, "picture"):
        with Image.open(folder.path / event["path"]) as picture:
            picture.verify()


def test_mlflow_has_each_picture_once_under_its_step_also_when_sent_again(bestrun, drawn, home):
    copy_home(drawn, home)
    folder, uri = run_folder(home, "k"), sqlite_uri(home)
    run, _, artifacts = mlflow_record(uri, "k")
    pictures = [(event["key"], event["step"]) for event in events(folder, "picture") if "key" in event]
    full = [path for path in artifacts["images"] if path.endswith(".png")]
    assert sorted(tuple(path.split("/")[1].split("+")[:3:2]) for path in full) == sorted(
        (key, str(step)) for key, step in pictures
    )
    assert len(artifacts["images"]) == 2 * len(full) and run.data.tags["mlflow.loggedImages"] == "True"
    assert {"pictures/curves.png", "pictures/augmentation.png"} <= set(artifacts["pictures"])
    state = json.loads(folder.mirror.read_text())
    folder.mirror.write_text(json.dumps(state | {"acknowledged": 0}))
    assert bestrun("sync", "k").code == 0
    assert mlflow_record(uri, "k")[2] == artifacts


def drawn_first(home, words, name="k"):
    """The pictures of a run that ends after its first steps, by its gallery alone."""
    from bestrun.run.gallery import Gallery
    from bestrun.training import device

    device.prepare(None)
    folder = RunFolder(home / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    split = Split(random.integers(0, 256, (30, 8, 8, 3), np.uint8), np.arange(30) % 3)
    data = Dataset("drawn", split, split, split, 3, "digest", (), class_names=("cat", "dog", "emu"))
    config = compose([*words, "training.batch_size=20"]).config
    with Journal(folder.journal) as journal:
        with contextlib.closing(Gallery(folder, journal, data, config)) as gallery:
            gallery.progress()
            gallery.progress()
        return folder, config, data, [event["path"] for event in journal.events]


@pytest.mark.parametrize("words", [["augmentation=images"], ["augmentation=affine", "training.cutmix_share=1"]])
def test_a_run_that_varies_its_images_begins_with_a_picture_of_what_its_first_step_sees(tmp_path, words):
    from bestrun.training.preview import first_images

    folder, config, data, drawn = drawn_first(tmp_path, words)
    assert drawn == ["pictures/augmentation.png"]
    with Image.open(folder.path / drawn[0]) as picture:
        pixels = np.asarray(picture.convert("RGB"), int)
    images, labels, *_ = first_images(config, data.train, 16)
    assert len(images) == 16
    if len(words) == 1:  # else what is mixed has two labels
        np.testing.assert_array_equal(labels, data.train.labels[batch_indices(0, 0, 1, 20, 30)[0, :16]])
    enlarged = np.repeat(np.repeat(images[0], 12, axis=0), 12, axis=1)
    top = tiles.title_end("two\nlines")
    first = pixels[top : top + 96, tiles.MARGIN : tiles.MARGIN + 96]
    np.testing.assert_allclose(first, enlarged, rtol=0, atol=8)  # of a palette
    assert not np.array_equal(images[0], data.train.images[batch_indices(0, 0, 1, 20, 30)[0, 0]])
    before = (folder.path / drawn[0]).stat().st_mtime_ns
    assert drawn_first(tmp_path, words)[3] == drawn, "a resumed run has it"
    assert (folder.path / drawn[0]).stat().st_mtime_ns == before


def test_a_run_without_variation_or_without_pictures_has_no_such_picture(tmp_path):
    assert drawn_first(tmp_path, [])[3] == []
    assert drawn_first(tmp_path, ["augmentation=images", "pictures=false"])[3] == []
    assert drawn_first(tmp_path, ["training.mixup_share=0.5"])[3] == ["pictures/augmentation.png"]


def test_code_of_ones_own_that_fails_costs_its_picture_and_not_those_after_it(tmp_path, monkeypatch, caplog):
    from bestrun.training import preview

    monkeypatch.setattr(preview, "variation", lambda config: 1 / 0)
    caplog.set_level("INFO", "bestrun")
    assert drawn_first(tmp_path, ["augmentation=affine"])[3] == []
    assert "a picture is not drawn: augmentation=affine: division by zero" in caplog.text


@pytest.mark.slow
def test_pictures_are_off_where_asked_and_in_sweeps(bestrun, home, settings):
    settings = [*settings, "augmentation=affine"]
    assert bestrun("train", *settings, "name=none", "pictures=false").code == 0
    assert not run_folder(home, "none").pictures.exists()
    assert bestrun("train", "-m", *settings, "seed=0,1", "sweep.name=s").code == 0
    assert not any(path.is_dir() for path in (home / "mlruns" / "runs").glob("s-*/pictures"))
    assert bestrun("train", "-m", *settings, "seed=0,1", "sweep.name=drawn", "pictures=true").code == 0
    assert any(path.is_dir() for path in (home / "mlruns" / "runs").glob("drawn-*/pictures"))


def test_pictures_do_not_change_the_result(bestrun, drawn, home, words):
    assert bestrun("train", *words, "name=k", "pictures=false").code == 0
    with_, without = (
        [[line["val/loss"], line["train/loss"]] for line in events(run_folder(each, "k"), "evaluation")]
        for each in (drawn, home)
    )
    assert with_ == without


@pytest.mark.slow
def test_a_run_that_cannot_write_pictures_is_finished_all_the_same(bestrun, home, settings):
    assert bestrun("train", *settings, "name=k").code == 0
    folder = run_folder(home, "k")
    for path in folder.pictures.iterdir():
        path.unlink()
    folder.pictures.rmdir()
    folder.pictures.touch()  # a file where the folder should be
    result = bestrun("resume", "k", "training.max_steps=80", "training.patience_steps=80")
    assert result.code == 0, result.err
    assert "a picture is not drawn" in folder.log.read_text()


def test_a_resumed_run_s_curves_mark_where_it_was_resumed(tmp_path):
    from bestrun.views import curves

    history = [{"step": step, "val/accuracy": 0.5 + step / 100, "val/loss": 1.0} for step in range(0, 50, 10)]
    axes = curves.curves_figure(history, 40, "k", resumed=[20]).axes[0]
    assert "resumed" in [text.get_text() for text in axes.get_legend().get_texts()]
    assert any(list(line.get_xdata()) == [20, 20] for line in axes.lines)
