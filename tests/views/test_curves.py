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


def test_importing_plots_imports_no_matplotlib_and_drawing_no_pyplot(tmp_path):
    program = (
        "import sys, numpy, pathlib; from bestrun.views import curves; assert 'matplotlib' not in sys.modules;"
        f"curves.curves_picture([], None, 'title', pathlib.Path({str(tmp_path / 'a.png')!r}));"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_picture_is_a_png_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "pictures" / "curves.png"
    curves.curves_picture([{"step": 0, "val/loss": 2.3, "val/accuracy": 0.1}], None, "title", path)
    assert [path.name for path in path.parent.iterdir()] == ["curves.png"]
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) >= 280
        assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 5, "nothing is drawn"


def test_a_picture_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    path.write_bytes(b"the old picture")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):
        curves.curves_picture([], None, "title", path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("curves.png", b"the old picture")]


def test_threads_draw_at_once(tmp_path):
    draw = [
        threading.Thread(target=curves.curves_picture, args=([], None, "title", tmp_path / f"{number}.png"))
        for number in range(4)
    ]
    for thread in draw:
        thread.start()
    for thread in draw:
        thread.join()
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert len(list(tmp_path.iterdir())) == 4


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
