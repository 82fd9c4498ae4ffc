"""Confusion matrix, example errors and filters: right pixels, and letters that can be read."""

import threading

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bestrun.views import png, tiles

RANDOM = np.random.default_rng(0)
TITLE = "a-run-with-a-rather-long-name-000, step 10,000:\nvalidation split"


@pytest.fixture
def written(monkeypatch):
    """Text -> the box it takes, of all that is written into pictures; a text that was written twice is there twice."""
    found = []
    original = ImageDraw.ImageDraw.text

    def noting(draw, place, text, fill, font, anchor=None, *more, **named):
        spacing = named.get("spacing", 4)
        found.append((text, draw.textbbox(place, text, font, anchor, spacing=spacing)))
        return original(draw, place, text, fill, font, anchor, *more, **named)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noting)
    return found


def assert_readable(picture, written):
    for text, (left, top, right, bottom) in written:
        assert left >= 0 and top >= 0 and right <= picture.width and bottom <= picture.height, text
    for number, (text, one) in enumerate(written):
        for other, two in written[number + 1 :]:
            is_beside = one[2] <= two[0] or two[2] <= one[0]
            is_below = one[3] <= two[1] or two[3] <= one[1]
            assert is_beside or is_below, (text, other)


@pytest.mark.parametrize(("classes", "largest"), [(2, 7000), (10, 1135), (20, 99999), (21, 50), (100, 100), (300, 500)])
def test_a_confusion_matrix_is_readable_at_any_number_of_classes(written, classes, largest):
    matrix = RANDOM.integers(0, 9, (classes, classes))
    np.fill_diagonal(matrix, largest)
    picture = tiles.confusion_matrix(matrix, TITLE)
    assert max(picture.size) < 1600
    said = [text for text, _ in written]
    if classes <= 20:
        assert said[-(classes**2) :] == [str(count or ".") for count in matrix.flat]
    written[:] = [(text, box) for text, box in written if text != "true class"]  # drawn apart, and turned
    assert_readable(picture, written)


def test_a_confusion_matrix_has_the_true_classes_as_rows(written):
    tiles.confusion_matrix(np.array([[5, 2], [0, 7]]), "title")  # two images of class 0 were taken for class 1
    five, two, none, seven = (box for _, box in written[-4:])
    assert two[0] > five[0] and two[1] == five[1] and none[1] > five[1] and seven[0] > none[0]


@pytest.mark.parametrize("classes", [10, 100, 10_000])
def test_example_errors_say_true_and_predicted_class(written, classes):
    images = RANDOM.integers(0, 256, (30, 20, 28, 1)).astype(np.uint8)
    labels = np.arange(30) % 10 + classes - 10
    predictions = labels.copy()
    predictions[[2, 15, 29]] -= 1
    picture = tiles.example_errors(images, labels, predictions, TITLE)
    wanted = [f"true {labels[index]}\npredicted {predictions[index]}" for index in (2, 15, 29)]
    assert [text for text, _ in written if text.startswith("true")] == wanted
    assert "3 errors in 30 images" in written[0][0]
    assert_readable(picture, written)
    pixels = np.asarray(picture)
    first = np.repeat(np.repeat(images[2, ..., 0], 3, axis=0), 3, axis=1)
    top, left = tiles.title_end(written[0][0]), tiles.MARGIN
    assert np.array_equal(pixels[top : top + 60, left : left + 84, 1], first)


def test_no_errors_is_said(written):
    images, labels = np.zeros((1200, 8, 8, 1), np.uint8), np.zeros(1200, int)
    tiles.example_errors(images, labels, labels, "title")
    assert "0 errors in 1,200 images" in written[0][0]


@pytest.mark.parametrize(("shape", "errors"), [((28, 28, 1), 3), ((40, 30, 3), 50), ((200, 300, 3), 1), ((8, 8, 2), 0)])
def test_example_errors_of_any_image_size_are_pictures(shape, errors):
    images = RANDOM.integers(0, 256, (60, *shape)).astype(np.uint8)
    labels = np.zeros(60, int)
    predictions = np.where(np.arange(60) < errors, 7, 0)
    picture = tiles.example_errors(images, labels, predictions, "k")
    assert picture.size[0] < 1500 and picture.mode == "RGB"


@pytest.mark.parametrize("names", [None, ["cat", "dog", "a class with a long name", "emu"]])
def test_training_images_have_their_classes_below_and_mixed_ones_both_with_their_shares(written, names):
    images = RANDOM.integers(0, 256, (5, 32, 24, 3)).astype(np.uint8)
    labels, others = np.array([0, 1, 1, 3, 1]), np.array([1, 0, 2, 3, 0])
    shares = np.array([0.7, 1.0, 0.48, 0.6, 0.999], np.float32)
    picture = tiles.training_images(images, labels, others, shares, 4, "k: training", names)
    cat, dog, other, emu = ["cat", "dog", "a class with a long…", "emu"] if names else "0123"
    assert [text for text, _ in written[1:]] == [
        f"{cat} 0.7\n+ {dog} 0.3",
        dog,
        f"{other} 0.52\n+ {dog} 0.48",
        emu,
        dog,
    ]
    assert_readable(picture, written)
    pixels, top = np.asarray(picture), tiles.title_end("k: training")
    first = np.repeat(np.repeat(images[0], 3, axis=0), 3, axis=1)
    assert np.array_equal(pixels[top : top + 96, tiles.MARGIN : tiles.MARGIN + 72], first)


def test_filters_share_one_colour_scale_around_zero(written):
    kernel = RANDOM.normal(size=(5, 3, 1, 16))
    picture = tiles.filters(kernel, "layer_conv1")
    extreme = np.abs(kernel).max()
    assert "16 filters across" in written[0][0] and f"from -{extreme:.2g} (brown) to {extreme:.2g}" in written[0][0]
    top, left = tiles.title_end(written[0][0]), tiles.MARGIN
    tile = np.asarray(picture)[top + 16 * 6 : top + 16 * 11 : 16, left + 16 * 4 : left + 16 * 7 : 16]  # row 2, column 2
    red, blue = tile[..., 0].astype(int), tile[..., 2].astype(int)
    assert np.array_equal(red > blue, kernel[:, :, 0, 5] < 0)
    assert tiles.filters(np.zeros((3, 3, 1, 5)), "title").mode == "RGB"


@pytest.mark.parametrize("shape", [(5, 5, 1, 16), (5, 5, 16, 36), (3, 3, 300, 512), (63, 63, 3, 1), (1, 1, 1, 1)])
def test_filters_of_any_shape_are_pictures(written, shape):
    picture = tiles.filters(RANDOM.normal(size=shape), "k, step 0: layer_conv1")
    colours = np.unique(np.asarray(picture).reshape(-1, 3), axis=0)
    assert picture.size[0] < 3200 and len(colours) > 2
    if shape[2] > tiles.MAX_FILTERS or shape[3] > tiles.MAX_FILTERS:
        assert "the first 48" in written[0][0]
    assert_readable(picture, written)


def test_a_picture_is_written_at_once_by_any_thread_or_not_at_all(tmp_path, monkeypatch):
    matrix = RANDOM.integers(0, 9, (4, 4))

    def draw(number):
        png.write(tiles.confusion_matrix(matrix, "title"), tmp_path / "pictures" / f"{number}.png")

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (content,) = {path.read_bytes() for path in (tmp_path / "pictures").iterdir()}
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["0.png", "1.png", "2.png", "3.png"]
    with Image.open(tmp_path / "pictures" / "0.png") as picture:
        assert picture.format == "PNG"
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):
        draw(0)
    assert (tmp_path / "pictures" / "0.png").read_bytes() == content and len(list(tmp_path.rglob("*"))) == 5


def test_a_drawing_takes_half_the_bytes_and_looks_the_same_while_a_photograph_is_kept_to_the_bit(tmp_path):
    drawing = tiles.filters(RANDOM.normal(size=(5, 5, 16, 36)), "k, step 0: layer_conv2")
    photograph = Image.fromarray(RANDOM.integers(0, 256, (100, 100, 3), dtype=np.uint8))
    for name, picture in (("drawing", drawing), ("photograph", photograph)):
        picture.save(tmp_path / "plain.png")
        png.write(picture, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as written:
            off = np.abs(np.asarray(written.convert("RGB"), int) - np.asarray(picture, int))
        sizes = [(tmp_path / file).stat().st_size for file in (f"{name}.png", "plain.png")]
        if name == "drawing":
            assert sizes[0] < 0.5 * sizes[1] and off.max() <= 8
        else:
            assert off.max() == 0
