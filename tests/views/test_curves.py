"""Pictures open, say what they show, and are never there by half."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from bestrun.views import curves

RANDOM = np.random.default_rng(0)


def matrix_of(classes: int, largest: int = 980) -> np.ndarray:
    matrix = RANDOM.integers(0, 9, (classes, classes))
    np.fill_diagonal(matrix, largest)
    return matrix


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [text.get_text() for text in figure.texts]


def overlapping(figure, labels) -> list[tuple[str, str]]:
    figure.canvas.draw()
    boxes = [(label.get_text(), label.get_window_extent()) for label in labels if label.get_text()]
    return [(a, b) for i, (a, one) in enumerate(boxes) for b, other in boxes[i + 1 :] if one.overlaps(other)]


def test_importing_plots_imports_no_matplotlib_and_drawing_no_pyplot(tmp_path):
    program = (
        "import sys, numpy, pathlib; from bestrun.views import curves; assert 'matplotlib' not in sys.modules;"
        f"curves.filters_picture(numpy.ones((3, 3, 1, 4)), 'title', pathlib.Path({str(tmp_path / 'a.png')!r}));"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_every_picture_is_a_png_and_leaves_nothing_beside_it(tmp_path):
    images = RANDOM.integers(0, 256, (20, 12, 10, 3)).astype(np.uint8)
    folder = tmp_path / "pictures"
    curves.confusion_matrix_picture(matrix_of(10), "title", folder / "matrix.png")
    curves.example_errors_picture(images, np.zeros(20, int), np.ones(20, int), "title", folder / "errors.png")
    curves.filters_picture(RANDOM.normal(size=(5, 5, 1, 16)), "title", folder / "filters.png")
    curves.curves_picture([{"step": 0, "val/loss": 2.3, "val/accuracy": 0.1}], None, "title", folder / "curves.png")
    assert sorted(path.name for path in folder.iterdir()) == ["curves.png", "errors.png", "filters.png", "matrix.png"]
    for path in folder.iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG" and min(picture.size) >= 280
            assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 5, "nothing is drawn"


def test_a_picture_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "matrix.png"
    path.write_bytes(b"the old picture")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):
        curves.confusion_matrix_picture(matrix_of(3), "title", path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("matrix.png", b"the old picture")]


def test_threads_draw_at_once(tmp_path):
    matrix = matrix_of(4)
    draw = [
        threading.Thread(target=curves.confusion_matrix_picture, args=(matrix, "title", tmp_path / f"{number}.png"))
        for number in range(4)
    ]
    for thread in draw:
        thread.start()
    for thread in draw:
        thread.join()
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(("classes", "largest"), [(2, 7000), (10, 1135), (20, 99999), (21, 50), (100, 100)])
def test_confusion_matrix_is_readable_with_any_number_of_classes(classes, largest):
    matrix = matrix_of(classes, largest)
    figure = curves.confusion_matrix_figure(matrix, "costs $5 and $6")
    axes = figure.axes[0]
    assert (axes.get_title(), axes.get_ylabel()) == ("costs $5 and $6", "true class")
    assert axes.get_xlabel().startswith("predicted class") and "images" in axes.get_xlabel()
    cells = [cell.get_text() for cell in axes.texts]
    assert cells == ([str(count) for count in matrix.flat] if classes <= 20 else [])
    for labels in (axes.get_xticklabels(), axes.get_yticklabels(), axes.texts):
        assert overlapping(figure, labels) == []


def test_confusion_matrix_has_the_true_classes_as_rows():
    matrix = np.array([[5, 2], [0, 7]])  # two images of class 0 were taken for class 1
    cell = curves.confusion_matrix_figure(matrix, "title").axes[0].texts[1]
    assert (cell.get_text(), cell.get_position()) == ("2", (1, 0))
    assert curves.confusion_matrix_text(matrix).splitlines()[2].split() == ["0", "5", "2"]


@pytest.mark.parametrize("largest", [0, 980, 999999])
def test_confusion_table_is_aligned_and_fits_a_terminal(largest):
    lines = curves.confusion_matrix_text(matrix_of(10, largest)).splitlines()
    assert len(lines) == 12 and max(map(len, lines)) <= 80
    assert len({len(line) for line in lines[1:]}) == 1
    assert lines[1].split() == ["true", *map(str, range(10))]


def test_many_classes_are_told_as_the_most_frequent_confusions():
    matrix = np.diag(np.full(100, 50))
    matrix[3, 77], matrix[4, 5] = 9, 11
    lines = curves.confusion_matrix_text(matrix).splitlines()
    assert [line.split() for line in lines[2:]] == [["4", "5", "11"], ["3", "77", "9"]]
    assert curves.confusion_matrix_text(np.diag(np.full(100, 50))).splitlines()[0].startswith("the 0 most frequent")


def test_example_errors_say_true_and_predicted_class():
    images = RANDOM.integers(0, 256, (30, 20, 28, 1)).astype(np.uint8)
    labels = np.arange(30) % 10
    predictions = labels.copy()
    predictions[[2, 15, 29]] = [7, 0, 1]
    figure = curves.example_errors_figure(images, labels, predictions, "test split")
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "true 2, predicted 7",
        "true 5, predicted 0",
        "true 9, predicted 1",
    ]
    for axes, index in zip(figure.axes, (2, 15, 29), strict=True):
        assert np.array_equal(axes.images[0].get_array(), images[index, ..., 0])
    assert "3 of 3 errors in 30 images" in figure.get_suptitle()
    assert len(curves.example_errors_figure(images, labels, labels + 1, "title", most=5).axes) == 5
    wide = curves.example_errors_figure(images, labels + 1000, labels + 1001, "title")
    assert overlapping(wide, [axes.xaxis.label for axes in wide.axes]) == []


@pytest.mark.parametrize(("channels", "shape"), [(1, (8, 8)), (2, (8, 8)), (3, (8, 8, 3))])
def test_example_errors_are_grey_or_in_colour(channels, shape):
    images = RANDOM.integers(0, 256, (1, 8, 8, channels)).astype(np.uint8)
    figure = curves.example_errors_figure(images, np.zeros(1, int), np.ones(1, int), "title")
    assert figure.axes[0].images[0].get_array().shape == shape


def test_no_errors_is_said():
    images, labels = np.zeros((1200, 8, 8, 1), np.uint8), np.zeros(1200, int)
    assert "no errors in 1,200 images" in texts(curves.example_errors_figure(images, labels, labels, "title"))


def test_filters_share_one_colour_scale_around_zero():
    kernel = RANDOM.normal(size=(5, 3, 1, 16))
    shown = curves.filters_figure(kernel, "layer_conv1").axes[0].images[0]
    low, high = shown.get_clim()
    assert high == -low == np.abs(kernel).max()
    tiles = shown.get_array()
    assert tiles.shape == (4 * 6 - 1, 4 * 4 - 1)
    assert np.array_equal(tiles[6:11, 4:7], kernel[:, :, 0, 5])  # second row, second column
    assert curves.filters_figure(np.zeros((3, 3, 1, 5)), "title").axes[0].images[0].get_clim() == (-1, 1)


def test_filters_of_deeper_layers_have_a_row_for_each_input_channel():
    kernel = RANDOM.normal(size=(5, 5, 16, 36))
    axes = curves.filters_figure(kernel, "layer_conv2").axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("filters (36)", "input channels (16)")
    assert np.array_equal(axes.images[0].get_array()[12:17, 18:23], kernel[:, :, 2, 3])
    large = curves.filters_figure(np.zeros((3, 3, 128, 256)), "title").axes[0]
    assert large.get_xlabel() == f"filters (the first {curves.MAX_FILTERS} of 256)"


def test_curves_mark_the_best_and_leave_out_what_is_missing():
    history = [
        {"step": 0, "train/loss": None, "train/accuracy": None, "val/loss": 2.3, "val/accuracy": 0.1},
        {"step": 100, "train/loss": 0.9, "train/accuracy": 0.7, "val/loss": 0.5, "val/accuracy": 0.9},
        {"step": 200, "train/loss": float("nan"), "val/loss": float("inf"), "val/accuracy": 0.85},
    ]
    accuracy, loss = curves.curves_figure(history, 100, "title").axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in accuracy.lines}
    assert lines["train"] == [[100, 0.7]]
    assert lines["validation"] == [[0, 0.1], [100, 0.9], [200, 0.85]]
    assert lines["best, 0.9"] == [[100, 0.9]]
    assert {line.get_label(): line.get_xydata().tolist() for line in loss.lines}["validation"] == [[0, 2.3], [100, 0.5]]
    assert (accuracy.get_ylabel(), loss.get_xlabel()) == ("accuracy", "step (optimizer updates)")
    assert len(curves.curves_figure([], None, "title").axes) == 2
