"""Names of classes in pictures and tables: readable where a font here can write them, never more than text."""

import time
import warnings

import numpy as np
import pytest
from PIL import ImageDraw

from bestrun.class_names import cleaned
from bestrun.data.known import FASHION_MNIST_CLASSES
from bestrun.formatting import text_width
from bestrun.views import charts, curves, lettering, tiles
from support.hostile_names import HOSTILE, assert_tame

RANDOM = np.random.default_rng(0)
NASTY = tuple(map(cleaned, HOSTILE))
IMAGES = RANDOM.integers(0, 256, (30, 20, 28, 1)).astype(np.uint8)
LABELS = np.arange(30) % 10
FONTS = {"latin": FASHION_MNIST_CLASSES, "hostile": NASTY, "chinese": tuple("一二三四五六七八九十"), "none": None}


@pytest.fixture
def written(monkeypatch):
    """All that is written into pictures."""
    found = []
    original = ImageDraw.ImageDraw.text

    def noting(draw, place, text, *more, **named):
        found.append(text)
        return original(draw, place, text, *more, **named)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noting)
    return found


def matrix_of(classes):
    matrix = RANDOM.integers(0, 9, (classes, classes))
    np.fill_diagonal(matrix, 980)
    return matrix


@pytest.mark.parametrize("names", FONTS.values(), ids=FONTS)
def test_both_sides_of_a_confusion_matrix_are_named_and_nothing_touches(written, names):
    picture = tiles.confusion_matrix(matrix_of(10), "k: validation split", names)
    called = lettering.class_labels(names, 10)
    assert all(written.count(text) >= 2 for text in called) and max(picture.size) < 1000
    for text in written:
        assert_tame(text)
    pixels = np.asarray(picture.convert("L"))
    assert (pixels[:, :2] == 255).all() and (pixels[:, -2:] == 255).all(), "a letter leaves the picture"


@pytest.mark.parametrize("names", FONTS.values(), ids=FONTS)
def test_example_errors_name_both_classes(written, names):
    tiles.example_errors(IMAGES, LABELS, (LABELS + 1) % 10, "k", names)
    called = lettering.class_labels(names, 10)
    assert f"true {called[0]}\npredicted {called[1]}" in written
    for text in written:
        assert_tame(text)


def test_a_name_that_no_font_here_can_write_is_its_number_and_no_box():
    assert lettering.class_labels(("猫", "Ägypten", "Ёж", "🦄🦖"), 4) == ["0", "Ägypten", "Ёж", "3"]
    assert lettering.font_for(["T-shirt/top…"]) is lettering.font() is not lettering.font_for(["Ägypten"])
    assert lettering.class_labels(None, 3) == ["0", "1", "2"]


def test_without_matplotlib_s_font_such_names_are_numbers(monkeypatch):
    monkeypatch.setattr(lettering, "find_spec", lambda name: None)
    lettering.wider_font.cache_clear()
    try:
        assert lettering.class_labels(("Ägypten", "cat"), 2) == ["0", "cat"]
    finally:
        lettering.wider_font.cache_clear()


@pytest.mark.parametrize("names", FONTS.values(), ids=FONTS)
def test_what_runs_disagree_on_is_named_and_no_name_is_a_formula(names):
    said = {"A": LABELS, "B": (LABELS + 1) % 10, "C": (LABELS + 2) % 10}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a missing glyph
        figure = charts.disagreements_figure(IMAGES, LABELS, said, "where they differ", names=names)
        figure.canvas.draw()
    below = [axes.xaxis.label for axes in figure.axes]
    called = lettering.class_labels(names, 10, 16)
    assert below[0].get_text().split("\n")[0] == f"true {called[0]}"
    assert not any(label.get_parse_math() for label in below)
    assert_tame("".join(label.get_text() for label in below))


def test_a_thousand_named_classes_are_a_readable_picture_and_a_short_table(written):
    names = tuple(f"{'a rather long name of a class ' * 3}{number}" for number in range(1000))
    matrix, began = matrix_of(1000), time.process_time()
    picture = tiles.confusion_matrix(matrix, "k", names)
    assert max(picture.size) < 2400 and len(written) < 60 and time.process_time() - began < 30
    lines = curves.confusion_matrix_text(matrix, names).splitlines()
    assert len(lines) == 22 and max(map(text_width, lines)) < 80


@pytest.mark.parametrize("names", FONTS.values(), ids=FONTS)
def test_a_table_of_confusions_is_aligned_whatever_its_names(names):
    lines = curves.confusion_matrix_text(matrix_of(10), names).splitlines()
    assert len(lines) == 12 and len({text_width(line) for line in lines[1:]}) == 1 and text_width(lines[1]) <= 80
    for text in (*lines, curves.confusion_difference_text(matrix_of(10).tolist(), names)):
        assert_tame(text)
    if names:
        assert lines[2].startswith(" 0 ") and (names is NASTY or names[0] in lines[2])


def test_a_table_of_differences_names_its_classes():
    text = curves.confusion_difference_text([[0, 3], [-2, 1]], ("ring-tailed cat", "dog"))
    assert [line.split() for line in text.splitlines()] == [
        ["true", "predicted", "images"], ["ring-tailed", "cat", "dog", "+3"], ["dog", "ring-tailed", "cat", "-2"],
        ["dog", "dog", "+1", "right"],
    ]  # fmt: skip
