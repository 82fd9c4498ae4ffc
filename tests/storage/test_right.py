"""`bestrun.storage.right`: a bit an image, there and back."""

import json

import numpy as np
import pytest

from bestrun.storage import right


@pytest.mark.parametrize("images", [1, 7, 8, 9, 5000, 20_000])
def test_bits_come_back(images):
    bits = np.random.default_rng(images).random(images) < 0.9
    text = right.encoded(bits)
    assert np.array_equal(right.decoded(text, images), bits)
    assert right.decoded(text, images + 8) is None


def test_the_first_image_is_the_highest_bit():
    assert right.encoded(np.array([True] + [False] * 8)) == "gAA="


def test_of_too_many_images_there_are_none():
    assert right.encoded(np.ones(right.MAX_IMAGES + 1, bool)) is None


@pytest.mark.parametrize("text", ["", "not base64", "gAA", "=gAA"])
def test_what_is_no_such_text_is_none(text):
    assert right.decoded(text, 9) is None


def test_what_a_line_has_more_for_5000_images_is_little():
    more = {"right": right.encoded(np.ones(5000, bool)), "state_sha256": "0" * 64, "previous": "0" * 64}
    assert len(json.dumps(more)) <= 1200
